"""Baselines whose people are mixtures of a few prototypes.

LoRe (Bose et al. 2025, "Personalizing LLMs via low-rank reward modeling"): B linear rewards are learned from everybody;
a person is a point of the simplex over them. PAL (Chen et al. 2024, "Pluralistic alignment framework", model A): items
and prototypes lie in one learned space; a person's ideal point is a convex combination of the prototypes, and nearer
is better. Both adapt to a new person through the simplex weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from idiolect.signals.data import Comparisons
from idiolect_adapters.evaluation.baselines_pairs import (
    PairMatrices,
    bilinear_loss,
    minimised,
    pair_matrices,
    standardised,
)

FloatArray = NDArray[np.float64]

LOGIT_PRIOR = 0.05  # keeps logits finite where a person's answers all agree
EMBEDDED = 8  # dimensions of PAL's space


@dataclass(frozen=True, slots=True)
class Mixture:
    """The score of a person for item i is softmax(logits) . rewards[i]. LoRe and, once fitted, PAL: the squared
    distance to a convex combination is linear in the weights but for one term that is the same for all items.
    """

    rewards_I_B: FloatArray

    def scores(self, adapt: Comparisons, people: int) -> FloatArray:
        pairs = pair_matrices(adapt, len(self.rewards_I_B), people)

        def objective(parts: list[FloatArray]) -> tuple[float, list[FloatArray]]:
            loss, slope_P_B, _ = _simplex_loss(self.rewards_I_B, parts[0], pairs)
            return loss, [slope_P_B]

        (logits_P_B,) = minimised(objective, [np.zeros((people, self.rewards_I_B.shape[1]))])
        scores_P_I: FloatArray = softmax(logits_P_B, axis=1) @ self.rewards_I_B.T
        return scores_P_I


def fit_lore(
    features_I_F: NDArray[np.floating], train: Comparisons, people: int, *, rank: int, strength: float, seed: int = 0
) -> Mixture:
    """`strength` is the ridge penalty of the rewards per training pair."""
    known_I_F = standardised(features_I_F)
    pairs = pair_matrices(train, len(known_I_F), people)
    penalty = strength * max(len(train), 1)

    def objective(parts: list[FloatArray]) -> tuple[float, list[FloatArray]]:
        rewards_F_B, logits_P_B = parts
        loss, slope_P_B, slope_I_B = _simplex_loss(known_I_F @ rewards_F_B, logits_P_B, pairs)
        loss += 0.5 * penalty * float((rewards_F_B**2).sum())
        return loss, [known_I_F.T @ slope_I_B + penalty * rewards_F_B, slope_P_B]

    rng = np.random.default_rng(seed)
    start = [rng.normal(0, 1, (known_I_F.shape[1], rank)), rng.normal(0, 0.1, (people, rank))]
    rewards_F_B, _ = minimised(objective, start)
    return Mixture(known_I_F @ rewards_F_B)


def fit_pal(
    features_I_F: NDArray[np.floating], train: Comparisons, people: int, *, rank: int, strength: float, seed: int = 0
) -> Mixture:
    """`strength` is the ridge penalty of the item map per training pair."""
    known_I_F = standardised(features_I_F)
    pairs = pair_matrices(train, len(known_I_F), people)
    penalty = strength * max(len(train), 1)

    def objective(parts: list[FloatArray]) -> tuple[float, list[FloatArray]]:
        map_F_D, prototypes_B_D, logits_P_B = parts
        place_I_D = known_I_F @ map_F_D
        loss, slope_P_B, slope_I_B = _simplex_loss(_closeness(place_I_D, prototypes_B_D), logits_P_B, pairs)
        slope_I_D = 2.0 * (slope_I_B @ prototypes_B_D) - 2.0 * slope_I_B.sum(axis=1)[:, None] * place_I_D
        loss += 0.5 * penalty * float((map_F_D**2).sum()) + 0.5 * float((prototypes_B_D**2).sum())
        slopes = [known_I_F.T @ slope_I_D + penalty * map_F_D, 2.0 * slope_I_B.T @ place_I_D + prototypes_B_D]
        return loss, [*slopes, slope_P_B]

    rng = np.random.default_rng(seed)
    start = [
        rng.normal(0, 1, (known_I_F.shape[1], EMBEDDED)) / np.sqrt(EMBEDDED),
        rng.normal(0, 1, (rank, EMBEDDED)),
        rng.normal(0, 0.1, (people, rank)),
    ]
    map_F_D, prototypes_B_D, _ = minimised(objective, start)
    return Mixture(_closeness(known_I_F @ map_F_D, prototypes_B_D))


def _closeness(place_I_D: FloatArray, prototypes_B_D: FloatArray) -> FloatArray:
    """[I, B]: 2 place . prototype - |place|^2, which is minus the squared distance up to a constant of the person."""
    closeness_I_B: FloatArray = 2.0 * place_I_D @ prototypes_B_D.T - (place_I_D**2).sum(axis=1)[:, None]
    return closeness_I_B


def _simplex_loss(
    rewards_I_B: FloatArray, logits_P_B: FloatArray, pairs: PairMatrices
) -> tuple[float, FloatArray, FloatArray]:
    """The loss with the logits' prior, and its gradients in logits and rewards."""
    share_P_B = softmax(logits_P_B, axis=1)
    loss, slope_I_B, slope_P_B = bilinear_loss(rewards_I_B, share_P_B, pairs)
    through_P_B = share_P_B * (slope_P_B - (share_P_B * slope_P_B).sum(axis=1, keepdims=True))
    loss += 0.5 * LOGIT_PRIOR * float((logits_P_B**2).sum())
    return loss, through_P_B + LOGIT_PRIOR * logits_P_B, slope_I_B
