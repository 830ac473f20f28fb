"""From rows to columns: people and items become indices, in the order in which they are first seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from idiolect.signals.data import Comparisons, FloatArray, IntArray, Ratings

K = TypeVar("K", str, int)

BLOCK = 8_192


class Columns:
    """One numbering of people and items, shared by all columns that are built with it. `items` come first."""

    def __init__(self, items: Iterable[int] = ()) -> None:
        self._people: dict[str, int] = {}
        self._items: dict[int, int] = {item: index for index, item in enumerate(items)}

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(self._people)

    @property
    def items(self) -> list[int]:
        """Row ids; position i is the item with index i."""
        return list(self._items)

    def ratings(self, rows: Iterable[Sequence[Any]]) -> Ratings:
        """`rows`: (subject, item, value)."""
        blocks = [
            (_numbered(subjects, self._people), _numbered(items, self._items), _floats(values))
            for subjects, items, values in _blocks(rows, 3)
        ]
        people, items, values = zip(*blocks, strict=True)
        return Ratings(np.concatenate(people), np.concatenate(items), np.concatenate(values))

    def comparisons(self, rows: Iterable[Sequence[Any]]) -> Comparisons:
        """`rows`: (subject, chosen, rejected, weight)."""
        blocks = [
            (
                _numbered(subjects, self._people),
                _numbered(chosen, self._items),
                _numbered(rejected, self._items),
                _floats(weights),
            )
            for subjects, chosen, rejected, weights in _blocks(rows, 4)
        ]
        people, chosen, rejected, weights = zip(*blocks, strict=True)
        return Comparisons(
            np.concatenate(people), np.concatenate(chosen), np.concatenate(rejected), np.concatenate(weights)
        )


def _blocks(rows: Iterable[Sequence[Any]], width: int) -> Iterator[Sequence[Sequence[Any]]]:
    """Transposed, BLOCK rows at a time, at least once: a row takes ten times the room that its numbers take."""
    left = iter(rows)
    block = list(islice(left, BLOCK))
    while True:
        yield list(zip(*block, strict=True)) or [()] * width
        block = list(islice(left, BLOCK))
        if not block:
            return


def _numbered(values: Sequence[K], index: dict[K, int]) -> IntArray:
    numbers = (index.setdefault(value, len(index)) for value in values)
    return np.fromiter(numbers, dtype=np.int32, count=len(values))


def _floats(values: Sequence[float]) -> FloatArray:
    return np.array(values, dtype=np.float32)
