"""The two visible steps of every private mechanism here: constrain the sensitivity, then add the noise.

Noise comes from the operating system's CSPRNG, stretched by AES-128 in counter mode, and is hardened against
floating-point attacks by summing four Gaussians, made from four uniforms that no other draw sees (Holohan & Braghin
2021, "Secure Random Sampling in Differential Privacy", section 4; Opacus' secure mode does the same). A key is used for
one chunk of a call and forgotten; there is no seed to store, set or steal.
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
DRAWS_PER_CHUNK = 4096  # what one takes in between (four Gaussians a draw, and copies) stays in a core's cache


class NoiseSource(Protocol):
    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        """Independent draws from N(0, 1), float64."""
        ...


class SecureNoise:
    """The only noise that a production process uses."""

    any_order = True

    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        count = math.prod(shape)
        draws_N = np.empty(count)
        for start in range(0, count, DRAWS_PER_CHUNK):
            chunk = draws_N[start : start + DRAWS_PER_CHUNK]
            chunk[:] = _summed_normals(len(chunk))
        return draws_N.reshape(shape)


def draws_in_any_order(noise: NoiseSource) -> bool:
    """Whether threads may draw from `noise` at once. A source says so itself (`any_order`); those of tests, which
    replay draws or share a seed, don't.
    """
    return bool(getattr(noise, "any_order", False))


def _summed_normals(count: int) -> FloatArray:
    # Of each pair that Box-Muller makes both go into the same draw, so no two draws share a uniform.
    gaussians_4_N = _box_muller(_uniforms(SUMMED_GAUSSIANS * count)).reshape(SUMMED_GAUSSIANS, count)
    # The sum of 4 N(0, 1) is N(0, 4): half of it is N(0, 1) again.
    summed_N: FloatArray = gaussians_4_N.sum(axis=0) / math.sqrt(SUMMED_GAUSSIANS)
    return summed_N


def _uniforms(count: int) -> FloatArray:
    """`count` uniforms in (0, 1], 53 bits each: never 0, whose logarithm Box-Muller needs."""
    encryptor = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()
    stream = encryptor.update(bytes(8 * count))
    # 53 bits fit into an int64 as well, which converts faster.
    uniforms = (np.frombuffer(stream, dtype=np.uint64) >> np.uint64(11)).view(np.int64).astype(np.float64)
    uniforms += 1.0
    uniforms *= 2.0**-53
    return uniforms


def _box_muller(uniforms: FloatArray) -> FloatArray:
    """As many Gaussians as uniforms: r cos(a) in the first half, r sin(a) with the same r and a in the second.

    With t = tan(a / 2): cos(a) = (1 - t^2) / (1 + t^2) and sin(a) = 2 t / (1 + t^2). One tangent costs far less than a
    sine and a cosine, and rounds as well: 1 + t^2 cancels nothing, and 1 - t^2 only where the cosine is near 0.
    """
    radius, turn = np.split(uniforms, 2)
    radius = np.sqrt(-2.0 * np.log(radius))
    tangent = np.tan(math.pi * turn)
    square = tangent * tangent
    radius /= 1.0 + square
    return np.concatenate([radius * (1.0 - square), radius * (2.0 * tangent)])


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


def directions_and_lengths(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Unit vectors (or zero) along the last axis, and the lengths that they were divided by; finite whatever `rows` is.

    For contributions of which only the length changes from step to step: see `clip_lengths`. Rows that are not finite
    count as zero, as in `clip_rows`.
    """
    finite = np.isfinite(rows).all(axis=-1, keepdims=True)
    if not finite.all():
        rows = np.where(finite, rows, 0.0)
    largest = np.abs(rows).max(axis=-1, initial=0.0)
    # Scaled by the largest entry first, as in `clip_rows`; twice, since 1 / a denormal number overflows.
    directions = rows / np.where(largest > 0, largest, 1.0)[..., None]
    lengths = np.sqrt(np.einsum("...k,...k->...", directions, directions))
    directions /= np.maximum(lengths, 1.0)[..., None]
    with np.errstate(over="ignore"):
        return directions, np.minimum(largest * lengths, np.finfo(np.float64).max)


def clip_lengths(lengths: FloatArray, clip_norm: float) -> FloatArray:
    """`clip_rows` for contributions that are these lengths times unit vectors. One that is not a number is zero, and so
    is a negative one.
    """
    clipped: FloatArray = np.fmin(np.fmax(lengths, 0.0), clip_norm)
    return clipped


def add_gaussian_noise(
    sums: FloatArray, *, noise_multiplier: float, clip_norm: float, noise: NoiseSource
) -> FloatArray:
    """`sums` plus N(0, (noise_multiplier * clip_norm)^2) on every entry, drawn even where nobody contributed."""
    return sums + noise_multiplier * clip_norm * noise.normal(sums.shape)
