"""From rows to columns: people and items become indices, in the order in which they are first seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from idiolect.signals.data import Comparisons, FloatArray, IntArray, Ratings

K = TypeVar("K", str, int)


class Columns:
    """One numbering of people and items, shared by all columns that are built with it."""

    def __init__(self) -> None:
        self._people: dict[str, int] = {}
        self._items: dict[int, int] = {}

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(self._people)

    @property
    def items(self) -> list[int]:
        """Row ids; position i is the item with index i."""
        return list(self._items)

    def ratings(self, rows: Iterable[Sequence[Any]]) -> Ratings:
        """`rows`: (subject, item, value)."""
        subjects, items, values = _transposed(rows, 3)
        return Ratings(_numbered(subjects, self._people), _numbered(items, self._items), _floats(values))

    def comparisons(self, rows: Iterable[Sequence[Any]]) -> Comparisons:
        """`rows`: (subject, chosen, rejected, weight)."""
        subjects, chosen, rejected, weights = _transposed(rows, 4)
        return Comparisons(
            _numbered(subjects, self._people),
            _numbered(chosen, self._items),
            _numbered(rejected, self._items),
            _floats(weights),
        )


def _transposed(rows: Iterable[Sequence[Any]], width: int) -> Sequence[Sequence[Any]]:
    return list(zip(*rows, strict=True)) or [()] * width


def _numbered(values: Sequence[K], index: dict[K, int]) -> IntArray:
    numbers = (index.setdefault(value, len(index)) for value in values)
    return np.fromiter(numbers, dtype=np.int32, count=len(values))


def _floats(values: Sequence[float]) -> FloatArray:
    return np.array(values, dtype=np.float32)
