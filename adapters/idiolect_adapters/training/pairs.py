"""Which pairs of items can be compared by whom, for any set of items.

Ratings imply far too many pairs to list (seven million for 280,000 votes), so pairs are formed for the few items of
one training step: every two items of one group (same domain and prompt) that one person rated differently. Explicit
comparisons join them. Cost of a step: (people who rated one of the items) x (items of the step)^2 bits, with both
factors bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings, SharedData

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

MAX_PEOPLE_PER_STEP = 4096


@dataclass(frozen=True, slots=True)
class Pairs:
    """B pairs: `person_B` prefers `chosen_B` over `rejected_B`. A person's weights in one batch sum to sqrt(their
    pairs).
    """

    person_B: IntArray
    chosen_B: IntArray
    rejected_B: IntArray
    weight_B: FloatArray

    def __len__(self) -> int:
        return len(self.person_B)


class PairSource:
    """Pairs among any few items of `data`, restricted to the people in `keep_P` (a mask over `data.people`)."""

    def __init__(self, data: SharedData, keep_P: NDArray[np.bool_]) -> None:
        self.group_I = groups(data.items)
        ratings, comparisons = data.ratings, data.comparisons
        kept_R = keep_P[ratings.person_R]
        order_R = np.argsort(ratings.item_R[kept_R], kind="stable")
        self._rating_person_R = ratings.person_R[kept_R][order_R].astype(np.int64)
        self._rating_value_R = ratings.value_R[kept_R][order_R]
        self._rating_start_I = np.searchsorted(ratings.item_R[kept_R][order_R], np.arange(len(data.items) + 1))
        self._comparisons = comparisons.where(keep_P[comparisons.person_C])
        self._by_chosen = np.argsort(self._comparisons.chosen_C, kind="stable")
        self._chosen_start_I = np.searchsorted(
            self._comparisons.chosen_C[self._by_chosen], np.arange(len(data.items) + 1)
        )
        self.judgments_P = np.bincount(self._rating_person_R, minlength=len(keep_P)) + np.bincount(
            self._comparisons.person_C, minlength=len(keep_P)
        )
        self._position_I = np.full(len(data.items), -1, dtype=np.int64)

    def used_items(self) -> IntArray:
        """Items that anyone kept has rated or compared."""
        used_I = np.diff(self._rating_start_I) > 0
        used_I[self._comparisons.chosen_C] = True
        used_I[self._comparisons.rejected_C] = True
        return np.flatnonzero(used_I)

    def chunks(self, size: int, rng: np.random.Generator) -> Iterator[IntArray]:
        """Every used item once, in random sets of about `size` that hold whole groups where groups are small."""
        items = self.used_items()
        shuffled = items[rng.permutation(len(items))]
        by_group = shuffled[np.argsort(self.group_I[shuffled], kind="stable")]
        borders = np.flatnonzero(np.diff(self.group_I[by_group])) + 1
        parts = [
            part for group in np.split(by_group, borders) for part in np.array_split(group, -(-len(group) // size))
        ]
        current: list[IntArray] = []
        chunks: list[IntArray] = []
        for index in rng.permutation(len(parts)):
            if current and sum(map(len, current)) + len(parts[index]) > size:
                chunks.append(np.concatenate(current))
                current = []
            current.append(parts[index])
        if current:
            chunks.append(np.concatenate(current))
        yield from chunks

    def among(self, items: IntArray, rng: np.random.Generator) -> Pairs:
        """All pairs among `items`; indices of the result point into `items`."""
        rated = self._rated_pairs(items, rng)
        compared = self._compared_pairs(items)
        person_B = np.concatenate([rated[0], compared[0]])
        weight_B = np.concatenate([np.ones(len(rated[0]), np.float32), compared[3]])
        _, of_person_B, counts = np.unique(person_B, return_inverse=True, return_counts=True)
        # A person's say grows with the square root of their pairs, which repeat the same few judgments.
        weight_B = (weight_B / np.sqrt(counts)[of_person_B]).astype(np.float32)
        return Pairs(
            person_B, np.concatenate([rated[1], compared[1]]), np.concatenate([rated[2], compared[2]]), weight_B
        )

    def _rated_pairs(self, items: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray, IntArray]:
        starts, ends = self._rating_start_I[items], self._rating_start_I[items + 1]
        column_R = np.repeat(np.arange(len(items)), ends - starts)
        rows_R = np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)] or [np.zeros(0, np.int64)])
        people, row_R, counts = np.unique(self._rating_person_R[rows_R], return_inverse=True, return_counts=True)
        value_P_I = np.full((len(people), len(items)), np.nan, dtype=np.float32)
        value_P_I[row_R, column_R] = self._rating_value_R[rows_R]
        chosen_few = np.flatnonzero(counts > 1)
        if len(chosen_few) > MAX_PEOPLE_PER_STEP:
            chosen_few = rng.choice(chosen_few, MAX_PEOPLE_PER_STEP, replace=False)
        value_P_I = value_P_I[chosen_few]
        same_group_I_I = self.group_I[items][:, None] == self.group_I[items][None, :]
        row, chosen, rejected = np.nonzero((value_P_I[:, :, None] > value_P_I[:, None, :]) & same_group_I_I)
        return people[chosen_few][row], chosen, rejected

    def _compared_pairs(self, items: IntArray) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
        self._position_I[items] = np.arange(len(items))
        try:
            starts, ends = self._chosen_start_I[items], self._chosen_start_I[items + 1]
            rows = [self._by_chosen[s:e] for s, e in zip(starts, ends, strict=True)]
            found = self._comparisons.where(np.concatenate(rows or [np.zeros(0, np.int64)]))
            inside = found.where(self._position_I[found.rejected_C] >= 0)
            return (
                inside.person_C.astype(np.int64),
                self._position_I[inside.chosen_C],
                self._position_I[inside.rejected_C],
                inside.weight_C,
            )
        finally:
            self._position_I[items] = -1


def groups(items: Sequence[Item]) -> IntArray:
    """A group per (domain, prompt): what is comparable."""
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault((item.domain, item.prompt), len(numbers)) for item in items], np.int64)


def person_pairs(
    ratings: Ratings, comparisons: Comparisons, group_I: IntArray, *, limit: int, rng: np.random.Generator
) -> Comparisons:
    """Up to `limit` pairs per person, drawn at random from all that their ratings and comparisons imply."""
    parts = [comparisons]
    order_R = np.argsort(ratings.person_R, kind="stable")
    borders = np.flatnonzero(np.diff(ratings.person_R[order_R])) + 1
    for rows in np.split(order_R, borders) if len(order_R) else []:
        items, values = ratings.item_R[rows], ratings.value_R[rows]
        better = (values[:, None] > values[None, :]) & (group_I[items][:, None] == group_I[items][None, :])
        first, second = np.nonzero(better)
        if len(first) > limit:
            picked = rng.choice(len(first), limit, replace=False)
            first, second = first[picked], second[picked]
        person_C = np.full(len(first), ratings.person_R[rows[0]], np.int32)
        parts.append(Comparisons(person_C, items[first], items[second], np.ones(len(first), np.float32)))
    every = Comparisons(
        np.concatenate([part.person_C for part in parts]),
        np.concatenate([part.chosen_C for part in parts]),
        np.concatenate([part.rejected_C for part in parts]),
        np.concatenate([part.weight_C for part in parts]),
    )
    return _at_most(every, limit, rng)


def _at_most(pairs: Comparisons, limit: int, rng: np.random.Generator) -> Comparisons:
    """`limit` pairs of each person, drawn at random where there are more; in the same order."""
    if np.bincount(pairs.person_C, minlength=1).max() <= limit:
        return pairs
    shuffled = rng.permutation(len(pairs))
    by_person = shuffled[np.argsort(pairs.person_C[shuffled], kind="stable")]
    people = pairs.person_C[by_person]
    rank = np.arange(len(people)) - np.searchsorted(people, people)
    kept = np.zeros(len(pairs), dtype=np.bool_)
    kept[by_person[rank < limit]] = True
    return pairs.where(kept)
