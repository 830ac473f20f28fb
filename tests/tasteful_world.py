"""A small world with planted tastes: everybody likes good answers, and each person likes either warm or cold ones.

Which way a person leans can't be read from anything but their own comparisons, so a model without the personal part
orders warm against cold at chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from idiolect.signals.comparison import Comparison, Item, PreferenceDataset, Rating
from idiolect.signals.data import Comparisons, Ratings, SharedData

DOMAINS = ("chat", "news")
WARM, COLD = "please thanks sorry sun", "metal glass stone snow"
GOOD, BAD = "good answer light star", "bad question rain fire"
FILLING = (
    "fish tree house",
    "river cloud paper",
    "wood sand wind",
    "earth moon one",
    "two three four",
    "five six seven",
)


@dataclass(frozen=True)
class World:
    """`warm_I`, `good_I` in {0, 1}; `leaning_P` in {-1, 1}."""

    items: tuple[Item, ...]
    warm_I: np.ndarray
    good_I: np.ndarray
    leaning_P: np.ndarray

    def liking(self, person: int) -> np.ndarray:
        """[I]: what each item is worth to a person."""
        return 1.2 * self.good_I + self.leaning_P[person] * (self.warm_I - 0.5)

    def comparisons(self, people: list[int], each: int, rng: np.random.Generator) -> Comparisons:
        """`each` comparisons of every person, among candidates of one prompt."""
        rows: list[tuple[int, int, int]] = []
        for person in people:
            liking = self.liking(person)
            for _ in range(each):
                first = 4 * int(rng.integers(len(self.items) // 4))
                a, b = first + rng.choice(4, 2, replace=False)
                better, worse = (a, b) if liking[a] > liking[b] else (b, a)
                rows.append((person, int(better), int(worse)))
        columns = np.array(rows, np.int32).reshape(-1, 3)
        return Comparisons(columns[:, 0], columns[:, 1], columns[:, 2], np.ones(len(columns), np.float32))

    def ratings(self, people: list[int], share: float, rng: np.random.Generator) -> Ratings:
        rows = [(p, i) for p in people for i in range(len(self.items)) if rng.random() < share]
        person, item = np.array(rows, np.int32).reshape(-1, 2).T
        value = np.array([self.liking(p)[i] for p, i in rows], np.float32)
        return Ratings(person.copy(), item.copy(), value)


def make_world(people: int, prompts: int = 16, seed: int = 0) -> World:
    """Four candidates for each prompt: good or bad, warm or cold."""
    rng = np.random.default_rng(seed)
    items, warm, good = [], [], []
    for prompt in range(prompts):
        for candidate in range(4):
            is_warm, is_good = candidate % 2, candidate // 2
            words = f"{FILLING[rng.integers(len(FILLING))]} {(COLD, WARM)[is_warm]} {(BAD, GOOD)[is_good]}".split()
            text = " ".join(rng.permutation(words))
            items.append(
                Item(DOMAINS[prompt % 2], f"how {FILLING[prompt % len(FILLING)]} {prompt}", f"{text} {candidate}")
            )
            warm.append(is_warm)
            good.append(is_good)
    leaning = np.where(np.arange(people) % 2 == 0, 1.0, -1.0)
    return World(tuple(items), np.array(warm, float), np.array(good, float), leaning)


def shared_data(world: World, people: list[int], seed: int = 1) -> SharedData:
    """One half of `people` rated, the other compared."""
    rng = np.random.default_rng(seed)
    half = len(people) // 2
    names = tuple(f"person {p}" for p in range(len(world.leaning_P)))
    return SharedData(
        world.items, names, world.ratings(people[:half], 0.7, rng), world.comparisons(people[half:], 40, rng)
    )


def as_dataset(world: World, training: list[int], new: list[int], seed: int = 2) -> PreferenceDataset:
    """The same as an imported data set: `training` people train what is shared, `new` ones only their own adapter."""
    data = shared_data(world, training, seed)
    own = world.comparisons(new, 25, np.random.default_rng(seed))

    def listed(columns: Comparisons) -> tuple[Comparison, ...]:
        rows = zip(columns.person_C.tolist(), columns.chosen_C.tolist(), columns.rejected_C.tolist(), strict=True)
        return tuple(Comparison(f"person {p}", chosen, rejected) for p, chosen, rejected in rows)

    rated = zip(
        *(column.tolist() for column in (data.ratings.person_R, data.ratings.item_R, data.ratings.value_R)), strict=True
    )
    return PreferenceDataset(
        name="tasteful",
        digest=f"{seed:064x}",
        items=world.items,
        ratings=tuple(Rating(f"person {p}", item, value) for p, item, value in rated),
        comparisons=listed(data.comparisons),
        new_people=frozenset(f"person {p}" for p in new),
        adaptation=listed(own),
    )
