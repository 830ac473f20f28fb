"""Preference data as columns: what training reads. Indices point into `items` and `people`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.comparison import Item

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ratings:
    """R ratings: `person_R` rated `item_R` with `value_R`."""

    person_R: IntArray
    item_R: IntArray
    value_R: FloatArray

    def __len__(self) -> int:
        return len(self.person_R)


@dataclass(frozen=True, slots=True)
class Comparisons:
    """C comparisons: `person_C` preferred item `chosen_C` over item `rejected_C`, with `weight_C`."""

    person_C: IntArray
    chosen_C: IntArray
    rejected_C: IntArray
    weight_C: FloatArray

    def __len__(self) -> int:
        return len(self.person_C)

    def where(self, mask_C: NDArray[np.bool_]) -> Comparisons:
        return Comparisons(self.person_C[mask_C], self.chosen_C[mask_C], self.rejected_C[mask_C], self.weight_C[mask_C])


@dataclass(frozen=True, slots=True)
class SharedData:
    """Ratings and comparisons of many people, for global and domain training."""

    items: tuple[Item, ...]
    people: tuple[str, ...]  # pseudonyms
    ratings: Ratings
    comparisons: Comparisons


@dataclass(frozen=True, slots=True)
class PersonalSnapshot:
    """Comparisons of people who opted in, each with the generation at which they were read.

    `generation_P` fences the publish: a person who was reset in between is dropped there. `parent_P` is the version
    that was live, or None.
    """

    items: tuple[Item, ...]
    people: tuple[str, ...]
    generation_P: tuple[int, ...]
    parent_P: tuple[str | None, ...]
    comparisons: Comparisons


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Held-out comparisons per part, which training never reads. `adaptation`: what those of the same people who opted
    in told in the data set besides, in its order."""

    items: tuple[Item, ...]
    people: tuple[str, ...]
    parts: dict[str, Comparisons]
    adaptation: Comparisons
