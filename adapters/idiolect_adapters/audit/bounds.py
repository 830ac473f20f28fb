"""From the hits and false alarms of an attack to a lower bound on epsilon that holds with stated confidence.

An attack says "the canary was there" where its score is above a threshold. The threshold is chosen on one half of the
trials and judged on the other, so the binomial confidence limits hold for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainccinv, betaincinv, ndtri

from idiolect.privacy.accountant import gaussian_delta

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

QUANTILES = 255
MAX_EPSILON = 1e4  # above this nobody cares how far


@dataclass(frozen=True, slots=True)
class Rates:
    """What an attack surely reaches: at least `tpr` of the canaries, at most `fpr` false alarms."""

    tpr: float
    fpr: float


@dataclass(frozen=True, slots=True)
class EpsilonBounds:
    """Two lower bounds on epsilon at delta.

    `threshold` assumes nothing about the mechanism. `gaussian` assumes that its trade-off curve is that of a Gaussian
    mechanism, which is what the claim says; so it refutes the claim as well, and it is tighter (Nasr et al. 2023,
    "Tight Auditing of Differentially Private Machine Learning", section 4).
    """

    threshold: float
    gaussian: float
    rates: Rates  # at the threshold of the Gaussian bound

    @property
    def best(self) -> float:
        return max(self.threshold, self.gaussian)


def lower_limit(successes_N: IntArray, trials: int, alpha: float) -> FloatArray:
    """The one-sided limit of Clopper & Pearson 1934: the true rate is below it with chance <= alpha."""
    found = betaincinv(np.maximum(successes_N, 1), trials - np.maximum(successes_N, 1) + 1, alpha)
    limits_N: FloatArray = np.where(successes_N == 0, 0.0, found)
    return limits_N


def upper_limit(successes_N: IntArray, trials: int, alpha: float) -> FloatArray:
    """The other side: the true rate is above it with chance <= alpha."""
    few_N = np.minimum(successes_N, trials - 1)
    limits_N: FloatArray = np.where(successes_N == trials, 1.0, betainccinv(few_N + 1, trials - few_N, alpha))
    return limits_N


def threshold_epsilon(tpr: float, fpr: float, delta: float) -> float:
    """The smallest epsilon with tpr <= e^eps fpr + delta and 1 - fpr <= e^eps (1 - tpr) + delta (Kairouz et al. 2015,
    Theorem 2.1); 0 where the rates say nothing."""
    ratios = [(hit - delta) / miss for hit, miss in ((tpr, fpr), (1.0 - fpr, 1.0 - tpr)) if hit > delta and miss > 0]
    return max((math.log(ratio) for ratio in ratios), default=0.0) if max(ratios, default=0.0) > 1.0 else 0.0


def gaussian_epsilon(tpr: float, fpr: float, delta: float) -> float:
    """The smallest epsilon of a Gaussian mechanism whose best test reaches these rates; 0 where they say nothing."""
    return epsilon_of_mu(mu_of(tpr, fpr), delta)


def mu_of(tpr: float, fpr: float) -> float:
    """sensitivity / sigma of the Gaussian mechanism whose best test has these rates. Dong, Roth & Su 2022, eq. (6)."""
    return float(ndtri(tpr) - ndtri(fpr))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """epsilon at `delta` of the Gaussian mechanism with sensitivity / sigma = mu; at most MAX_EPSILON."""
    if not mu > 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    if math.isinf(mu) or gaussian_delta(MAX_EPSILON, mu) > delta:
        return MAX_EPSILON
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0, MAX_EPSILON))


def epsilon_bounds(with_N: FloatArray, without_N: FloatArray, delta: float, alpha: float) -> EpsilonBounds:
    """Bounds from the scores of trials with and without the canary; each of the two is wrong with chance <= alpha."""
    half_with, half_without = len(with_N) // 2, len(without_N) // 2
    thresholds_T = _candidates(np.concatenate([with_N[:half_with], without_N[:half_without]]))
    chosen_on = _rates(with_N[:half_with], without_N[:half_without], thresholds_T, alpha)

    def judged(shown: Callable[[Rates], float]) -> Rates:
        """The rates, on the other half, of the threshold that shows most on the first."""
        best = thresholds_T[[int(np.argmax([shown(rates) for rates in chosen_on]))]]
        return _rates(with_N[half_with:], without_N[half_without:], best, alpha)[0]

    plain = judged(lambda rates: threshold_epsilon(rates.tpr, rates.fpr, delta))
    gaussian = judged(lambda rates: mu_of(rates.tpr, rates.fpr))
    return EpsilonBounds(
        threshold_epsilon(plain.tpr, plain.fpr, delta), gaussian_epsilon(gaussian.tpr, gaussian.fpr, delta), gaussian
    )


def _candidates(scores_N: FloatArray) -> FloatArray:
    """Quantiles, dense in both tails, where the bound without assumptions is found."""
    tails = np.logspace(-math.log10(len(scores_N)), -2, 24)
    quantiles = np.concatenate([tails, np.linspace(0.0, 1.0, QUANTILES), 1.0 - tails])
    thresholds_T: FloatArray = np.unique(np.quantile(scores_N, quantiles, method="lower"))
    return thresholds_T


def _rates(with_N: FloatArray, without_N: FloatArray, thresholds_T: FloatArray, alpha: float) -> list[Rates]:
    """Both limits of a pair hold together with chance >= 1 - alpha."""
    tpr_T = lower_limit(_above(with_N, thresholds_T), len(with_N), alpha / 2)
    fpr_T = upper_limit(_above(without_N, thresholds_T), len(without_N), alpha / 2)
    return [Rates(float(tpr), float(fpr)) for tpr, fpr in zip(tpr_T, fpr_T, strict=True)]


def _above(scores_N: FloatArray, thresholds_T: FloatArray) -> IntArray:
    counts_T: IntArray = len(scores_N) - np.searchsorted(np.sort(scores_N), thresholds_T, side="right")
    return counts_T
