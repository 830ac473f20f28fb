"""Who likes what, before any text is read: a Bayesian factor model of votes.

    P(person p likes item i) = sigmoid(g_i + p . z_i + b_p)

g_i is how popular the item is, z_i how opinions on it differ, p ~ N(0, I) a person's taste and b_p how readily they
agree. All are integrated over, not maximised: with a few dozen votes a person, a joint maximum takes noise for taste
(on Polis, pairs of held-out training people: .832 by maximising, .843 by integrating, in the same few seconds).
Variational inference with the Polya-Gamma bound (Jaakkola and Jordan 2000; Polson, Scott and Windle 2013), one
Gaussian per person and per item. Since people are N(0, I), a personal adapter written in z has a unit prior.

The variance of each column of z is learned with it, so that directions that nobody needs go to zero by themselves.
Cost of a round: votes x rank^2 additions and one small inverse per person and per item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from idiolect_adapters.training.votes import Votes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ROUNDS = 30
REFINING_ROUNDS = 8
SETTLING_ROUNDS = 4  # before the prior variances are learned
BLOCK = 8192  # votes at a time: what a block needs in between stays in a core's cache
START_TASTE, START_POPULARITY, START_BIAS = 1.0, 2.0, 1.0  # prior variances


@dataclass(frozen=True, slots=True)
class Factors:
    """Posterior of I items, the last column being popularity: means [I, K+1], covariances [I, K+1, K+1]; and of P
    people, the last column being readiness to agree."""

    item_mean_I_O: FloatArray
    item_cov_I_O_O: FloatArray
    person_mean_P_O: FloatArray
    person_cov_P_O_O: FloatArray
    bias_variance: float

    @property
    def rank(self) -> int:
        return int(self.item_mean_I_O.shape[1]) - 1

    def item_variances(self) -> FloatArray:
        """[I, K+1]"""
        variances: FloatArray = np.einsum("ioo->io", self.item_cov_I_O_O).copy()
        return variances


@dataclass(frozen=True, slots=True)
class ItemPrior:
    """Mean and variance [I, K+1] of every item before votes are read: what its text says."""

    mean_I_O: FloatArray
    variance_I_O: FloatArray


def fit_factors(votes: Votes, rank: int, seed: int, rounds: int = ROUNDS) -> Factors:
    """From nothing; directions are arbitrary up to a rotation of each set of items that share no people with others
    (alignment.py)."""
    rng = np.random.default_rng(seed)
    outputs = rank + 1
    state = Factors(
        item_mean_I_O=np.column_stack([0.3 * rng.normal(size=(votes.items, rank)), np.zeros(votes.items)]),
        item_cov_I_O_O=np.tile(0.2 * np.eye(outputs), (votes.items, 1, 1)),
        person_mean_P_O=np.column_stack([0.1 * rng.normal(size=(votes.people, rank)), np.zeros(votes.people)]),
        person_cov_P_O_O=np.tile(0.5 * np.eye(outputs), (votes.people, 1, 1)),
        bias_variance=START_BIAS,
    )
    variance_O = np.append(np.full(rank, START_TASTE), START_POPULARITY)
    seen = votes.seen_items()
    engine = _Engine(votes)
    zero = np.zeros((votes.items, outputs))
    for done in range(rounds):
        state = engine.round(state, ItemPrior(zero, np.broadcast_to(variance_O, zero.shape)))
        if done >= SETTLING_ROUNDS and len(seen):
            variance_O = (state.item_mean_I_O[seen] ** 2 + state.item_variances()[seen]).mean(axis=0)
    return state


def refine_factors(votes: Votes, start: Factors, prior: ItemPrior, rounds: int = REFINING_ROUNDS) -> Factors:
    """The posterior under a prior of each item's own, from where `start` stands."""
    engine, state = _Engine(votes), start
    for _ in range(rounds):
        state = engine.round(state, prior)
    return state


class _Engine:
    """Sums over votes, a block of them at a time: what a vote needs in between is O^2 numbers. O = K + 1."""

    def __init__(self, votes: Votes) -> None:
        self._votes = votes
        starts = range(0, len(votes), BLOCK)
        self._blocks = [_Block.of(votes, slice(start, start + BLOCK)) for start in starts]
        self._voters = np.unique(votes.person_V)

    def round(self, state: Factors, prior: ItemPrior) -> Factors:
        votes, rank = self._votes, state.rank
        people, items = _Sums(votes.people, rank + 1), _Sums(votes.items, rank + 1)
        bounds = []
        # People: the item's taste and a one stand against the person's taste and bias; popularity is an offset.
        for block in self._blocks:
            item_V_O, item_cov_V = state.item_mean_I_O[block.item_V], state.item_cov_I_O_O[block.item_V]
            person_V_O, person_cov_V = state.person_mean_P_O[block.person_V], state.person_cov_P_O_O[block.person_V]
            bounds.append(_bound(item_V_O, item_cov_V, person_V_O, person_cov_V) * block.weight_V)
            people.add(block.to_people, item_V_O, item_cov_V, bounds[-1], block.half_V)
        precision_O = np.append(np.ones(rank), 1.0 / state.bias_variance)
        person_mean, person_cov = people.solved(precision_O, 0.0)
        bias_variance = float((person_mean[:, -1] ** 2 + person_cov[:, -1, -1])[self._voters].mean())
        for block, bound_V in zip(self._blocks, bounds, strict=True):
            person_V_O, person_cov_V = person_mean[block.person_V], person_cov[block.person_V]
            items.add(block.to_items, person_V_O, person_cov_V, bound_V, block.half_V)
        precision_I_O = 1.0 / prior.variance_I_O
        item_mean, item_cov = items.solved(precision_I_O, precision_I_O * prior.mean_I_O)
        return Factors(item_mean, item_cov, person_mean, person_cov, max(bias_variance, 1e-3))


@dataclass(frozen=True, slots=True)
class _Scatter:
    """Adds what belongs to V votes up for the U rows that they are of."""

    row_U: IntArray
    sum_U_V: scipy.sparse.csr_matrix

    @staticmethod
    def of(row_V: IntArray) -> _Scatter:
        row_U, place_V = np.unique(row_V, return_inverse=True)
        return _Scatter(row_U, scipy.sparse.csr_matrix((np.ones(len(row_V)), (place_V, np.arange(len(row_V))))))


@dataclass(frozen=True, slots=True)
class _Block:
    person_V: IntArray
    item_V: IntArray
    weight_V: FloatArray
    half_V: FloatArray
    to_people: _Scatter
    to_items: _Scatter

    @staticmethod
    def of(votes: Votes, some: slice) -> _Block:
        person_V, item_V, weight_V = votes.person_V[some], votes.item_V[some], votes.weight_V[some]
        half_V = (votes.liked_V[some] - 0.5) * weight_V
        return _Block(person_V, item_V, weight_V, half_V, _Scatter.of(person_V), _Scatter.of(item_V))


class _Sums:
    """What the votes of each row say of it: the precision and the linear term of a Gaussian."""

    def __init__(self, rows: int, outputs: int) -> None:
        self._precision = np.zeros((rows, outputs * outputs))
        self._linear = np.zeros((rows, outputs))

    def add(
        self,
        scatter: _Scatter,
        other_V_O: FloatArray,
        other_cov_V: FloatArray,
        bound_V: FloatArray,
        half_V: FloatArray,
    ) -> None:
        """`other`: the posterior of what each vote stands against. Its last column is an offset; the design's last is a
        constant one, so only the first K rows and columns of the covariance belong to it, and the last column is the
        covariance with the offset."""
        design_V_O, outputs = _with_one(other_V_O), other_V_O.shape[1]
        outer_V = design_V_O[:, :, None] * design_V_O[:, None, :]
        outer_V[:, :-1, :-1] += other_cov_V[:, :-1, :-1]
        self._precision[scatter.row_U] += scatter.sum_U_V @ (bound_V[:, None] * outer_V.reshape(-1, outputs**2))
        crossed_V_O = design_V_O * other_V_O[:, -1:]
        crossed_V_O[:, :-1] += other_cov_V[:, :-1, -1]
        self._linear[scatter.row_U] += scatter.sum_U_V @ (half_V[:, None] * design_V_O - bound_V[:, None] * crossed_V_O)

    def solved(self, prior_precision: FloatArray, prior_linear: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """(mean, covariance) of each row."""
        rows, outputs = self._linear.shape
        precision = self._precision.reshape(rows, outputs, outputs)
        precision[:, range(outputs), range(outputs)] += prior_precision
        covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        return np.einsum("rij,rj->ri", covariance, self._linear + prior_linear), covariance


def _with_one(mean_V_O: FloatArray) -> FloatArray:
    return np.column_stack([mean_V_O[:, :-1], np.ones(len(mean_V_O))])


def _bound(
    item_V_O: FloatArray, item_cov_V: FloatArray, person_V_O: FloatArray, person_cov_V: FloatArray
) -> FloatArray:
    """[V] tanh(x/2) / 2x at x = sqrt(E[score^2]): the curvature of the Polya-Gamma bound, tightest there."""
    against_V_O, for_V_O = _with_one(item_V_O), _with_one(person_V_O)
    mean_V = (against_V_O * person_V_O).sum(axis=1) + item_V_O[:, -1]
    variance_V = (
        (item_cov_V[:, :-1, :-1] * person_cov_V[:, :-1, :-1]).sum(axis=(1, 2))
        + np.einsum("vi,vij,vj->v", against_V_O, person_cov_V, against_V_O)
        + np.einsum("vi,vij,vj->v", for_V_O, item_cov_V, for_V_O)
    )
    root_V = np.sqrt(np.maximum(mean_V**2 + variance_V, 1e-12))
    curvature_V: FloatArray = np.tanh(root_V / 2) / (2 * root_V)
    return curvature_V
