"""Everything that public people said, as votes: this person was for or against this item.

A rating above the person's own mean for that prompt is a vote for the item, one below it a vote against; a comparison
is a vote for the chosen and one against the rejected item. Given that just one of two votes is a yes, the logistic
model of votes *is* Bradley-Terry, so what is learned from votes serves pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.data import SharedData
from idiolect_adapters.training.pairs import groups

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# The total weight of one person's votes, so that nobody's flood moves an item far; and how many votes of a flood on
# items that nobody else judges are read, so that nobody's texts crowd out the others'. (A made-up crowd of 80, and one
# more person with 3,000 texts of their own: new texts of the others were ordered 1.00 right without the flood, .72 with
# it, and 1.00 with this bound.)
MAX_SAY = 300.0
MAX_VOTES = 2_000_000  # more are thinned by whole people: half a GB of statistics at rank 6, and minutes of rounds


@dataclass(frozen=True, slots=True)
class Votes:
    """V votes. `liked_V` is 1.0 or 0.0; people and items are indices into the data that they came from."""

    person_V: IntArray
    item_V: IntArray
    liked_V: FloatArray
    weight_V: FloatArray
    people: int
    items: int

    def __len__(self) -> int:
        return len(self.person_V)

    def seen_items(self) -> IntArray:
        return np.unique(self.item_V)


def votes_of(data: SharedData, keep_P: NDArray[np.bool_], rng: np.random.Generator) -> Votes:
    """The votes of the people in `keep_P`. Equal ratings say nothing and give none."""
    rated, compared = _from_ratings(data), _from_comparisons(data)
    person_V = np.concatenate([rated[0], compared[0]])
    kept = keep_P[person_V] & _thinned(person_V, len(keep_P), rng)
    person_V = person_V[kept]
    item_V, liked_V, weight_V = (np.concatenate([rated[i], compared[i]])[kept] for i in (1, 2, 3))
    flood_P = np.bincount(person_V, weight_V, minlength=len(keep_P)) > MAX_SAY
    if flood_P.any():
        read_V = _few_of_their_own(person_V, item_V, flood_P, rng)
        person_V, item_V, liked_V, weight_V = (column[read_V] for column in (person_V, item_V, liked_V, weight_V))
    total_P = np.bincount(person_V, weight_V, minlength=len(keep_P))
    weight_V = weight_V * np.minimum(1.0, MAX_SAY / np.maximum(total_P, 1e-12))[person_V]
    return Votes(person_V, item_V.astype(np.int64), liked_V, weight_V, len(keep_P), len(data.items))


def _from_ratings(data: SharedData) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    ratings = data.ratings
    person_R, item_R = ratings.person_R.astype(np.int64), ratings.item_R.astype(np.int64)
    group_I = groups(data.items)
    cell_R = person_R * (int(group_I.max(initial=0)) + 1) + group_I[item_R]
    _, cell_R = np.unique(cell_R, return_inverse=True)
    value_R = ratings.value_R.astype(np.float64)
    mean_R = (np.bincount(cell_R, value_R) / np.maximum(np.bincount(cell_R), 1))[cell_R] if len(cell_R) else value_R
    differs = np.abs(value_R - mean_R) > 1e-9
    liked_R = (value_R > mean_R).astype(np.float64)
    return person_R[differs], item_R[differs], liked_R[differs], np.ones(int(differs.sum()))


def _from_comparisons(data: SharedData) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    pairs = data.comparisons
    person = np.concatenate([pairs.person_C, pairs.person_C]).astype(np.int64)
    item = np.concatenate([pairs.chosen_C, pairs.rejected_C]).astype(np.int64)
    liked = np.concatenate([np.ones(len(pairs)), np.zeros(len(pairs))])
    return person, item, liked, np.concatenate([pairs.weight_C, pairs.weight_C]).astype(np.float64)


def _thinned(person_V: IntArray, people: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """All votes of as many random people as fit MAX_VOTES."""
    if len(person_V) <= MAX_VOTES:
        return np.ones(len(person_V), dtype=np.bool_)
    order = rng.permutation(people)
    fits = np.cumsum(np.bincount(person_V, minlength=people)[order]) <= MAX_VOTES
    chosen_P = np.zeros(people, dtype=np.bool_)
    chosen_P[order[fits]] = True
    return chosen_P[person_V]


def _few_of_their_own(
    person_V: IntArray, item_V: IntArray, flood_P: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """All votes but those beyond MAX_SAY, at random, of each flood on items that only floods judge."""
    flood_V = flood_P[person_V]
    own = rng.permutation(np.flatnonzero(flood_V & ~np.isin(item_V, item_V[~flood_V])))
    own = own[np.argsort(person_V[own], kind="stable")]
    place = np.arange(len(own)) - np.searchsorted(person_V[own], person_V[own])
    read_V = np.ones(len(person_V), dtype=np.bool_)
    read_V[own[place >= MAX_SAY]] = False
    return read_V
