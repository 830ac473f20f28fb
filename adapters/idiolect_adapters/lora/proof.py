"""A load proof: what an adapter did to a few fixed texts where it was made, it must do again wherever it is loaded.

A digest of the weights shows that the file is the same; this shows that the model, the tokenizer, the scale and the
code that applies it are the same too. Scores differ in their last bits between machines, and plain rounding would flip
values that lie on an edge. So each value's place in its rounding cell is recorded with the digest: where the proof was
made every value lies in the middle of its cell, and half a cell of difference is tolerated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from idiolect.canonical import canonical_json
from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.registry.lora_layout import PROOF_FORMAT, LoadProof

__all__ = ["PROBES", "LoadProof", "check_proof", "prove"]

# Of the largest score: some hundred times what kernels of different machines differ by in float32.
RELATIVE_STEP = 2e-4
OFFSET_UNITS = 1 << 16
MAX_CELL = 1 << 40

# Never change one: proofs of older adapters are bound to them. (prompt, text)
PROBES: tuple[tuple[str, str], ...] = (
    ("How do I reset my router?", "Hold the button for ten seconds."),
    ("How do I reset my router?", "Of course, happy to help! Please hold the small button at the back; thank you."),
    ("", "1. Read it.\n2. Sign it.\n3. Send it back, for example by post."),
    ("What should the city do?", "Perhaps we could build more bicycle lanes, though I am not sure it would suffice."),
)

Scores = NDArray[np.float64]


def prove(global_digest: str, bare_N: Sequence[float] | None, adapted_N: Sequence[float]) -> LoadProof:
    """From the scores of PROBES without and with the adapter. Raises CorruptArtifactError if they are not finite, or
    the same (code `changes_nothing`): an adapter that changes nothing is a mistake of its training.

    Without bare scores it is a proof of the model itself.
    """
    scores_N = _checked(bare_N, adapted_N)
    step = RELATIVE_STEP * max(1.0, float(np.abs(scores_N).max()))
    cells_N = scores_N / step - 0.5
    offsets_N = np.floor((cells_N - np.floor(cells_N)) * OFFSET_UNITS).astype(np.int64)
    offsets = tuple(int(offset) for offset in offsets_N)
    return LoadProof(global_digest, step, offsets, _digest(global_digest, step, offsets, scores_N))


def check_proof(
    proof: LoadProof, global_digest: str, bare_N: Sequence[float] | None, adapted_N: Sequence[float]
) -> None:
    """Raises CorruptArtifactError unless the scores of PROBES, here and now, are those of the proof."""
    if proof.global_digest != global_digest:
        raise CorruptArtifactError("the load proof was made on another global model.", mend="Train the adapter again.")
    scores_N = _checked(bare_N, adapted_N)
    within = all(0 <= offset < OFFSET_UNITS for offset in proof.offsets)
    if not within or not 0.0 < proof.step < math.inf or len(proof.offsets) != len(scores_N):
        raise CorruptArtifactError("the load proof is malformed.")
    # A proof with a wide step would let anything pass.
    if proof.step > 2 * RELATIVE_STEP * max(1.0, float(np.abs(scores_N).max())):
        raise CorruptArtifactError(f"the load proof tolerates too much (a step of {proof.step:g}).")
    if _digest(global_digest, proof.step, proof.offsets, scores_N) != proof.digest:
        raise CorruptArtifactError(
            "the adapter does not score here as it did where it was made.", mend="Check versions, or train it again."
        )


def _checked(bare_N: Sequence[float] | None, adapted_N: Sequence[float]) -> Scores:
    adapted = np.asarray(adapted_N, np.float64)
    bare = np.full(len(adapted), np.inf) if bare_N is None else np.asarray(bare_N, np.float64)
    if bare.shape != adapted.shape or bare.ndim != 1 or not len(bare):
        raise CorruptArtifactError(f"the probe gave {adapted.shape} scores beside {bare.shape}.")
    if not np.isfinite(adapted).all():
        raise CorruptArtifactError("the adapter gives scores that are not finite.", mend="Train it again.")
    if np.array_equal(bare, adapted):
        raise CorruptArtifactError(
            "the adapter changes nothing.", mend="Train it again: its B may still be zero.", code="changes_nothing"
        )
    return adapted


def _digest(global_digest: str, step: float, offsets: tuple[int, ...], scores_N: Scores) -> str:
    # Cells are shifted so that each score of the proof lies in the middle of one.
    cells = np.floor(np.clip(scores_N / step - np.array(offsets) / OFFSET_UNITS, -MAX_CELL, MAX_CELL)).astype(np.int64)
    said = {"format": PROOF_FORMAT, "global": global_digest, "step": step, "offsets": list(offsets)}
    return sha256_hex(canonical_json(said | {"cells": [int(cell) for cell in cells]}))
