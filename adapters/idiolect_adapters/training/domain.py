"""Domain adapters: one adapter from many people, under differential privacy for one whole subject.

All comparisons of a subject form one contribution: their gradients are averaged over that subject's own comparisons,
and the average is clipped as one row. So a subject with 10,000 comparisons moves the adapter no more than
`clip_norm`, like anyone else. How many subjects there are is itself private: the first release is their noisy count,
and it sets the scale of the curvature and the prior. With a sample rate q below 1 every step reads a Poisson sample of
the subjects, and that scale is q times the released count: the size of a sample is private, and divides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.privacy.events import check_sample_rate
from idiolect_adapters.training.clip_noise import NoiseSource, add_gaussian_noise, clip_rows
from idiolect_adapters.training.descent import Recipe, noisy_descent
from idiolect_adapters.training.sampling import poisson_sample

FloatArray = NDArray[np.float64]

# One release for the count, which reads everybody; the rest for gradient steps: what the ledger is charged for.
COUNT_RELEASES = 1


def releases(recipe: Recipe) -> int:
    return recipe.steps + COUNT_RELEASES


@dataclass(frozen=True, slots=True)
class SubjectComparisons:
    """C comparisons of S subjects: `subject_C` in 0..S-1."""

    subjects: int
    subject_C: NDArray[np.int64]
    differences_C_K: FloatArray
    margins_C: FloatArray
    weights_C: FloatArray

    def where(self, mask_C: NDArray[np.bool_]) -> SubjectComparisons:
        """Some comparisons of all the subjects: who has none left is still one of them."""
        return replace(
            self,
            subject_C=self.subject_C[mask_C],
            differences_C_K=self.differences_C_K[mask_C],
            margins_C=self.margins_C[mask_C],
            weights_C=self.weights_C[mask_C],
        )

    def shares(self) -> FloatArray:
        """[C] each comparison's part of its subject's mean."""
        size_S = np.maximum(np.bincount(self.subject_C, weights=self.weights_C, minlength=self.subjects), 1e-9)
        share_C: FloatArray = self.weights_C / size_S[self.subject_C]
        return share_C


def train_domain(
    data: SubjectComparisons,
    recipe: Recipe,
    noise_multiplier: float,
    noise: NoiseSource,
    *,
    sample_rate: float = 1.0,
) -> FloatArray:
    """The adapter B [K]. `recipe.prior` and `recipe.curvature_K_K` are those of one subject.

    The ledger must hold a reservation for `releases(recipe)` releases at `noise_multiplier`, unit subject.
    """
    check_sample_rate(sample_rate)
    count = sample_rate * noisy_count(data.subjects, noise_multiplier, noise)
    return subject_descent(data, recipe, count, noise_multiplier, noise, sample_rate)


def subject_descent(
    data: SubjectComparisons,
    recipe: Recipe,
    count: float,
    noise_multiplier: float,
    noise: NoiseSource,
    sample_rate: float,
) -> FloatArray:
    """[K] after `recipe.steps` steps that each read a sample of the subjects. `count`, the expected size of a sample,
    must be public or released before.
    """
    scaled = replace(recipe, prior=recipe.prior * count, curvature_K_K=recipe.curvature_K_K * count)
    share_C = data.shares()

    def clipped_sums(adapter_1_K: FloatArray) -> FloatArray:
        rows_S_K = _mean_gradients(data, share_C, adapter_1_K[0])
        batch_S = poisson_sample(data.subjects, sample_rate)
        sums_1_K: FloatArray = clip_rows(rows_S_K[batch_S], recipe.clip_norm).sum(axis=0, keepdims=True)
        return sums_1_K

    shape = (1, data.differences_C_K.shape[1])
    adapter_1_K = noisy_descent(clipped_sums, shape, scaled, noise_multiplier, noise)
    adapter_K: FloatArray = adapter_1_K[0]
    return adapter_K


def mean_gradients(data: SubjectComparisons, adapter_K: FloatArray) -> FloatArray:
    """[S, K]: minus the gradient of each subject's mean loss, before any clipping."""
    return _mean_gradients(data, data.shares(), adapter_K)


def _mean_gradients(data: SubjectComparisons, share_C: FloatArray, adapter_K: FloatArray) -> FloatArray:
    pull_C = share_C * expit(-(data.margins_C + data.differences_C_K @ adapter_K))
    rows_S_K = np.zeros((data.subjects, len(adapter_K)))
    np.add.at(rows_S_K, data.subject_C, pull_C[:, None] * data.differences_C_K)
    return rows_S_K


def noisy_count(subjects: int, noise_multiplier: float, noise: NoiseSource) -> float:
    """Sensitivity 1: a subject more or less. At least 1, so that the scale stays usable."""
    count = np.array([float(subjects)])
    if noise_multiplier > 0:
        count = add_gaussian_noise(count, noise_multiplier=noise_multiplier, clip_norm=1.0, noise=noise)
    return max(1.0, float(count[0]))
