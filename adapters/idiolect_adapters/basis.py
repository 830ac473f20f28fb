"""The shared, frozen directions that adapters are written in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def principal_directions(features_N_H: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """[count, H]: principal directions of centred features, scaled so that projections have unit variance.

    Where the features have fewer directions than `count` (tiny models, few texts) the rest are zero rows: harmless, and
    the rank stays what was asked for.
    """
    _, singular, directions = np.linalg.svd(features_N_H.astype(np.float64), full_matrices=False)
    deviations = singular / np.sqrt(max(len(features_N_H), 1))
    basis = np.zeros((count, features_N_H.shape[1]), dtype=np.float32)
    usable = min(count, int((deviations > 1e-6 * max(deviations[0], 1e-12)).sum())) if len(deviations) else 0
    basis[:usable] = directions[:usable] / deviations[:usable, None]
    return basis


def whiten(basis_K_H: FloatArray, weights_P_K: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(whitened basis [K, H], mean weights [K]) for people whose weights in the old basis are `weights_P_K`.

    Directions are rotated to the principal axes of how people differ and scaled by their spread, so that in the new
    basis people are N(0, I): a unit prior fits, and the directions come in order of importance. What people share
    (the mean) is no matter of taste; the caller adds `mean @ basis` to the reward head.
    """
    mean_K = weights_P_K.mean(axis=0)
    covariance_K_K = np.cov(weights_P_K.T, ddof=0).reshape(len(mean_K), len(mean_K))
    variances_K, axes_K_K = np.linalg.eigh(covariance_K_K)
    order = np.argsort(variances_K)[::-1]
    # B' = axes^T B / spread  and  A' = spread * axes^T A  leave B . A f unchanged.
    spread_K = np.sqrt(np.maximum(variances_K[order], 1e-12))
    return spread_K[:, None] * (axes_K_K[:, order].T @ basis_K_H), mean_K
