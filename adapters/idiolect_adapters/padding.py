"""Which texts share a forward, and how long they are padded, so that a text's bits never depend on its neighbours.

Every text is padded to a length that depends on itself alone, and only texts of one padded length share a batch. On a
GPU every batch of one length has one size as well: libraries for GPUs choose kernels, and with them roundings, by the
size of a batch. CPUs like many small batches with hardly any padding. A GPU needs few large ones: below some thousand
tokens a forward takes it no longer than the host needs to ask for one (deploy/decisions/0022).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

# Below 16 tokens a row's matrix products use other kernels on some machines than in a batch, with other roundings.
LENGTH_MIN, LENGTH_STEP, BATCH_TOKENS = 16, 8, 2048
GPU_LENGTH_STEP, GPU_BATCH_TOKENS = 32, 8192


@dataclass(frozen=True, slots=True)
class Padding:
    """`longest`: the most tokens that the model takes. `fill`: whether batches of one length have one size."""

    shortest: int
    step: int
    batch_tokens: int
    fill: bool
    longest: int

    @staticmethod
    def on(device: torch.device, longest: int) -> Padding:
        if device.type == "cpu":
            return Padding(LENGTH_MIN, LENGTH_STEP, BATCH_TOKENS, False, longest)
        return Padding(GPU_LENGTH_STEP, GPU_LENGTH_STEP, GPU_BATCH_TOKENS, True, longest)

    def length(self, tokens: int) -> int:
        """What a text of so many tokens is padded to."""
        return max(tokens, min(self.longest, max(self.shortest, -(-tokens // self.step) * self.step)))

    def rows(self, length: int) -> int:
        """Most texts of this padded length in one batch."""
        return max(1, self.batch_tokens // length - self.fill)

    def filler(self, texts: int, length: int) -> list[tuple[int, ...]]:
        """Rows that nobody asked for, to be computed after so many texts of this padded length.

        Never none on a GPU: transformers leaves out a mask of nothing but ones, and then other kernels run.
        """
        return [(0,)] * (self.rows(length) + 1 - texts) if self.fill else []

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """(padded length, rows): rows of one padded length, as many as one batch takes at a time."""
        by_length: dict[int, list[int]] = {}
        for row, tokens in enumerate(ids):
            by_length.setdefault(self.length(len(tokens)), []).append(row)
        for length in sorted(by_length):
            rows, size = by_length[length], self.rows(length)
            for start in range(0, len(rows), size):
                yield length, rows[start : start + size]
