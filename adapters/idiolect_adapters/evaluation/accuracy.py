"""How often the model orders a person's pairs as the person did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MIN_PAIRS = 4
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean over people of each person's share of pairs ordered rightly, with a 95% interval over people."""

    value: float
    low: float
    high: float
    people: int


def person_accuracies(margin_C: FloatArray, person_C: NDArray[np.int32], *, min_pairs: int = MIN_PAIRS) -> FloatArray:
    """Per person with at least `min_pairs` pairs: the share with a margin (chosen minus rejected) above 0, ties one
    half.
    """
    right_C = (margin_C > 0) + 0.5 * (margin_C == 0)
    pairs_P = np.bincount(person_C)
    enough_P = pairs_P >= min_pairs
    totals_P = np.bincount(person_C, weights=right_C)
    shares_P: FloatArray = totals_P[enough_P] / pairs_P[enough_P]
    return shares_P


def bootstrap_mean(values_P: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Accuracy:
    """Percentile bootstrap over people (Efron 1979). With nobody, all figures are NaN."""
    return bootstrap_noisy_mean(values_P[None, :], seed=seed, draws=draws)


def bootstrap_noisy_mean(values_N_P: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Accuracy:
    """The same for N repetitions of a noisy training: `value` is their median, and every bootstrap draw takes people
    and one of the repetitions at random, so the interval covers both the choice of people and the noise.
    """
    repetitions, people = values_N_P.shape
    if people == 0:
        return Accuracy(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    means = np.array(
        [values_N_P[rng.integers(repetitions), rng.integers(0, people, people)].mean() for _ in range(draws)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Accuracy(float(np.median(values_N_P.mean(axis=1))), float(low), float(high), people)


def ratio_of_means(over_P: FloatArray, under_P: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Accuracy:
    """The mean of one figure by that of another of the same people, with a percentile interval over people. NaN where
    the lower one is not above 0 beyond chance (the 95% interval of its mean): there is nothing to have a share of.
    """
    people = len(under_P)
    nothing = Accuracy(float("nan"), float("nan"), float("nan"), people)
    if people == 0:
        return nothing
    rng = np.random.default_rng(seed)
    picked = [rng.integers(0, people, people) for _ in range(draws)]
    under_D = np.array([under_P[picked_P].mean() for picked_P in picked])
    if not np.quantile(under_D, 0.025) > 0.0:
        return nothing
    ratio_D = np.array([over_P[picked_P].mean() for picked_P in picked])[under_D > 0.0] / under_D[under_D > 0.0]
    low, high = np.quantile(ratio_D, [0.025, 0.975])
    return Accuracy(float(over_P.mean() / under_P.mean()), float(low), float(high), people)
