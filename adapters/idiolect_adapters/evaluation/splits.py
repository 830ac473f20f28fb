"""A data set as columns: what shared training may read, and what the new people adapt to and are tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from idiolect.signals.comparison import Comparison, PreferenceDataset, Rating
from idiolect.signals.data import Comparisons, Ratings, SharedData


@dataclass(frozen=True, slots=True)
class NewPeople:
    """Indices of people point into `people`, those of items into the data set's. The order of pairs is kept, since
    a protocol adapts to the first n.
    """

    people: tuple[str, ...]
    adaptation: Comparisons
    parts: Mapping[str, Comparisons]


def shared_data(dataset: PreferenceDataset) -> SharedData:
    """Everyone but the new people, with their ids as they are: for data that is public anyway."""
    people = sorted({r.person for r in dataset.ratings} | {c.person for c in dataset.comparisons})
    index = _index(people)
    return SharedData(
        dataset.items, tuple(people), _ratings(dataset.ratings, index), _comparisons(dataset.comparisons, index)
    )


def new_people(dataset: PreferenceDataset) -> NewPeople:
    people = sorted(dataset.new_people)
    index = _index(people)
    parts = {part: _comparisons(pairs, index) for part, pairs in dataset.evaluation.items()}
    return NewPeople(tuple(people), _comparisons(dataset.adaptation, index), parts)


def _index(people: Sequence[str]) -> dict[str, int]:
    return {person: position for position, person in enumerate(people)}


def _ratings(ratings: Sequence[Rating], index: Mapping[str, int]) -> Ratings:
    return Ratings(
        np.array([index[rating.person] for rating in ratings], np.int32),
        np.array([rating.item for rating in ratings], np.int32),
        np.array([rating.value for rating in ratings], np.float32),
    )


def _comparisons(pairs: Sequence[Comparison], index: Mapping[str, int]) -> Comparisons:
    return Comparisons(
        np.array([index[pair.person] for pair in pairs], np.int32),
        np.array([pair.chosen for pair in pairs], np.int32),
        np.array([pair.rejected for pair in pairs], np.int32),
        np.array([pair.weight for pair in pairs], np.float32),
    )
