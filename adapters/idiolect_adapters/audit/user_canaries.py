"""Worst-case neighbours for user adapters: one comparison is there, or zeroed out.

Every person of a batch is one independent trial.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from idiolect_adapters.audit.canary import CLIP_NORM, Canary, FloatArray, Mechanism, norms, plain_sum
from idiolect_adapters.audit.recipes import MANY_DIRECTIONS, alternating, summing
from idiolect_adapters.audit.structure import changed_inputs
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.user import PaddedComparisons, train_users

UserTraining = Callable[[PaddedComparisons, Recipe, float, NoiseSource], FloatArray]

STEPS = 4
AT_ONCE = 20_000
SATURATED = -1e9  # a margin that no adapter makes up for: the pull of the comparison stays 1 in every step
LOUD = 1e3 * CLIP_NORM


def _data(people: int, difference_C_K: FloatArray, margins_C: list[float], weights_C: list[float]) -> PaddedComparisons:
    """`people` with the same comparisons."""
    comparisons = len(margins_C)
    return PaddedComparisons(
        np.tile(difference_C_K, (people, 1, 1)),
        np.broadcast_to(np.array(margins_C), (people, comparisons)).copy(),
        np.broadcast_to(np.array(weights_C), (people, comparisons)).copy(),
    )


def _along_first(length: float, rank: int = 2) -> FloatArray:
    direction_1_K = np.zeros((1, rank))
    direction_1_K[0, 0] = length
    return direction_1_K


def _loud(people: int, present: bool) -> PaddedComparisons:
    return _data(people, _along_first(LOUD), [SATURATED], [float(present)])


def _batched(adapters: Callable[[int], FloatArray], trials: int) -> FloatArray:
    return np.concatenate([adapters(min(AT_ONCE, trials - done)) for done in range(0, trials, AT_ONCE)])


def _aligned(train: UserTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    """The canary's clipped gradient has the full norm and the same direction in every step; there is nothing else."""
    return _batched(
        lambda people: plain_sum(train(_loud(people, present), summing(STEPS), multiplier, SecureNoise())), trials
    )


def _silent(others: int) -> Callable[[UserTraining, float, bool, int], FloatArray]:
    """Comparisons without any gradient: only what depends on *how many* there are can show, as the scale of the noise.

    Beside `others`; without any, the noise of an empty batch; else a denominator that shrinks it.
    """
    sign = 1.0 if others == 0 else -1.0

    def scores(train: UserTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
        def one_batch(people: int) -> FloatArray:
            nothing = np.zeros((1 + others, MANY_DIRECTIONS))
            data = _data(people, nothing, [0.0] * (1 + others), [float(present)] + [1.0] * others)
            return sign * norms(train(data, summing(1, MANY_DIRECTIONS), multiplier, SecureNoise()))

        return _batched(one_batch, trials)

    return scores


def _switching(train: UserTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    """Silent at the first step; about every second time the noise of that step makes it loud in the second.

    The adapter is the second noisy sum minus the first, so equal noise in both cancels and leaves the canary bare.
    """

    def one_batch(people: int) -> FloatArray:
        data = _data(people, _along_first(1e6), [50.0], [float(present)])
        return plain_sum(train(data, alternating(), multiplier, SecureNoise()))

    return _batched(one_batch, trials)


def _against_another_run(train: UserTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    """Minus an adapter of known (empty) data from another run: noise that both runs share cancels."""

    def one_batch(people: int) -> FloatArray:
        of, known = (
            train(_loud(people, there), summing(STEPS), multiplier, SecureNoise()) for there in (present, False)
        )
        return plain_sum(of - known)

    return _batched(one_batch, trials)


def _against_a_neighbour(train: UserTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    """Minus the adapter of another person of the same batch, whose data is known: noise that people share cancels."""

    def one_batch(people: int) -> FloatArray:
        data = _loud(2 * people, present)
        data.weights_P_C[people:] = 0.0
        adapters_P_K = train(data, summing(STEPS), multiplier, SecureNoise())
        return plain_sum(adapters_P_K[:people] - adapters_P_K[people:])

    return _batched(one_batch, trials)


USER_CANARIES: tuple[Canary[UserTraining], ...] = (
    Canary("aligned", STEPS, 1.0, _aligned),
    Canary("silent, alone", 1, 0.02, _silent(0)),
    Canary("silent, beside another", 1, 0.02, _silent(1)),
    Canary("switching", 2, 0.1, _switching),
    Canary("against another run", STEPS, 0.1, _against_another_run),
    Canary("against a neighbour", STEPS, 0.1, _against_a_neighbour),
)


def _touched(train: UserTraining) -> list[str]:
    data, recipe = _loud(3, True), summing(STEPS)
    return changed_inputs(data, recipe, lambda: train(data, recipe, 1.0, SecureNoise()))


def shipped_user() -> Mechanism[UserTraining]:
    return Mechanism("user", "comparison", train_users, USER_CANARIES, lambda steps: steps, _touched, trials=200_000)
