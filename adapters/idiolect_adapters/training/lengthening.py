"""Adapters that say little are made longer.

The steps of a recipe fit all people at once, however much they said, since how much they said is private: too short for
five comparisons, about right for fifty. What the mechanism released tells them apart, by its length. So with a and u of
the recipe

    B <- B (1 + a / (1 + |B|^2 / u^2))

which keeps every direction and the order of lengths (for a < 8). It reads nothing but what was released, so it is
post-processing and costs no privacy. Shrinking short adapters does not help (deploy/decisions/0027-few-comparisons.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from idiolect_adapters.training.descent import Recipe

FloatArray = NDArray[np.float64]

QUANTILES = 200


def lengthened(adapters_P_K: FloatArray, recipe: Recipe) -> FloatArray:
    """[P, K]"""
    if recipe.lengthening == 0.0:
        return adapters_P_K
    return adapters_P_K * _factors((adapters_P_K**2).sum(axis=1, keepdims=True), recipe)


def noise_lengthening(recipe: Recipe, variance: float, rank: int) -> float:
    """By what the variance of an adapter of noise alone, with `variance` in each of `rank` directions, grows: the mean
    over its length, whose square is variance times a chi square of `rank` degrees."""
    if recipe.lengthening == 0.0 or rank == 0:
        return 1.0
    share_Q = (np.arange(QUANTILES) + 0.5) / QUANTILES
    square_Q = 2.0 * variance * gammaincinv(rank / 2.0, share_Q)
    return float((square_Q * _factors(square_Q, recipe) ** 2).sum() / max(float(square_Q.sum()), 1e-300))


def _factors(square: FloatArray, recipe: Recipe) -> FloatArray:
    """Of adapters with this squared length. One that is not finite in float64 stays as it is."""
    factors: FloatArray = 1.0 + recipe.lengthening / (1.0 + square / recipe.until**2)
    return factors
