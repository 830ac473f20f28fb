"""Collaborative filtering: a basis learned from item ids, without any text. It can rank only what others have judged.

    logit P(person p likes item i) = mean_i + own_p + weights_p . basis_i

Fitted on ratings (or comparisons) of training people with Gaussian priors on all parts; then the basis is whitened, so
that training people are N(0, I) in it and a new person's weights have a unit prior. Given that one of two items was
liked and the other not, the odds of which are exactly the difference of the logits: Bradley-Terry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit

from idiolect.signals.data import Comparisons, Ratings
from idiolect_adapters.basis import whiten
from idiolect_adapters.evaluation.baselines_pairs import bilinear_loss, map_weights, minimised, pair_matrices

FloatArray = NDArray[np.float64]

RANK = 4
MIN_JUDGMENTS = 5  # whose weights count when the basis is whitened


@dataclass(frozen=True, slots=True)
class CollaborativeFilter:
    mean_I: FloatArray
    basis_I_K: FloatArray
    prior: float = 1.0

    def scores(self, adapt: Comparisons, people: int) -> FloatArray:
        weights_P_K = map_weights(self.basis_I_K, self.mean_I, adapt, people, prior=self.prior)
        scores_P_I: FloatArray = self.mean_I + weights_P_K @ self.basis_I_K.T
        return scores_P_I

    def with_prior(self, prior: float) -> CollaborativeFilter:
        return replace(self, prior=prior)


def fit_collaborative(
    ratings: Ratings, comparisons: Comparisons, items: int, people: int, *, penalty: float, rank: int = RANK
) -> CollaborativeFilter:
    """From ratings above and below zero, and comparisons where there are any. `penalty`: the precision of the basis
    (people's weights have precision 1).
    """
    rows = np.arange(len(ratings))
    rated = csr_array((np.ones(len(rows)), (rows, ratings.item_R)), shape=(len(rows), items))
    raters = csr_array((np.ones(len(rows)), (rows, ratings.person_R)), shape=(len(rows), people))
    sign_R = np.sign(ratings.value_R.astype(np.float64))
    pairs = pair_matrices(comparisons, items, people)

    def objective(parts: list[FloatArray]) -> tuple[float, list[FloatArray]]:
        mean_I, basis_I_K, own_P, weights_P_K = parts
        items_R_K, people_R_K = basis_I_K[ratings.item_R], weights_P_K[ratings.person_R]
        logit_R = mean_I[ratings.item_R] + own_P[ratings.person_R] + (items_R_K * people_R_K).sum(axis=1)
        pull_R = -sign_R * expit(-sign_R * logit_R)
        taste_I_K = np.column_stack([mean_I, basis_I_K])
        given_P_K = np.column_stack([np.ones(people), weights_P_K])
        pair_loss, slope_I_K, slope_P_K = bilinear_loss(taste_I_K, given_P_K, pairs)
        loss = float(np.abs(sign_R) @ np.logaddexp(0.0, -sign_R * logit_R)) + pair_loss
        loss += 0.5 * (penalty * (basis_I_K**2).sum() + (own_P**2).sum() + (weights_P_K**2).sum())
        loss += 0.05 * float((mean_I**2).sum())
        return loss, [
            rated.T @ pull_R + slope_I_K[:, 0] + 0.1 * mean_I,
            rated.T @ (pull_R[:, None] * people_R_K) + slope_I_K[:, 1:] + penalty * basis_I_K,
            raters.T @ pull_R + own_P,
            raters.T @ (pull_R[:, None] * items_R_K) + slope_P_K[:, 1:] + weights_P_K,
        ]

    rng = np.random.default_rng(0)
    start = [np.zeros(items), rng.normal(0, 0.3, (items, rank)), np.zeros(people), rng.normal(0, 0.3, (people, rank))]
    mean_I, basis_I_K, _, weights_P_K = minimised(objective, start, iterations=150)
    judged_P = np.bincount(ratings.person_R, minlength=people) + np.bincount(comparisons.person_C, minlength=people)
    active_P = judged_P >= min(MIN_JUDGMENTS, judged_P.max(initial=0))
    whitened_K_I, shared_K = whiten(basis_I_K.T, weights_P_K[active_P])
    return CollaborativeFilter(mean_I + shared_K @ basis_I_K.T, np.ascontiguousarray(whitened_K_I.T))
