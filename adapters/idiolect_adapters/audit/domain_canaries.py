"""Worst-case neighbours for domain adapters: one subject is there, or not.

A training is one trial. How many subjects there are is released with noise of its own, and the attack reads that too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from idiolect_adapters.audit.canary import CLIP_NORM, Canary, FloatArray, Mechanism, norms, plain_sum
from idiolect_adapters.audit.recipes import MANY_DIRECTIONS, alternating, summing
from idiolect_adapters.audit.structure import changed_inputs
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import COUNT_RELEASES, SubjectComparisons, train_domain

DomainTraining = Callable[[SubjectComparisons, Recipe, float, NoiseSource], FloatArray]

STEPS = 2
BACKGROUND = 100  # known subjects
CANARY_ROWS = 8  # of the one subject: clipped one by one they would weigh eight times as much
SATURATED = -1e9
LOUD = 1e3 * CLIP_NORM


def _data(rows: list[tuple[int, FloatArray, float]], rank: int) -> SubjectComparisons:
    """`rows` are (subject, difference [K], margin); subjects count from 0 without gaps."""
    return SubjectComparisons(
        subjects=max((subject for subject, _, _ in rows), default=-1) + 1,
        subject_C=np.array([subject for subject, _, _ in rows], dtype=np.int64),
        differences_C_K=np.array([difference_K for _, difference_K, _ in rows]).reshape(len(rows), rank),
        margins_C=np.array([margin for _, _, margin in rows], dtype=np.float64),
        weights_C=np.ones(len(rows)),
    )


def _runs(
    train: DomainTraining, data: SubjectComparisons, recipe: Recipe, multiplier: float, trials: int
) -> FloatArray:
    """[trials, K]"""
    return np.array([train(data, recipe, multiplier, SecureNoise()) for _ in range(trials)])


def _loud(present: bool) -> SubjectComparisons:
    """The background pulls along the second direction by exactly the clip norm each, the canary along the first."""
    background = [(subject, CLIP_NORM * np.eye(2)[1], SATURATED) for subject in range(BACKGROUND)]
    canary = [(BACKGROUND, LOUD * np.eye(2)[0], SATURATED)] * CANARY_ROWS
    return _data(background + canary * present, rank=2)


def _aligned(train: DomainTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    """The gradient sum shows along the first direction; the noisy count divides the known pull along the second.

    With T steps the first entry moves by T with variance T sigma^2, the second (in the units of the first) by -T with
    variance (T^2 + T) sigma^2; the best linear test weighs them as 1 to 1 / (T + 1).
    """
    adapters_N_K = _runs(train, _loud(present), summing(STEPS), multiplier, trials)
    scores_N: FloatArray = adapters_N_K[:, 0] - adapters_N_K[:, 1] / (STEPS + 1)
    return scores_N


def _silent(others: int) -> Callable[[DomainTraining, float, bool, int], FloatArray]:
    """A subject without any gradient beside `others` of the same kind: only the scale of the noise can show."""
    sign = 1.0 if others == 0 else -1.0

    def scores(train: DomainTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
        rows = [(subject, np.zeros(MANY_DIRECTIONS), 0.0) for subject in range(others + present)]
        data = _data(rows, MANY_DIRECTIONS)
        return sign * norms(_runs(train, data, summing(1, MANY_DIRECTIONS), multiplier, trials))

    return scores


def _switching(train: DomainTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    """As for users: equal noise in both steps cancels, and leaves the canary bare about every second time."""
    rows = [(0, np.zeros(2), 0.0), (1, 1e6 * np.eye(2)[0], 50.0)]
    return plain_sum(_runs(train, _data(rows[: 1 + present], rank=2), alternating(), multiplier, trials))


def _against_another_run(train: DomainTraining, multiplier: float, present: bool, trials: int) -> FloatArray:
    of, known = (_runs(train, _loud(there), summing(STEPS), multiplier, trials) for there in (present, False))
    return plain_sum(of - known)


DOMAIN_CANARIES: tuple[Canary[DomainTraining], ...] = (
    Canary("aligned", STEPS, 1.0, _aligned),
    Canary("silent, alone", 1, 0.125, _silent(0)),
    Canary("silent, beside another", 1, 0.125, _silent(1)),
    Canary("switching", 2, 0.125, _switching),
    Canary("against another run", STEPS, 0.125, _against_another_run),
)


def _touched(train: DomainTraining) -> list[str]:
    data, recipe = _loud(True), summing(STEPS)
    return changed_inputs(data, recipe, lambda: train(data, recipe, 1.0, SecureNoise()))


def shipped_domain(sample_rate: float = 1.0) -> Mechanism[DomainTraining]:
    return Mechanism(
        "domain",
        "subject",
        partial(train_domain, sample_rate=sample_rate),
        DOMAIN_CANARIES,
        lambda steps: steps + COUNT_RELEASES,
        _touched,
        trials=4_000,
        sample_rate=sample_rate,
    )
