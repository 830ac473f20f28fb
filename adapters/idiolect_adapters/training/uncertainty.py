"""How far an adapter can be trusted, from public constants alone.

Of a person about whom nothing was read the descent is linear in its noise, so what noise alone makes of an adapter is
an exact Gaussian: with S = (prior I + curvature)^-1 and A = I - prior S, T steps give

    covariance = (multiplier * clip)^2 * sum over t < T of  A^t S S A^t

A weight that such a Gaussian would seldom reach says something; any other may be noise. Comparisons only narrow the
noise, so this is also its upper bound. It reads nothing of the person and costs no privacy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from idiolect_adapters.training.descent import Recipe

FloatArray = NDArray[np.float64]

CLEAR = 2.0  # standard deviations of noise alone: 1 in 22 of weights that mean nothing is called clear


def noise_covariance(recipe: Recipe, noise_multiplier: float) -> FloatArray:
    """[K, K] of the adapter of a person without comparisons."""
    rank = len(recipe.curvature_K_K)
    step = np.linalg.inv(recipe.prior * np.eye(rank) + recipe.curvature_K_K)
    keep = np.eye(rank) - recipe.prior * step
    total: FloatArray = np.zeros((rank, rank))
    factor = step
    for _ in range(recipe.steps):
        total += factor @ factor.T
        factor = keep @ factor
    covariance: FloatArray = (noise_multiplier * recipe.clip_norm) ** 2 * total
    return covariance


def posterior_covariance(typical_K_K: FloatArray) -> FloatArray:
    """[K, K], Laplace: what comparisons with this Hessian leave open of a person who is N(0, I)."""
    return np.asarray(np.linalg.inv(np.eye(len(typical_K_K)) + typical_K_K), dtype=np.float64)
