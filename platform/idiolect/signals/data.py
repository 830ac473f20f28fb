"""Preference data as columns: what training reads. Indices point into `items` and `people`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.comparison import Item
from idiolect.signals.context import Context

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

    def within(self, context: Context) -> SharedData:
        """What was said of the items that `context` covers, and the people who said it."""
        kept_I = np.array([context.covers(item.task, item.language) for item in self.items], dtype=np.bool_)
        rated_R = kept_I[self.ratings.item_R]
        pairs = self.comparisons.where(kept_I[self.comparisons.chosen_C] & kept_I[self.comparisons.rejected_C])
        kept_P = np.zeros(len(self.people), dtype=np.bool_)
        kept_P[self.ratings.person_R[rated_R]] = True
        kept_P[pairs.person_C] = True
        item_I, person_P = (np.cumsum(kept, dtype=np.int32) - np.int32(1) for kept in (kept_I, kept_P))
        return SharedData(
            tuple(item for item, kept in zip(self.items, kept_I, strict=True) if kept),
            tuple(person for person, kept in zip(self.people, kept_P, strict=True) if kept),
            Ratings(
                person_P[self.ratings.person_R[rated_R]],
                item_I[self.ratings.item_R[rated_R]],
                self.ratings.value_R[rated_R],
            ),
            Comparisons(person_P[pairs.person_C], item_I[pairs.chosen_C], item_I[pairs.rejected_C], pairs.weight_C),
        )


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
