"""Slots in the order in which they were last used: a doubly linked list in two arrays, 8 bytes for each slot.

Python's OrderedDict needs ten times as much. Not thread-safe.
"""

from __future__ import annotations

import numpy as np


class Recency:
    """Holds each of the slots 0 .. capacity - 1 at most once."""

    def __init__(self, capacity: int) -> None:
        # Place 0 is both ends of the list, slot i has place i + 1. All zeros is the empty list.
        self._older = np.zeros(capacity + 1, dtype=np.int32).data
        self._newer = np.zeros(capacity + 1, dtype=np.int32).data

    def add(self, slot: int) -> None:
        """As the newest. It must not be in the list."""
        older, newer, place = self._older, self._newer, slot + 1
        last = older[0]
        older[place], newer[place] = last, 0
        newer[last] = older[0] = place

    def remove(self, slot: int) -> None:
        older, newer, place = self._older, self._newer, slot + 1
        newer[older[place]], older[newer[place]] = newer[place], older[place]

    def touch(self, slot: int) -> None:
        if self._older[0] != slot + 1:
            self.remove(slot)
            self.add(slot)

    def oldest(self) -> int | None:
        place: int = self._newer[0]
        return place - 1 if place else None

    def in_order(self) -> list[int]:
        """Oldest first."""
        found: list[int] = []
        place: int = self._newer[0]
        while place and len(found) < len(self._newer):
            found.append(place - 1)
            place = self._newer[place]
        return found
