"""From a text to what people make of it, by its likeness to texts that people have judged.

    f_o(x) = sum over landmarks l of  weight_lo * k_o(x, l)
    k_o    = (a1 + a2 P) E + (a3 + a4 P) T + a5 S + a6 P

E is a radial kernel on the encoder's features, T the likeness of hashed n-grams (lexical.py), S a linear kernel on
counted features (surface.py) and P 1 where both answer the very same prompt. Output o is the reward or one direction
of taste; each has amplitudes and a width of its own (training/kernel_fit.py).

Items that public people voted on also have a memory: what their votes say beyond their text. It is found by a hash of
prompt and text, so it applies to the very same text alone; any other text is scored by its content.

Cost per text: M x (H + n-grams) multiply-adds for M <= 2,048 landmarks, about 1 ms beside the encoder's 5 to 50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from idiolect.ids import sha256_hex
from idiolect_adapters.lexical import BUCKETS, count_matrix, unit_rows
from idiolect_adapters.surface import surface_features

FloatArray = NDArray[np.float64]
AMPLITUDES = 6


@dataclass(frozen=True, slots=True)
class Views:
    """How N texts look to the kernel. Rows of `meaning` and `letters` have length 1 (or 0)."""

    meaning_N_H: FloatArray
    letters_N_V: scipy.sparse.csr_matrix
    surface_N_S: FloatArray
    prompt_N: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Lens:
    """The public constants that turn texts into views. float32."""

    mean_H: NDArray[np.float32]
    frequency_V: NDArray[np.float32]
    surface_mean_S: NDArray[np.float32]
    surface_scale_S: NDArray[np.float32]

    def views(self, pooled_N_H: NDArray[np.float32], pairs: Sequence[tuple[str, str]]) -> Views:
        """Views of (prompt, text) pairs whose encoder features are `pooled_N_H`. A row depends on itself alone."""
        centred = pooled_N_H.astype(np.float64) - self.mean_H
        lengths = np.sqrt((centred * centred).sum(axis=1, keepdims=True))
        texts = [text for _, text in pairs]
        counted = (surface_features(texts) - self.surface_mean_S.astype(np.float64)) / self.surface_scale_S
        return Views(
            centred / np.maximum(lengths, 1e-9),
            unit_rows(count_matrix(texts), self.frequency_V),
            np.clip(counted, -3.0, 3.0) / np.sqrt(max(counted.shape[1], 1)),
            np.array([short_hash(prompt) for prompt, _ in pairs], dtype=np.uint64),
        )


def short_hash(*parts: str) -> int:
    """64 bits of SHA-256. No two of a million texts share them but with a chance of 3 in 10^8."""
    return int(sha256_hex("\0".join((*map(str, map(len, parts)), *parts)).encode(errors="surrogatepass"))[:16], 16)


def shape_of(theta: FloatArray) -> tuple[FloatArray, float]:
    """(amplitudes [6], width) from their logarithms."""
    return np.exp(theta[:AMPLITUDES]), float(np.exp(theta[AMPLITUDES]))


def combine(
    theta: FloatArray, cosine: FloatArray, letters: FloatArray, surface: FloatArray, same: FloatArray
) -> FloatArray:
    """The kernel of one output from its four parts, any shape."""
    a, width = shape_of(theta)
    meaning = np.exp((cosine - 1.0) / width**2)
    whole: FloatArray = (a[0] + a[1] * same) * meaning + (a[2] + a[3] * same) * letters + a[4] * surface + a[5] * same
    return whole


@dataclass(frozen=True, slots=True)
class ItemMemory:
    """Sorted hashes [N] of known (prompt, text) pairs, and what to add to each output [N, O] there."""

    hash_N: NDArray[np.uint64]
    extra_N_O: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.hash_N)

    def look_up(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """[n, O]: zero for what nobody voted on."""
        asked = np.array([short_hash(prompt, text) for prompt, text in pairs], dtype=np.uint64)
        found = np.zeros((len(pairs), self.extra_N_O.shape[1]))
        if len(self.hash_N):
            place = np.minimum(np.searchsorted(self.hash_N, asked), len(self.hash_N) - 1)
            known = self.hash_N[place] == asked
            found[known] = self.extra_N_O[place[known]]
        return found


@dataclass(frozen=True, slots=True)
class TextKernel:
    """M landmarks and their weights [M, O], with the memory of known items."""

    lens: Lens
    landmark_M_H: NDArray[np.float32]
    letters_M_V: scipy.sparse.csr_matrix
    surface_M_S: NDArray[np.float32]
    prompt_M: NDArray[np.uint64]
    theta_O_A: NDArray[np.float32]  # logarithms of six amplitudes and the width
    weight_M_O: NDArray[np.float32]
    memory: ItemMemory
    _by_bucket: scipy.sparse.csr_matrix = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_bucket", self.letters_M_V.T.tocsr())

    @property
    def outputs(self) -> int:
        return int(self.weight_M_O.shape[1])

    def outputs_of(self, pooled_N_H: NDArray[np.float32], pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """[N, O]; a row's bits depend on its own text alone (no matrix product that BLAS could block otherwise)."""
        views = self.lens.views(pooled_N_H, pairs)
        out_N_O = np.empty((len(pairs), self.outputs))
        theta_O_A, weight_M_O = self.theta_O_A.astype(np.float64), self.weight_M_O.astype(np.float64)
        for row in range(len(pairs)):
            cosine_M = np.einsum("mh,h->m", self.landmark_M_H, views.meaning_N_H[row].astype(np.float32))
            letters_M = (views.letters_N_V[row] @ self._by_bucket).toarray()[0]
            surface_M = np.einsum("ms,s->m", self.surface_M_S, views.surface_N_S[row].astype(np.float32))
            same_M = (self.prompt_M == views.prompt_N[row]).astype(np.float64)
            for output in range(self.outputs):
                kernel_M = combine(theta_O_A[output], cosine_M, letters_M, surface_M, same_M)
                out_N_O[row, output] = (kernel_M * weight_M_O[:, output]).sum()
        return out_N_O + self.memory.look_up(pairs)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """What a model file holds; `from_tensors` is its inverse."""
        return {
            "kernel_mean": self.lens.mean_H,
            "kernel_frequency": self.lens.frequency_V,
            "kernel_surface_mean": self.lens.surface_mean_S,
            "kernel_surface_scale": self.lens.surface_scale_S,
            "kernel_landmarks": self.landmark_M_H,
            "kernel_letters_starts": self.letters_M_V.indptr.astype(np.int64),
            "kernel_letters_buckets": self.letters_M_V.indices.astype(np.int64),
            "kernel_letters_values": self.letters_M_V.data.astype(np.float32),
            "kernel_surface": self.surface_M_S,
            "kernel_prompts": self.prompt_M,
            "kernel_theta": self.theta_O_A,
            "kernel_weights": self.weight_M_O,
            "memory_hashes": self.memory.hash_N,
            "memory_extra": self.memory.extra_N_O,
        }

    @staticmethod
    def from_tensors(found: dict[str, NDArray[np.generic]]) -> TextKernel:
        """Raises KeyError or ValueError for what `tensors` would not have written."""
        t: dict[str, NDArray[np.generic]] = {name: found[name] for name in KERNEL_TENSORS}
        for name, array in t.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"tensor {name!r} is not finite")
        landmarks = len(t["kernel_landmarks"])
        letters = scipy.sparse.csr_matrix(
            (t["kernel_letters_values"], t["kernel_letters_buckets"], t["kernel_letters_starts"]),
            shape=(landmarks, BUCKETS),
        )
        letters.check_format(full_check=True)
        outputs = t["kernel_weights"].shape[1]
        expected = {
            "kernel_prompts": (landmarks,),
            "kernel_surface": (landmarks, len(t["kernel_surface_mean"])),
            "kernel_surface_scale": t["kernel_surface_mean"].shape,
            "kernel_mean": t["kernel_landmarks"].shape[1:],
            "kernel_frequency": (BUCKETS,),
            "kernel_theta": (outputs, AMPLITUDES + 1),
            "kernel_weights": (landmarks, outputs),
            "memory_extra": (len(t["memory_hashes"]), outputs),
        }
        for name, shape in expected.items():
            if t[name].shape != shape:
                raise ValueError(f"tensor {name!r} has shape {t[name].shape}, expected {shape}")
        if (np.diff(t["memory_hashes"].astype(np.float64)) < 0).any():
            raise ValueError("tensor 'memory_hashes' is not sorted")
        lens = Lens(t["kernel_mean"], t["kernel_frequency"], t["kernel_surface_mean"], t["kernel_surface_scale"])  # type: ignore[arg-type]
        return TextKernel(
            lens=lens,
            landmark_M_H=t["kernel_landmarks"],  # type: ignore[arg-type]
            letters_M_V=letters,
            surface_M_S=t["kernel_surface"],  # type: ignore[arg-type]
            prompt_M=t["kernel_prompts"],  # type: ignore[arg-type]
            theta_O_A=t["kernel_theta"],  # type: ignore[arg-type]
            weight_M_O=t["kernel_weights"],  # type: ignore[arg-type]
            memory=ItemMemory(t["memory_hashes"], t["memory_extra"]),  # type: ignore[arg-type]
        )


KERNEL_TENSORS = (
    "kernel_mean",
    "kernel_frequency",
    "kernel_surface_mean",
    "kernel_surface_scale",
    "kernel_landmarks",
    "kernel_letters_starts",
    "kernel_letters_buckets",
    "kernel_letters_values",
    "kernel_surface",
    "kernel_prompts",
    "kernel_theta",
    "kernel_weights",
    "memory_hashes",
    "memory_extra",
)
