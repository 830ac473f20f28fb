"""User adapters: many people at once, each under differential privacy for one comparison.

For one person with comparisons c (feature difference d_c = A f(chosen) - A f(rejected), margin o_c of the stack below)
the adapter B minimises a Bradley-Terry loss with a unit Gaussian prior (the basis is whitened, so a unit prior fits):

    L(B) = sum_c w_c softplus(-(o_c + B . d_c)) + prior / 2 |B|^2

Each step clips the gradient of every comparison (its two responses together), sums, and adds noise. No quantity of
the person's data is read in any other way: not their number of comparisons, not the loss, no early stop.

A comparison's gradient always points along its d_c; what a step changes is how far. So d_c is split once into a unit
vector and a length, and a step clips lengths.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.data import Comparisons
from idiolect_adapters.training.clip_noise import (
    NoiseSource,
    check_noise_multiplier,
    clip_lengths,
    directions_and_lengths,
    draws_in_any_order,
)
from idiolect_adapters.training.descent import Recipe, noisy_descent

FloatArray = NDArray[np.float64]

BLOCK = 256  # people at once on a core: few enough for its cache, enough that numpy's calls cost little
PEOPLE_AT_ONCE = 4096  # bounds memory: 4096 people x 50 comparisons x 12 directions in float64 are 20 MB


@dataclass(frozen=True, slots=True)
class PaddedComparisons:
    """P people with up to C comparisons each; rows beyond a person's own have weight 0."""

    differences_P_C_K: FloatArray
    margins_P_C: FloatArray
    weights_P_C: FloatArray  # in [0, 1]

    def of(self, people: slice) -> PaddedComparisons:
        """A view of some of the people."""
        return PaddedComparisons(self.differences_P_C_K[people], self.margins_P_C[people], self.weights_P_C[people])


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
    gets pure noise: an empty batch draws noise like any other. Many people run in blocks, on all cores; with a source
    of noise whose order matters they run as one, and it is asked for [P, K] draws at every step.
    """
    if check_noise_multiplier(noise_multiplier) > 0 and not draws_in_any_order(noise):
        return _train_block(data, recipe, noise_multiplier, noise)
    people = len(data.differences_P_C_K)
    blocks = [data.of(slice(start, start + BLOCK)) for start in range(0, people, BLOCK)] or [data]

    def train(block: PaddedComparisons) -> FloatArray:
        return _train_block(block, recipe, noise_multiplier, noise)

    if len(blocks) == 1:
        return train(data)
    with ThreadPoolExecutor(_cores()) as threads:
        return np.concatenate(list(threads.map(train, blocks)))


def _train_block(data: PaddedComparisons, recipe: Recipe, noise_multiplier: float, noise: NoiseSource) -> FloatArray:
    directions_P_C_K, lengths_P_C = directions_and_lengths(data.differences_P_C_K)
    weighted_P_C = data.weights_P_C * lengths_P_C

    def clipped_sums(adapters_P_K: FloatArray) -> FloatArray:
        # Of a huge margin the exponential is infinite and the pull 0. What is not a number is left to the clipping.
        with np.errstate(over="ignore", invalid="ignore"):
            pulls_P_C = np.matvec(directions_P_C_K, adapters_P_K)
            pulls_P_C *= lengths_P_C
            pulls_P_C += data.margins_P_C
            np.exp(pulls_P_C, out=pulls_P_C)
            pulls_P_C += 1.0
            np.divide(weighted_P_C, pulls_P_C, out=pulls_P_C)
        sums_P_K: FloatArray = np.vecmat(clip_lengths(pulls_P_C, recipe.clip_norm), directions_P_C_K)
        return sums_P_K

    shape = (directions_P_C_K.shape[0], directions_P_C_K.shape[2])
    return noisy_descent(clipped_sums, shape, recipe, noise_multiplier, noise)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
