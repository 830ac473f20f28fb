"""Carrying adapters to another global model: the ridge regression that writes one basis in the other.

What an adapter B does to a text is z_old . B. On a new model the weights that do the most alike are

    B' = argmin  sum over anchors (z_new . B' - z_old . B)^2 + penalty |B'|^2  =  carry @ B

with one matrix for everybody, since the anchors are public texts that both models read. Only what tells candidates for
the same prompt apart is compared: a shift of all of them changes no ranking. Post-processing, so no privacy cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect_adapters.preference import PreferenceModel, join_features, project_features

FloatArray = NDArray[np.float64]

MAX_ANCHORS = 1024
PROBES = 8  # texts that tell whether two models have the same encoder: reading all of them twice takes minutes
PENALTY = 1e-3  # of the mean variance of a new direction


@dataclass(frozen=True, slots=True)
class Carry:
    """`adapter @ matrix_O_N` is the adapter in the new basis. `explained` is the share of what the old directions say
    about the anchors that the new ones can say."""

    matrix_O_N: FloatArray
    explained: float


def fit_carry(old_A_O: FloatArray, new_A_N: FloatArray, group_A: NDArray[np.int64]) -> Carry:
    """From the directions of A anchors under both models; `group_A` names the anchors' prompts."""
    old, new = _differences(old_A_O, group_A), _differences(new_A_N, group_A)
    gram = new.T @ new
    penalty = PENALTY * float(np.trace(gram)) / max(len(gram), 1) + 1e-12
    solved_N_O = np.linalg.solve(gram + penalty * np.eye(len(gram)), new.T @ old)
    matrix_O_N = np.asarray(solved_N_O.T, dtype=np.float64)
    left, whole = float(((new @ matrix_O_N.T - old) ** 2).sum()), float((old**2).sum())
    return Carry(matrix_O_N, 1.0 if whole <= 1e-12 else max(0.0, 1.0 - left / whole))


def _differences(values_A_P: FloatArray, group_A: NDArray[np.int64]) -> FloatArray:
    """Rows less the mean of their prompt; less that of all, where hardly any prompt has two candidates."""
    _, index_A, sizes_G = np.unique(group_A, return_inverse=True, return_counts=True)
    if int((sizes_G[index_A] > 1).sum()) < 4 * values_A_P.shape[1]:
        everything: FloatArray = values_A_P - values_A_P.mean(axis=0)
        return everything
    means_G_P = np.zeros((len(sizes_G), values_A_P.shape[1]))
    np.add.at(means_G_P, index_A, values_A_P)
    centred: FloatArray = values_A_P - (means_G_P / sizes_G[:, None])[index_A]
    return centred


def projected_by(
    model: PreferenceModel, pairs: Sequence[tuple[str, str]], pooled_N_H: NDArray[np.float32]
) -> FloatArray:
    """[N, 1 + k + m] of `pairs` under `model`; `pooled_N_H` are another model's encoder features of them, which are
    taken for its own where a few texts read the same."""
    probe = model.backbone.features(pairs[:PROBES])
    if not np.array_equal(probe, pooled_N_H[:PROBES]):
        pooled_N_H = model.backbone.features(pairs)
    return project_features(join_features(pooled_N_H, pairs, model.head.kernel), model.head)
