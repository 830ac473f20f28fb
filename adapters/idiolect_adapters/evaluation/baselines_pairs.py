"""What the baselines share: incidence matrices of pairs, the Bradley-Terry loss of bilinear scores, and per-person MAP.

Every baseline answers with scores [P, I] of each person for each item, so all are judged by the same few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from idiolect.signals.data import Comparisons

FloatArray = NDArray[np.float64]

MAX_ITERATIONS = 300
NEWTON_STEPS = 12
LONGEST_STEP = 3.0


class Baseline(Protocol):
    """Fitted on training people."""

    def scores(self, adapt: Comparisons, people: int) -> FloatArray:
        """[people, I]: what each of `people` new people, who said `adapt`, thinks of every item."""
        ...


@dataclass(frozen=True, slots=True)
class PairMatrices:
    """C pairs as sparse matrices: `differences` [C, I] has +1 at the chosen item, -1 at the rejected one; `owners`
    [C, P] has 1 at the person.
    """

    differences: csr_array
    owners: csr_array
    person_C: NDArray[np.int32]
    weight_C: FloatArray


def pair_matrices(pairs: Comparisons, items: int, people: int) -> PairMatrices:
    count = len(pairs)
    rows_2C = np.tile(np.arange(count), 2)
    signs_2C = np.repeat([1.0, -1.0], count)
    columns_2C = np.concatenate([pairs.chosen_C, pairs.rejected_C])
    differences = csr_array((signs_2C, (rows_2C, columns_2C)), shape=(count, items))
    owners = csr_array((np.ones(count), (np.arange(count), pairs.person_C)), shape=(count, people))
    return PairMatrices(differences, owners, pairs.person_C, pairs.weight_C.astype(np.float64))


def standardised(features_I_F: NDArray[np.floating]) -> FloatArray:
    """Centred, unit variance, and scaled so that a row's squared length is about 1. Constant columns become zero."""
    centred = features_I_F.astype(np.float64) - features_I_F.mean(axis=0)
    spread_F = centred.std(axis=0)
    scale_F = np.divide(1.0, spread_F, out=np.zeros_like(spread_F), where=spread_F > 1e-9)
    result: FloatArray = centred * scale_F / np.sqrt(max(centred.shape[1], 1))
    return result


def bilinear_loss(
    taste_I_K: FloatArray, weights_P_K: FloatArray, pairs: PairMatrices
) -> tuple[float, FloatArray, FloatArray]:
    """The summed Bradley-Terry loss of the scores weights @ taste.T, and its gradients in taste and weights."""
    difference_C_K = pairs.differences @ taste_I_K
    weights_C_K = weights_P_K[pairs.person_C]
    margin_C = (difference_C_K * weights_C_K).sum(axis=1)
    loss = float((pairs.weight_C * np.logaddexp(0.0, -margin_C)).sum())
    pull_C_1 = -(pairs.weight_C * expit(-margin_C))[:, None]
    return loss, pairs.differences.T @ (pull_C_1 * weights_C_K), pairs.owners.T @ (pull_C_1 * difference_C_K)


def minimised(
    objective: Callable[[list[FloatArray]], tuple[float, list[FloatArray]]],
    start: Sequence[FloatArray],
    *,
    iterations: int = MAX_ITERATIONS,
) -> list[FloatArray]:
    """L-BFGS over several arrays at once; `objective` gives the loss and its gradient in each."""
    shapes = [array.shape for array in start]
    borders = np.cumsum([array.size for array in start])[:-1]

    def unpacked(flat: FloatArray) -> list[FloatArray]:
        return [part.reshape(shape) for part, shape in zip(np.split(flat, borders), shapes, strict=True)]

    def flat_objective(flat: FloatArray) -> tuple[float, FloatArray]:
        loss, gradients = objective(unpacked(flat))
        return loss, np.concatenate([gradient.ravel() for gradient in gradients])

    flat_start = np.concatenate([array.ravel() for array in start])
    found = minimize(flat_objective, flat_start, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    return unpacked(found.x)


def map_weights(
    taste_I_K: FloatArray, score_I: FloatArray, pairs: Comparisons, people: int, *, prior: float
) -> FloatArray:
    """[people, K]: each person's MAP weights on top of `score_I` under N(0, 1/prior), by Newton's method, all people at
    once. Who said nothing has zeros.
    """
    matrices = pair_matrices(pairs, len(taste_I_K), people)
    difference_C_K, offset_C = matrices.differences @ taste_I_K, matrices.differences @ score_I
    rank = taste_I_K.shape[1]
    squares_C_KK = (difference_C_K[:, :, None] * difference_C_K[:, None, :]).reshape(len(pairs), rank * rank)
    weights_P_K = np.zeros((people, rank))
    for _ in range(NEWTON_STEPS):
        margin_C = offset_C + (difference_C_K * weights_P_K[pairs.person_C]).sum(axis=1)
        wrong_C = expit(-margin_C)
        slope_P_K = matrices.owners.T @ ((matrices.weight_C * wrong_C)[:, None] * difference_C_K) - prior * weights_P_K
        curve_C = matrices.weight_C * wrong_C * (1.0 - wrong_C)
        curve_P_K_K = (matrices.owners.T @ (curve_C[:, None] * squares_C_KK)).reshape(people, rank, rank)
        step_P_K = np.linalg.solve(curve_P_K_K + prior * np.eye(rank), slope_P_K[..., None])[..., 0]
        # Where all answers agree Newton's first step overshoots; a shorter one can't.
        length_P_1 = np.linalg.norm(step_P_K, axis=1, keepdims=True)
        weights_P_K = weights_P_K + step_P_K * np.minimum(1.0, LONGEST_STEP / np.maximum(length_P_1, 1e-12))
    return weights_P_K
