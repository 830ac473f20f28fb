"""User adapters: many people at once, each under differential privacy for one comparison.

For one person with comparisons c (feature difference d_c = A f(chosen) - A f(rejected), margin o_c of the stack below)
the adapter B minimises a Bradley-Terry loss with a unit Gaussian prior (the basis is whitened, so a unit prior fits):

    L(B) = sum_c w_c softplus(-(o_c + B . d_c)) + prior / 2 |B|^2

Each step clips the gradient of every comparison (its two responses together), sums, and adds noise. No quantity of
the person's data is read in any other way: not their number of comparisons, not the loss, no early stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.signals.data import Comparisons
from idiolect_adapters.training.clip_noise import NoiseSource, clip_rows
from idiolect_adapters.training.descent import Recipe, noisy_descent

FloatArray = NDArray[np.float64]

PEOPLE_AT_ONCE = 4096  # bounds memory: 4096 people x 50 comparisons x 12 directions in float64 are 20 MB


@dataclass(frozen=True, slots=True)
class PaddedComparisons:
    """P people with up to C comparisons each; rows beyond a person's own have weight 0."""

    differences_P_C_K: FloatArray
    margins_P_C: FloatArray
    weights_P_C: FloatArray  # in [0, 1]


def pad_comparisons(
    comparisons: Comparisons, people: NDArray[np.int64], taste_I_K: FloatArray, score_C: FloatArray, *, limit: int
) -> PaddedComparisons:
    """The first `limit` comparisons of each of `people`.

    `score_C` is the margin of each comparison under the stack below the user adapter.
    """
    order_C = np.argsort(comparisons.person_C, kind="stable")
    starts_P = np.searchsorted(comparisons.person_C[order_C], people)
    ends_P = np.searchsorted(comparisons.person_C[order_C], people, side="right")
    rows_P_C = starts_P[:, None] + np.arange(limit)[None, :]
    real_P_C = rows_P_C < ends_P[:, None]
    if not len(order_C):
        shape = (len(people), limit)
        return PaddedComparisons(np.zeros((*shape, taste_I_K.shape[1])), np.zeros(shape), np.zeros(shape))
    picked_P_C = order_C[np.minimum(rows_P_C, len(order_C) - 1)]
    differences = taste_I_K[comparisons.chosen_C[picked_P_C]] - taste_I_K[comparisons.rejected_C[picked_P_C]]
    weights_P_C = np.clip(comparisons.weight_C[picked_P_C], 0.0, 1.0) * real_P_C
    return PaddedComparisons(differences * real_P_C[..., None], score_C[picked_P_C] * real_P_C, weights_P_C)


def train_users(data: PaddedComparisons, recipe: Recipe, noise_multiplier: float, noise: NoiseSource) -> FloatArray:
    """The adapters B [P, K] of the P people of `data`.

    The ledger must hold a reservation for `recipe.steps` releases at `noise_multiplier`. A person without comparisons
    gets pure noise: an empty batch draws noise like any other.
    """
    differences = data.differences_P_C_K

    def clipped_sums(adapters_P_K: FloatArray) -> FloatArray:
        scores_P_C = data.margins_P_C + np.einsum("pck,pk->pc", differences, adapters_P_K)
        pull_P_C = data.weights_P_C * expit(-scores_P_C)
        sums_P_K: FloatArray = clip_rows(pull_P_C[..., None] * differences, recipe.clip_norm).sum(axis=1)
        return sums_P_K

    return noisy_descent(clipped_sums, (differences.shape[0], differences.shape[2]), recipe, noise_multiplier, noise)
