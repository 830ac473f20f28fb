"""Tests that may be looked at after every observation, for ever, without raising more false alarms than stated.

**The building block.** Let x_1, x_2, ... in [0, 1] be independent with mean m, n of them with the sum s. For every q,

    (q / m)^s * ((1 - q) / (1 - m))^(n - s)

is a non-negative supermartingale that starts at 1, because e^(l x) <= 1 - x + x e^l on [0, 1] (for Bernoulli
observations it is the likelihood ratio, and a martingale). So is its mixture over q ~ Beta(a, b):

    W(n, s; m) = B(s + a, n - s + b) / B(a, b) / (m^s * (1 - m)^(n - s))

(Robbins 1970; the beta-binomial mixture of Howard, Ramdas, McAuliffe and Sekhon 2021). By Ville's inequality W ever
reaches 1/alpha with probability at most alpha. It needs only n and s, whatever the order in which people came and
whichever process counted them, and there is no approximation that a small sample could break.

**Difference of two arms.** The product W(n_A, s_A; a) * W(n_B, s_B; b) at the true means is again such a
supermartingale, however the arms are interleaved. So {(a, b): product < 1/alpha} contains the true pair at all times at
once with probability 1 - alpha, and the smallest and largest b - a in it bound the difference. That is narrower than
bounding each arm by itself at alpha / 2.

**Sample ratio.** With one x per enrolled person, 1 for the candidate arm, W(n, s; share) is the sequential
multinomial test of Lindon and Malek 2022 for two cells.

What is not exact: a mean that drifts while the step runs. Only sums enter, so a drift that is common to both arms
moves both; the tests simulate it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, xlog1py, xlogy

FloatArray = NDArray[np.float64]

# Jeffreys' prior: costs half a log(n), wherever the true mean lies.
MEAN_PRIOR = 0.5
# Weight of the expected ratio in the prior of the sample-ratio test, in people: makes it quick to see a few percent.
RATIO_PRIOR = 500.0
_HALVINGS = 44


class Interval(NamedTuple):
    low: FloatArray
    high: FloatArray


def log_evidence(n: ArrayLike, s: ArrayLike, mean: ArrayLike, a: float, b: float) -> FloatArray:
    """log W(n, s; mean): evidence against `mean`, in nats. Infinite where `mean` is 0 or 1 and was seen to be wrong."""
    n_, s_, mean_ = (np.asarray(value, dtype=np.float64) for value in (n, s, mean))
    log_likelihood = xlogy(s_, mean_) + xlog1py(n_ - s_, -mean_)
    return np.asarray(betaln(s_ + a, n_ - s_ + b) - betaln(a, b) - log_likelihood)


def difference(n_a: ArrayLike, s_a: ArrayLike, n_b: ArrayLike, s_b: ArrayLike, alpha: float) -> Interval:
    """Confidence sequence for mean_b - mean_a at level 1 - alpha. Broadcasts; [-1, 1] while an arm is empty."""
    low = -_largest_gap(n_b, s_b, n_a, s_a, alpha)
    return Interval(low, _largest_gap(n_a, s_a, n_b, s_b, alpha))


def _largest_gap(n_a: ArrayLike, s_a: ArrayLike, n_b: ArrayLike, s_b: ArrayLike, alpha: float) -> FloatArray:
    """The largest b - a with log W(a) + log W(b) <= log(1 / alpha): a convex set, so Lagrange's condition finds it.

    d log W / dm = n (m - s/n) / (m (1 - m)), which must be -t for a and t for b. Each is a quadratic in m; the evidence
    rises with t, which is bisected in its logarithm.
    """
    arms = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (n_a, s_a, n_b, s_b)))
    n1, s1, n2, s2 = arms
    low = np.full(n1.shape, -30.0)
    high = np.full(n1.shape, 40.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        a, b = _tilted_down(n1, s1, np.exp(middle)), 1 - _tilted_down(n2, n2 - s2, np.exp(middle))
        inside = _joint(n1, s1, a, n2, s2, b) <= -np.log(alpha)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    t = np.exp(high)  # the outer side: never narrower than the truth
    gap = 1 - _tilted_down(n2, n2 - s2, t) - _tilted_down(n1, s1, t)
    return np.where((n1 > 0) & (n2 > 0), np.clip(gap, -1.0, 1.0), 1.0)


def _joint(n1: FloatArray, s1: FloatArray, a: FloatArray, n2: FloatArray, s2: FloatArray, b: FloatArray) -> FloatArray:
    return log_evidence(n1, s1, a, MEAN_PRIOR, MEAN_PRIOR) + log_evidence(n2, s2, b, MEAN_PRIOR, MEAN_PRIOR)


def _tilted_down(n: FloatArray, s: FloatArray, t: FloatArray) -> FloatArray:
    """The root in [0, s/n] of t m (1 - m) = s - n m: the mean that is less by a tilt of t. Without cancellation."""
    return 2 * s / np.maximum(t + n + np.sqrt(np.maximum((t + n) ** 2 - 4 * t * s, 0.0)), 1e-300)


def proportion(n: ArrayLike, s: ArrayLike, alpha: float) -> Interval:
    """Confidence sequence for one mean. Broadcasts; [0, 1] without observations."""
    n_, s_ = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (n, s)))
    return Interval(_lowest(n_, s_, alpha), 1 - _lowest(n_, n_ - s_, alpha))


def _lowest(n: FloatArray, s: FloatArray, alpha: float) -> FloatArray:
    low, high = np.zeros(n.shape), s / np.maximum(n, 1.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        outside = log_evidence(n, s, middle, MEAN_PRIOR, MEAN_PRIOR) > -np.log(alpha)
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return np.where(n > 0, low, 0.0)


def ratio_evidence(control: ArrayLike, candidate: ArrayLike, share: float) -> FloatArray:
    """log W against the arms having been filled at `share`, which lies strictly between 0 and 1."""
    n = np.asarray(control, dtype=np.float64) + np.asarray(candidate, dtype=np.float64)
    return log_evidence(n, candidate, share, RATIO_PRIOR * share, RATIO_PRIOR * (1 - share))
