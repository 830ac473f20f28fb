"""The two visible steps of every private mechanism here: constrain the sensitivity, then add the noise.

Noise comes from the operating system's CSPRNG, stretched by AES-128 in counter mode, and is hardened against
floating-point attacks by summing four Gaussians (Holohan & Braghin 2021, "Secure Random Sampling in Differential
Privacy", section 4; Opacus' secure mode does the same). A key is used for one call and forgotten; there is no seed
to store, set or steal.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from idiolect.errors import InvalidInputError
from idiolect.privacy.events import is_positive

FloatArray = NDArray[np.float64]

SUMMED_GAUSSIANS = 4


class NoiseSource(Protocol):
    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        """Independent draws from N(0, 1), float64."""
        ...


class SecureNoise:
    """The only noise that a production process uses."""

    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        count = math.prod(shape)
        draws_4_N = _box_muller(_uniforms(SUMMED_GAUSSIANS * (count + count % 2)))[: SUMMED_GAUSSIANS * count]
        # The sum of 4 N(0, 1) is N(0, 4): half of it is N(0, 1) again.
        summed_N: FloatArray = draws_4_N.reshape(SUMMED_GAUSSIANS, count).sum(axis=0) / math.sqrt(SUMMED_GAUSSIANS)
        return summed_N.reshape(shape)


def _uniforms(count: int) -> FloatArray:
    """`count` uniforms in (0, 1], 53 bits each: never 0, whose logarithm Box-Muller needs."""
    encryptor = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()
    stream = encryptor.update(bytes(8 * count))
    return ((np.frombuffer(stream, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53


def _box_muller(uniforms: FloatArray) -> FloatArray:
    radius, angle = np.split(uniforms, 2)
    radius = np.sqrt(-2.0 * np.log(radius))
    angle = 2.0 * math.pi * angle
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def check_clip_norm(clip_norm: float) -> float:
    if not is_positive(clip_norm):
        raise InvalidInputError(f"clip norm {clip_norm!r} is not usable.", mend="Use a finite number above 0.")
    return float(clip_norm)


def check_noise_multiplier(noise_multiplier: float) -> float:
    """0 is training without privacy, for benchmarks only. NaN or less would silently be the same."""
    if noise_multiplier != 0 and not is_positive(noise_multiplier):
        raise InvalidInputError(f"noise multiplier {noise_multiplier!r} is not usable.", mend="Use a number from 0.")
    return float(noise_multiplier)


def clip_rows(contributions: FloatArray, clip_norm: float) -> FloatArray:
    """Scale every row (last axis) to an L2 norm of at most `clip_norm`; shorter rows stay as they are.

    A row is the whole contribution of one unit, so adding or removing a unit moves a sum of rows by at most
    `clip_norm`. A row that is not finite would escape any bound, so it counts as zero.
    """
    finite = np.isfinite(contributions).all(axis=-1, keepdims=True)
    contributions = np.where(finite, contributions, 0.0)
    # Scaled by the largest entry first: the square of a huge entry would overflow, that of a tiny one vanish.
    largest = np.abs(contributions).max(axis=-1, keepdims=True, initial=0.0)
    scaled = contributions / np.where(largest > 0, largest, 1.0)
    bound = clip_norm / np.maximum(np.sqrt((scaled**2).sum(axis=-1, keepdims=True)), 1.0)
    clipped: FloatArray = np.where(largest > bound, scaled * bound, contributions)
    return clipped


def add_gaussian_noise(
    sums: FloatArray, *, noise_multiplier: float, clip_norm: float, noise: NoiseSource
) -> FloatArray:
    """`sums` plus N(0, (noise_multiplier * clip_norm)^2) on every entry, drawn even where nobody contributed."""
    return sums + noise_multiplier * clip_norm * noise.normal(sums.shape)
