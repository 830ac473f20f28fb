"""Do stated probabilities hold? Temperature and expected calibration error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

FloatArray = NDArray[np.float64]


def fit_temperature(margin_C: FloatArray, weight_C: FloatArray) -> float:
    """The T > 0 for which sigmoid(margin / T) has the least cross-entropy (Guo et al. 2017), within 0.05 .. 20."""
    if not len(margin_C):
        return 1.0

    def cross_entropy(log_temperature: float) -> float:
        return float((weight_C * np.logaddexp(0.0, -margin_C / np.exp(log_temperature))).sum())

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(margin_C: FloatArray, temperature: float, *, bins: int = 10) -> float:
    """Mean gap between stated and observed probability over equal-mass bins (Naeini et al. 2015).

    Margins are chosen minus rejected, so each pair is read once in either direction: probabilities p with outcome 1,
    1 - p with outcome 0. The two readings alternate, so that bins cut equal probabilities fairly.
    """
    if not len(margin_C):
        return float("nan")
    stated = expit(np.stack([margin_C, -margin_C], axis=1).ravel() / temperature)
    happened = np.tile([1.0, 0.0], len(margin_C))
    order = np.argsort(stated, kind="stable")
    gaps = [
        len(part) * abs(stated[part].mean() - happened[part].mean())
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return float(sum(gaps) / len(stated))


def chance_calibration_error(margin_C: FloatArray, temperature: float, *, draws: int = 20, seed: int = 0) -> float:
    """What the error would be if every stated probability held: with few pairs it is far above 0."""
    rng = np.random.default_rng(seed)
    likelier_C = np.abs(margin_C)
    held_D_C = rng.random((draws, len(margin_C))) < expit(likelier_C / temperature)
    errors = [expected_calibration_error(np.where(held_C, likelier_C, -likelier_C), temperature) for held_C in held_D_C]
    return float(np.mean(errors))
