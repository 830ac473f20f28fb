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

ROUNDS = 30
REFINING_ROUNDS = 8
SETTLING_ROUNDS = 4  # before the prior variances are learned
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
    """Sums over votes, as two sparse matrices. Shapes: V votes, O = K + 1."""

    def __init__(self, votes: Votes) -> None:
        self._votes = votes
        ones, columns = np.ones(len(votes)), np.arange(len(votes))
        self._to_people = scipy.sparse.csr_matrix((ones, (votes.person_V, columns)), (votes.people, len(votes)))
        self._to_items = scipy.sparse.csr_matrix((ones, (votes.item_V, columns)), (votes.items, len(votes)))
        self._voters = np.unique(votes.person_V)

    def round(self, state: Factors, prior: ItemPrior) -> Factors:
        votes = self._votes
        item_V_O, item_cov_V = state.item_mean_I_O[votes.item_V], state.item_cov_I_O_O[votes.item_V]
        person_V_O, person_cov_V = state.person_mean_P_O[votes.person_V], state.person_cov_P_O_O[votes.person_V]
        bound_V = _bound(item_V_O, item_cov_V, person_V_O, person_cov_V) * votes.weight_V
        half_V = (votes.liked_V - 0.5) * votes.weight_V
        rank = state.rank
        # People: the item's taste and a one stand against the person's taste and bias; popularity is an offset.
        precision_O = np.append(np.ones(rank), 1.0 / state.bias_variance)
        people = _solve(
            self._to_people, _with_one(item_V_O), item_cov_V, item_V_O[:, -1], bound_V, half_V, precision_O, 0.0
        )
        person_mean, person_cov = people
        bias_variance = float((person_mean[:, -1] ** 2 + person_cov[:, -1, -1])[self._voters].mean())
        person_V_O, person_cov_V = person_mean[votes.person_V], person_cov[votes.person_V]
        precision_I_O = 1.0 / prior.variance_I_O
        item_mean, item_cov = _solve(
            self._to_items,
            _with_one(person_V_O),
            person_cov_V,
            person_V_O[:, -1],
            bound_V,
            half_V,
            precision_I_O,
            precision_I_O * prior.mean_I_O,
        )
        return Factors(item_mean, item_cov, person_mean, person_cov, max(bias_variance, 1e-3))


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


def _solve(
    to_rows: scipy.sparse.csr_matrix,
    design_V_O: FloatArray,
    design_cov_V: FloatArray,
    offset_V: FloatArray,
    bound_V: FloatArray,
    half_V: FloatArray,
    prior_precision: FloatArray,
    prior_linear: FloatArray | float,
) -> tuple[FloatArray, FloatArray]:
    """Gaussian posterior (mean, covariance) of each row, whose votes have uncertain `design` and `offset`.

    The design's last column is a constant one, so only the first K rows and columns of its covariance belong to it;
    its last column is the covariance with the offset.
    """
    rows, outputs = to_rows.shape[0], design_V_O.shape[1]
    outer_V = design_V_O[:, :, None] * design_V_O[:, None, :]
    outer_V[:, :-1, :-1] += design_cov_V[:, :-1, :-1]
    precision = (to_rows @ (bound_V[:, None] * outer_V.reshape(-1, outputs**2))).reshape(rows, outputs, outputs)
    precision[:, range(outputs), range(outputs)] += prior_precision
    crossed_V_O = design_V_O * offset_V[:, None]
    crossed_V_O[:, :-1] += design_cov_V[:, :-1, -1]
    linear = to_rows @ (half_V[:, None] * design_V_O - bound_V[:, None] * crossed_V_O) + prior_linear
    covariance = np.linalg.inv(precision)
    return np.einsum("rij,rj->ri", covariance, linear), covariance
