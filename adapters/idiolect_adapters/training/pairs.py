"""Which pairs of items a person ordered: by comparing them, or by rating two of one group differently.

Ratings imply far too many pairs to list (seven million for 280,000 votes), so each person gives at most `limit`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings

IntArray = NDArray[np.int64]

MAX_PAIRED = 1_000  # ratings of one person, at random: what they imply grows with the square


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
        if len(rows) > MAX_PAIRED:
            rows = rng.choice(rows, MAX_PAIRED, replace=False)
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
