"""The global model from private people: reward head and basis, under differential privacy for one whole subject.

The encoder stays frozen, and everything is written in D public directions of its features (public_space.py), which no
private text chose. Then come `releases(recipe)` Gaussian releases of one noise multiplier. Each is a sum over
subjects, to which one subject adds a vector of at most `clip_norm`, so that is its sensitivity:

1. *How many* subjects there are (sensitivity 1). Divides everything that follows; it is public then.
2. *The reward*, `recipe.steps` steps of the descent that domain adapters take (domain.py).
3. *The basis*, one release. Each subject's comparisons are divided into two halves that share no text. The mean
   gradient of each half is clipped to C, g1 and g2. Their outer product, made symmetric and divided by C, is a
   matrix of Frobenius norm |g1| |g2| / C <= C; and its entries, those off the diagonal counted once and times sqrt(2),
   are a vector of just that norm. The sum over subjects gets independent Gaussian noise (Dwork et al. 2014,
   "Analyze Gauss", for second moments).

Why halves: around the reward, a half's gradient is H b + chance, with b the subject's taste, H the curvature and the
chance of the halves independent. So the mean of g1 g2' is H cov(b) H, and what was shown to whom leaves no trace in it
(as in Kong et al. 2020, "Meta-learning for mixed linear regression"). The directions in which people differ most are
its leading eigenvectors. No adapter exists while they are learned: A and B are never trained together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idiolect.privacy.events import check_sample_rate
from idiolect_adapters.training.clip_noise import NoiseSource, add_gaussian_noise, check_noise_multiplier, clip_rows
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import (
    COUNT_RELEASES,
    SubjectComparisons,
    mean_gradients,
    noisy_count,
    subject_descent,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOMENT_RELEASES = 1
UNSAMPLED_RELEASES = COUNT_RELEASES + MOMENT_RELEASES  # both read everybody, whatever the sample rate
MIN_GROUPS = 4
RIDGE = 0.05  # of the mean curvature: directions in which public texts hardly differ say little about taste


@dataclass(frozen=True, slots=True)
class Released:
    """What the mechanism lets out; all else is made from it. `moment_D_D`: the noisy sum over subjects, times C."""

    count: float
    reward_D: FloatArray
    moment_D_D: FloatArray


@dataclass(frozen=True, slots=True)
class PrivateGlobal:
    """Reward and basis in the public directions, rounded as they are stored."""

    reward_D: NDArray[np.float32]  # to be added to the reward that the margins came from
    basis_K_D: NDArray[np.float32]  # whitened: tastes are about N(0, I) in it


def releases(recipe: Recipe) -> int:
    return recipe.steps + UNSAMPLED_RELEASES


def release_private_global(
    data: SubjectComparisons,
    half_C: IntArray,
    recipe: Recipe,
    noise_multiplier: float,
    noise: NoiseSource,
    *,
    sample_rate: float = 1.0,
) -> Released:
    """The mechanism. `half_C` is 0 or 1, or -1 for a comparison that the basis does without; see `halves`. `recipe` is
    in the scale of one subject, and public.

    The ledger must hold a reservation for `releases(recipe)` releases at `noise_multiplier`, unit subject, of which
    UNSAMPLED_RELEASES read everybody. `noise_multiplier` 0 is training without privacy, for benchmarks only.
    """
    check_noise_multiplier(noise_multiplier), check_sample_rate(sample_rate)
    count = noisy_count(data.subjects, noise_multiplier, noise)
    reward_D = subject_descent(data, recipe, sample_rate * count, noise_multiplier, noise, sample_rate)
    moment_V = clipped_moment(data, half_C, reward_D, recipe.clip_norm)
    if noise_multiplier > 0:
        moment_V = add_gaussian_noise(
            moment_V, noise_multiplier=noise_multiplier, clip_norm=recipe.clip_norm, noise=noise
        )
    return Released(count, reward_D, recipe.clip_norm * to_matrix(moment_V, len(reward_D)))


def private_global(
    released: Released, recipe: Recipe, expected_D_D: FloatArray, rank: int, noise_multiplier: float
) -> PrivateGlobal:
    """Post-processing. `expected_D_D` is the covariance of tastes where the noise hides them, from public data."""
    deviation = noise_multiplier * recipe.clip_norm**2 / (np.sqrt(2.0) * released.count)
    moment_D_D = without_noise(released.moment_D_D / released.count, deviation)
    taste_D_D = taste_covariance(moment_D_D, recipe.curvature_K_K)
    basis_K_D = leading_directions(_filled_up(taste_D_D, expected_D_D), rank)
    return PrivateGlobal(released.reward_D.astype(np.float32), basis_K_D.astype(np.float32))


def halves(
    subject_C: IntArray,
    chosen_C: NDArray[np.integer[Any]],
    rejected_C: NDArray[np.integer[Any]],
    group_I: IntArray,
    rng: np.random.Generator,
) -> IntArray:
    """[C] 0 or 1 so that no text is in both halves of a subject; -1 for a comparison of two that are not in one.

    Whoever spoke about MIN_GROUPS prompts or more is divided by prompt, others by text. What half a text is in is a
    coin toss that is the same for everybody, so one subject changes nothing in another's halves.
    """
    of_group_G = rng.integers(0, 2, int(group_I.max(initial=0)) + 1)
    of_item_I = rng.integers(0, 2, len(group_I))
    by_text_C = np.where(of_item_I[chosen_C] == of_item_I[rejected_C], of_item_I[chosen_C], -1)
    spoken = np.unique(np.stack([subject_C, group_I[chosen_C]]), axis=1)[0]
    groups_S = np.bincount(spoken, minlength=int(subject_C.max(initial=-1)) + 1)
    half_C: IntArray = np.where(groups_S[subject_C] >= MIN_GROUPS, of_group_G[group_I[chosen_C]], by_text_C)
    return half_C


def clipped_moment(data: SubjectComparisons, half_C: IntArray, reward_D: FloatArray, clip_norm: float) -> FloatArray:
    """[D (D + 1) / 2]: the sum over subjects of their contributions to the basis, none longer than `clip_norm`."""
    first_S_D, second_S_D = (
        clip_rows(mean_gradients(data.where(half_C == half), reward_D), clip_norm) for half in (0, 1)
    )
    crossed_D_D = first_S_D.T @ second_S_D / clip_norm
    return to_vector((crossed_D_D + crossed_D_D.T) / 2.0)


def to_vector(matrix_D_D: FloatArray) -> FloatArray:
    """[D (D + 1) / 2] of a symmetric matrix, of the same norm."""
    row, column = np.triu_indices(len(matrix_D_D))
    vector_V: FloatArray = matrix_D_D[row, column] * np.where(row == column, 1.0, np.sqrt(2.0))
    return vector_V


def to_matrix(vector_V: FloatArray, size: int) -> FloatArray:
    row, column = np.triu_indices(size)
    matrix_D_D = np.zeros((size, size))
    matrix_D_D[row, column] = vector_V / np.where(row == column, 1.0, np.sqrt(2.0))
    whole_D_D: FloatArray = matrix_D_D + np.triu(matrix_D_D, 1).T
    return whole_D_D


def without_noise(moment_D_D: FloatArray, deviation: float) -> FloatArray:
    """What is left of a symmetric matrix once noise of `deviation` (of an entry off the diagonal) is taken off.

    Noise alone has eigenvalues up to 2 deviation sqrt(D), and lifts one of size t above that to
    t + deviation^2 D / t (Benaych-Georges and Nadakuditi 2011); that is undone, and what lies below is zero.
    """
    value_D, axes_D_D = np.linalg.eigh(moment_D_D)
    edge = 2.0 * deviation * np.sqrt(len(value_D))
    above = value_D > edge
    kept_D = np.where(above, (value_D + np.sqrt(np.maximum(value_D**2 - edge**2, 0.0))) / 2.0, 0.0)
    kept_D_D: FloatArray = (axes_D_D * kept_D) @ axes_D_D.T
    return kept_D_D


def taste_covariance(moment_D_D: FloatArray, curvature_D_D: FloatArray) -> FloatArray:
    """H^-1 M H^-1: from gradients to tastes."""
    size = len(curvature_D_D)
    ridge = RIDGE * float(np.trace(curvature_D_D)) / size
    inverse = np.linalg.inv(curvature_D_D + ridge * np.eye(size))
    covariance_D_D: FloatArray = inverse @ moment_D_D @ inverse
    return (covariance_D_D + covariance_D_D.T) / 2.0


def _filled_up(taste_D_D: FloatArray, expected_D_D: FloatArray) -> FloatArray:
    """With as much of what was expected as the tastes that stand out of the noise leave room for."""
    missing = 1.0 - float(np.trace(taste_D_D)) / float(np.trace(expected_D_D))
    filled_D_D: FloatArray = taste_D_D + max(0.0, missing) * expected_D_D
    return filled_D_D


def leading_directions(covariance_D_D: FloatArray, rank: int) -> FloatArray:
    """[rank, D], the most important first, each as long as tastes are spread along it."""
    value_D, axes_D_D = np.linalg.eigh(covariance_D_D)
    order = np.argsort(-value_D)[:rank]
    basis_K_D: FloatArray = np.sqrt(np.maximum(value_D[order], 0.0))[:, None] * axes_D_D[:, order].T
    return basis_K_D
