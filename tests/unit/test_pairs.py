"""The pairs that people ordered, against comparing everything with everything."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.training.pairs import groups, person_pairs


@dataclass(frozen=True)
class Kind:
    ratings: bool
    comparisons: bool


def random_data(seed: int, kind: Kind, *, items: int = 14, people: int = 6) -> SharedData:
    """Nobody rates an item twice; comparisons may repeat, contradict, and have any weight."""
    rng = np.random.default_rng(seed)
    made = tuple(Item(f"d{rng.integers(2)}", f"prompt {rng.integers(3)}", f"text {i}") for i in range(items))
    group = groups(made)
    rated = [(p, i) for p in range(people) for i in range(items) if rng.random() < 0.5] if kind.ratings else []
    compared: list[tuple[int, int, int]] = []
    while kind.comparisons and len(compared) < 30:
        a, b = rng.integers(items, size=2)
        if a != b and group[a] == group[b]:
            compared.append((int(rng.integers(people)), int(a), int(b)))
    ratings = Ratings(
        np.array([p for p, _ in rated], np.int32),
        np.array([i for _, i in rated], np.int32),
        rng.integers(1, 4, len(rated)).astype(np.float32),
    )
    columns = np.array(compared, np.int32).reshape(-1, 3)
    comparisons = Comparisons(columns[:, 0], columns[:, 1], columns[:, 2], rng.random(len(columns)).astype(np.float32))
    return SharedData(made, tuple(f"person {p}" for p in range(people)), ratings, comparisons)


def every_pair(data: SharedData, keep: np.ndarray, among: set[int]) -> Counter[tuple[int, int, int]]:
    """(person, chosen, rejected) -> how often, by looking at every two ratings and every comparison."""
    found: Counter[tuple[int, int, int]] = Counter()
    ratings = list(zip(data.ratings.person_R, data.ratings.item_R, data.ratings.value_R, strict=True))
    for person, item, value in ratings:
        for other_person, other, other_value in ratings:
            same_prompt = (data.items[item].domain, data.items[item].prompt) == (
                data.items[other].domain,
                data.items[other].prompt,
            )
            if (
                keep[person]
                and person == other_person
                and value > other_value
                and same_prompt
                and {item, other} <= among
            ):
                found[int(person), int(item), int(other)] += 1
    compared = data.comparisons
    for person, chosen, rejected in zip(compared.person_C, compared.chosen_C, compared.rejected_C, strict=True):
        if keep[person] and {chosen, rejected} <= among:
            found[int(person), int(chosen), int(rejected)] += 1
    return found


kinds = st.sampled_from([Kind(True, False), Kind(False, True), Kind(True, True)])


def test_an_item_is_comparable_with_others_of_its_domain_and_prompt_only() -> None:
    items = [Item("d", "p", "a"), Item("e", "p", "b"), Item("d", "q", "c"), Item("d", "p", "d"), Item("e", "p", "a")]
    assert groups(items).tolist() == [0, 1, 2, 0, 1]


# All pairs of people, for tuning and for domain adapters


@given(st.integers(0, 10_000), kinds)
@settings(max_examples=60, deadline=None)
def test_all_pairs_of_people_are_those_of_the_reference(seed: int, kind: Kind) -> None:
    data = random_data(seed, kind)
    found = person_pairs(
        data.ratings, data.comparisons, groups(data.items), limit=10_000, rng=np.random.default_rng(seed)
    )
    counted = Counter(
        (int(p), int(c), int(r)) for p, c, r in zip(found.person_C, found.chosen_C, found.rejected_C, strict=True)
    )
    everybody = np.ones(len(data.people), bool)
    assert counted == every_pair(data, everybody, set(range(len(data.items))))
    assert len(found.weight_C) == len(found)


@given(st.integers(0, 10_000), kinds, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_nobody_gives_more_pairs_than_the_limit_and_those_below_it_give_all(seed: int, kind: Kind, limit: int) -> None:
    data = random_data(seed, kind)
    rng = np.random.default_rng(seed)
    found = person_pairs(data.ratings, data.comparisons, groups(data.items), limit=limit, rng=rng)
    reference = every_pair(data, np.ones(len(data.people), bool), set(range(len(data.items))))
    possible = Counter[int]()
    for (person, _, _), times in reference.items():
        possible[person] += times
    given_ = Counter(found.person_C.tolist())
    assert all(given_[person] == min(limit, count) for person, count in possible.items())
    counted = Counter(zip(found.person_C.tolist(), found.chosen_C.tolist(), found.rejected_C.tolist(), strict=True))
    assert all(times <= reference[pair] for pair, times in counted.items())


def test_the_pairs_that_a_limit_keeps_are_drawn_at_random() -> None:
    flood = Comparisons(
        np.zeros(1000, np.int32),
        np.arange(1000, dtype=np.int32),
        np.arange(1, 1001, dtype=np.int32),
        np.ones(1000, np.float32),
    )
    nothing = Ratings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    group = np.zeros(1001, np.int64)
    kept = [person_pairs(nothing, flood, group, limit=100, rng=np.random.default_rng(s)).chosen_C for s in range(20)]
    assert len({tuple(chosen.tolist()) for chosen in kept}) == 20
    assert abs(np.concatenate(kept).mean() - 499.5) < 5.5 * 289 / np.sqrt(2000)


def test_no_ratings_and_no_comparisons_give_no_pairs() -> None:
    empty = Comparisons(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))
    nothing = Ratings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    assert len(person_pairs(nothing, empty, np.zeros(0, np.int64), limit=5, rng=np.random.default_rng(0))) == 0


def test_a_flood_of_ratings_by_one_person_gives_no_more_pairs_and_takes_little_memory() -> None:
    """All that 20,000 ratings imply would be 200 million pairs."""
    count = 20_000
    items = tuple(Item("d", "p", f"text {i}") for i in range(count))
    item_R = np.arange(count, dtype=np.int32)
    ratings = Ratings(np.zeros(count, np.int32), item_R, (item_R % 7).astype(np.float32))
    nothing = Comparisons(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))
    tracemalloc.start()
    found = person_pairs(ratings, nothing, groups(items), limit=60, rng=np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 60
    assert (ratings.value_R[found.chosen_C] > ratings.value_R[found.rejected_C]).all()
    assert peak < 64 << 20
