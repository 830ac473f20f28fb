"""Worst-case neighbours for a private global model: one subject is there, or not.

A training is one trial, and the attack reads all that the mechanism releases: count, reward and second moment.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from idiolect_adapters.audit.canary import CLIP_NORM, Canary, FloatArray, Mechanism
from idiolect_adapters.audit.recipes import MANY_DIRECTIONS, alternating, summing
from idiolect_adapters.audit.structure import changed_inputs
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import SubjectComparisons
from idiolect_adapters.training.private_global import UNSAMPLED_RELEASES, Released, release_private_global

GlobalTraining = Callable[[SubjectComparisons, NDArray[np.int64], Recipe, float, NoiseSource], Released]

STEPS = 2
BACKGROUND = 100  # known subjects
CANARY_ROWS = 8  # of the one subject, half of them in each half
SATURATED = -1e9  # a margin that no reward makes up for
LOUD = 1e3 * CLIP_NORM


def _data(
    subjects: int, owner: int, row_K: FloatArray, margin: float, rows: int
) -> tuple[SubjectComparisons, NDArray[np.int64]]:
    """`subjects` of whom `owner` alone says anything, `rows` times the same, if there is such a subject."""
    rows *= owner < subjects
    return (
        SubjectComparisons(
            subjects, np.full(rows, owner), np.tile(row_K, (rows, 1)), np.full(rows, margin), np.ones(rows)
        ),
        np.arange(rows) % 2,
    )


def _runs(
    train: GlobalTraining,
    data: tuple[SubjectComparisons, NDArray[np.int64]],
    recipe: Recipe,
    multiplier: float,
    trials: int,
) -> list[Released]:
    return [train(*data, recipe, multiplier, SecureNoise()) for _ in range(trials)]


def _loud(present: bool) -> tuple[SubjectComparisons, NDArray[np.int64]]:
    return _data(BACKGROUND + present, BACKGROUND, LOUD * np.eye(2)[0], SATURATED, CANARY_ROWS)


def _everything(released: Released, moment_weight: float = 1.0) -> float:
    """The sum of what the canary adds to each release, in the units of its noise: the best test of all of them."""
    steps = released.reward_D[0] * released.count / CLIP_NORM  # the count divides what was summed
    return released.count + float(steps + moment_weight * released.moment_D_D[0, 0] / CLIP_NORM**2)


def _most_of_all_the_moment(released: Released) -> float:
    """The best test if that has half the noise that it should."""
    return _everything(released, 4.0)


def _count(released: Released) -> float:
    return released.count


def _aligned(
    steps: int, score: Callable[[Released], float]
) -> Callable[[GlobalTraining, float, bool, int], FloatArray]:
    """Clipped to the full norm and of one direction in every release."""

    def scores(train: GlobalTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
        return np.array([score(one) for one in _runs(train, _loud(present), summing(steps), multiplier, trials)])

    return scores


def _silent(
    others: int, scale: Callable[[Released], float]
) -> Callable[[GlobalTraining, float, bool, int], FloatArray]:
    """A subject that says nothing: only the scale of the noise can show it."""

    def scores(train: GlobalTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
        nobody = others + present
        data = _data(nobody, nobody, np.zeros(MANY_DIRECTIONS), 0.0, 1)
        runs = _runs(train, data, summing(1, MANY_DIRECTIONS), multiplier, trials)
        return np.array([scale(one) for one in runs])

    return scores


def _spread(released: Released) -> float:
    """Of the noise in the moment, which no count divides."""
    return float(np.linalg.norm(released.moment_D_D))


def _switching(train: GlobalTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    """Silent at the first step; about every second time the noise of that step makes it loud in the second. The reward
    is the second noisy sum minus the first, so equal noise in both leaves the canary bare."""
    data = _data(1 + present, 1, 1e6 * np.eye(2)[0], 50.0, CANARY_ROWS)
    return np.array([one.reward_D[0] for one in _runs(train, data, alternating(), multiplier, trials)])


def _against_another_run(train: GlobalTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    of, known = (_runs(train, _loud(there), summing(STEPS), multiplier, trials) for there in (present, False))
    return np.array([_everything(one) - _everything(other) for one, other in zip(of, known, strict=True)])


GLOBAL_CANARIES: tuple[Canary[GlobalTraining], ...] = (
    Canary("aligned", STEPS, 1.0, _aligned(STEPS, _everything)),
    Canary("aligned, most of all the moment", 1, 1.0, _aligned(1, _most_of_all_the_moment)),
    Canary("the count alone", 1, 0.125, _aligned(1, _count)),
    Canary("silent, alone", 1, 0.125, _silent(0, _spread)),
    Canary("switching", 2, 0.125, _switching),
    Canary("against another run", STEPS, 0.125, _against_another_run),
)


def _touched(train: GlobalTraining) -> list[str]:
    data, half_C = _loud(True)
    recipe = summing(STEPS)
    return changed_inputs(data, recipe, lambda: train(data, half_C, recipe, 1.0, SecureNoise()))


def shipped_global() -> Mechanism[GlobalTraining]:
    return Mechanism(
        "global",
        "subject",
        release_private_global,
        GLOBAL_CANARIES,
        lambda steps: steps + UNSAMPLED_RELEASES,
        _touched,
        trials=4_000,
    )
