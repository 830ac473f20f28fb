"""Turning the tastes of separate crowds into one another's directions.

Where two sets of items have no voter in common (two Polis conversations, say), each set's factors are known only up to
a rotation: "the first direction" of one has nothing to do with that of the other, and no text could predict both.
Every set is therefore rotated (Procrustes, Schoenemann 1966) towards what the texts of the *other* sets predict for
it. Predictions never come from the set itself, so nothing is aligned with its own noise. A rotation changes no score.

Where there is a model already, every set is turned towards that one's directions instead, so that adapters which were
written in them can be carried over: with both, the sweeps undo it (deploy/decisions/0011-carrying-over.md).

Cost: SWEEPS times one kernel regression on at most MAX_ITEMS items per set, for the MAX_CROWDS largest sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.csgraph import connected_components

from idiolect_adapters.training.factors import Factors, fit_factors
from idiolect_adapters.training.votes import Votes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SWEEPS, MAX_CROWDS, MAX_ITEMS, MIN_ITEMS = 3, 32, 2000, 8
RESTARTS, RESTART_STRIDE = 4, 1_000_003  # the stride keeps the starts of neighbouring seeds apart
NOISE_SHARE = 0.6  # of the spread of a factor, that no text explains


def crowds(votes: Votes) -> list[IntArray]:
    """The sets of items that are connected through their voters, largest first."""
    ones = np.ones(len(votes))
    graph = scipy.sparse.csr_matrix(
        (ones, (votes.person_V, votes.people + votes.item_V)), shape=(votes.people + votes.items,) * 2
    )
    _, label = connected_components(graph, directed=False)
    seen = votes.seen_items()
    of_item = label[votes.people + seen]
    names, counts = np.unique(of_item, return_counts=True)
    by_name = seen[np.argsort(of_item, kind="stable")]
    parts = np.split(by_name, np.cumsum(counts)[:-1]) if len(names) else []
    return [parts[index] for index in np.argsort(-counts, kind="stable")]


def align(
    factors: Factors,
    votes: Votes,
    likeness: Callable[[IntArray, IntArray], FloatArray],
    rng: np.random.Generator,
    before_I_K: FloatArray | None = None,
) -> Factors:
    """`likeness(rows, columns)`: the text kernel between items, 1 for equal texts. `before_I_K`: what the directions of
    the model before say about each item; any number of directions."""
    whole = [members for members in crowds(votes)[:MAX_CROWDS] if len(members) >= MIN_ITEMS]
    if len(whole) < 2 or factors.rank == 0:
        return factors
    if before_I_K is not None:
        wide_I_K = _as_wide(before_I_K, factors.rank)
        return _rotated(factors, whole, [_towards(factors, wide_I_K, members) for members in whole])
    sets = [_thin(members, MAX_ITEMS // len(whole), rng) for members in whole]
    everyone = np.concatenate(sets)
    owner = np.repeat(np.arange(len(sets)), [len(members) for members in sets])
    kernel = likeness(everyone, everyone)
    taste = factors.item_mean_I_O[everyone, :-1].copy()
    noise = factors.item_variances()[everyone, :-1].mean(axis=1)
    rotations = [np.eye(factors.rank) for _ in sets]
    for _ in range(SWEEPS):
        for index in rng.permutation(len(sets)):
            mine = owner == index
            predicted = _predict(kernel, taste, noise, ~mine, mine)
            rotation = procrustes(taste[mine], predicted)
            taste[mine] = taste[mine] @ rotation
            rotations[index] = rotations[index] @ rotation
    return _rotated(factors, whole, rotations)


def fit_averaged(votes: Votes, rank: int, seed: int) -> Factors:
    """The mean of RESTARTS factor models from different starts, each turned into the directions of the first.

    The posterior has many nearly equal modes; their mean predicts better than any of them.
    """
    first = fit_factors(votes, rank, seed)
    sets = crowds(votes)
    total = first.item_mean_I_O.copy()
    for restart in range(1, RESTARTS):
        other = fit_factors(votes, rank, seed + restart * RESTART_STRIDE)
        rotations = [
            procrustes(other.item_mean_I_O[members, :-1], first.item_mean_I_O[members, :-1]) for members in sets
        ]
        total += _rotated(other, sets, rotations).item_mean_I_O
    return replace(first, item_mean_I_O=total / RESTARTS)


def _towards(factors: Factors, before_I_K: FloatArray, members: IntArray) -> FloatArray:
    """The rotation of one set; centred there, since a shift of all candidates is no taste."""
    before_N_K = before_I_K[members]
    return procrustes(factors.item_mean_I_O[members, :-1], before_N_K - before_N_K.mean(axis=0))


def _as_wide(values_I_K: FloatArray, rank: int) -> FloatArray:
    """[I, rank]: the first columns, then zeros."""
    wide_I_K = np.zeros((len(values_I_K), rank))
    some = values_I_K[:, :rank]
    wide_I_K[:, : some.shape[1]] = some
    return wide_I_K


def procrustes(moving_N_K: FloatArray, target_N_K: FloatArray) -> FloatArray:
    """The orthogonal R that brings `moving @ R` closest to `target`."""
    left, _, right = np.linalg.svd(moving_N_K.T @ target_N_K)
    rotation: FloatArray = left @ right
    return rotation


def _thin(members: IntArray, limit: int, rng: np.random.Generator) -> IntArray:
    return members if len(members) <= limit else np.sort(rng.choice(members, max(limit, MIN_ITEMS), replace=False))


def _predict(
    kernel: FloatArray, taste: FloatArray, noise: FloatArray, known: NDArray[np.bool_], asked: NDArray[np.bool_]
) -> FloatArray:
    spread = max(float(taste[known].var()), 1e-12)
    inner = kernel[np.ix_(known, known)] + np.diag(NOISE_SHARE + noise[known] / spread)
    weights = cho_solve(cho_factor(inner, lower=True), taste[known])
    predicted: FloatArray = kernel[np.ix_(asked, known)] @ weights
    return predicted


def _rotated(factors: Factors, sets: list[IntArray], rotations: list[FloatArray]) -> Factors:
    """Items of each set rotated. People are not: their votes place them again in the next round of inference."""
    mean, covariance = factors.item_mean_I_O.copy(), factors.item_cov_I_O_O.copy()
    for members, rotation in zip(sets, rotations, strict=True):
        whole = np.eye(factors.rank + 1)
        whole[:-1, :-1] = rotation
        mean[members] = mean[members] @ whole
        covariance[members] = whole.T @ covariance[members] @ whole
    return replace(factors, item_mean_I_O=mean, item_cov_I_O_O=covariance)
