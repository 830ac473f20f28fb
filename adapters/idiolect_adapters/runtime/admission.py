"""Who may take a slot when all are taken: TinyLFU (Einziger, Friedman & Manes 2017) in front of LRU.

Plain LRU lets one pass over many people (a nightly job, an import) push out everyone who comes back every minute. So a
newcomer must have been asked for at least as often as the one that it would push out, as far as a small sketch
remembers. A tie goes to the newcomer: recency decides among the rare ones.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

MAX_COUNT = 15
SAMPLES_PER_SLOT = 10  # after so many the counts are halved, so that old fame fades


class FrequencySketch:
    """A count-min sketch of two rows. It never counts too little before it is halved.

    32 to 64 bytes per slot, taken page by page as they are first counted in; 2 KiB at least, since two of a few keys
    would often share both counts in less.
    """

    def __init__(self, capacity: int) -> None:
        self._mask = (1 << max(10, (16 * max(1, capacity) - 1).bit_length())) - 1
        self._rows_2 = np.zeros((2, self._mask + 1), dtype=np.uint8)
        self._rows = (self._rows_2[0].data, self._rows_2[1].data)  # single counts are read faster so
        self._limit = SAMPLES_PER_SLOT * max(1, capacity)
        self._samples = 0

    def add(self, key: Hashable) -> None:
        for row, index in zip(self._rows, self._indices(key), strict=True):
            if row[index] < MAX_COUNT:
                row[index] += 1
        self._samples += 1
        if self._samples >= self._limit:
            self._halve()

    def estimate(self, key: Hashable) -> int:
        first, second = self._indices(key)
        least: int = min(self._rows[0][first], self._rows[1][second])
        return least

    def _indices(self, key: Hashable) -> tuple[int, int]:
        mixed = hash(key) * 0x9E3779B97F4A7C15
        return (mixed >> 16) & self._mask, (mixed >> 40) & self._mask

    def _halve(self) -> None:
        self._rows_2 >>= 1
        self._samples //= 2
