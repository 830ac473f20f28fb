"""The one private optimiser: full-batch clipped gradient descent with a fixed, public preconditioner.

For a sum of per-unit losses and a Gaussian prior, each step is

    B <- B + (prior I + curvature)^-1 (noisy sum of clipped negative gradients - prior B)

With the curvature of typical data it is close to Newton's method, so few steps (and little composed noise) suffice. The
caller supplies sums whose sensitivity is `clip_norm`; this module adds the noise, once per step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import InvalidInputError
from idiolect_adapters.training.clip_noise import (
    NoiseSource,
    add_gaussian_noise,
    check_clip_norm,
    check_noise_multiplier,
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Public constants, chosen on public people when the global model is trained.

    `clip_norm` bounds one unit's gradient; `prior` pulls towards no adapter at all; `curvature_K_K` stands in for the
    Hessian of the loss of a typical data set.
    """

    clip_norm: float
    prior: float
    steps: int
    curvature_K_K: FloatArray

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)
        if not (np.isfinite(self.prior) and self.prior > 0 and np.isfinite(self.curvature_K_K).all()):
            raise InvalidInputError("the recipe's prior and curvature must be finite, the prior above 0.")
        if not 1 <= self.steps <= 20:
            raise InvalidInputError(f"{self.steps} steps are not allowed.", mend="Use 1 to 20.")


def noisy_descent(
    clipped_sums: Callable[[FloatArray], FloatArray],
    shape: tuple[int, int],
    recipe: Recipe,
    noise_multiplier: float,
    noise: NoiseSource,
) -> FloatArray:
    """Adapters [P, K] after `recipe.steps` steps from zero; `clipped_sums` maps adapters to sums of the same shape.

    `noise_multiplier` 0 is training without privacy, for benchmarks only.
    """
    check_noise_multiplier(noise_multiplier)
    step_K_K = np.linalg.inv(recipe.prior * np.eye(shape[1]) + recipe.curvature_K_K)
    adapters_P_K = np.zeros(shape)
    for _ in range(recipe.steps):
        sums_P_K = clipped_sums(adapters_P_K)
        if noise_multiplier > 0:
            sums_P_K = add_gaussian_noise(
                sums_P_K, noise_multiplier=noise_multiplier, clip_norm=recipe.clip_norm, noise=noise
            )
        adapters_P_K = adapters_P_K + (sums_P_K - recipe.prior * adapters_P_K) @ step_K_K
    return adapters_P_K
