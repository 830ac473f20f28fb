"""Forming pairs for a step against comparing everything with everything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.training import pairs as module
from idiolect_adapters.training.pairs import PairSource, groups, person_pairs


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


@given(st.integers(0, 10_000), kinds)
@settings(max_examples=60, deadline=None)
def test_the_pairs_among_some_items_are_exactly_those_that_people_ordered(seed: int, kind: Kind) -> None:
    data = random_data(seed, kind)
    rng = np.random.default_rng(seed)
    keep = rng.random(len(data.people)) < 0.7
    source = PairSource(data, keep)
    for _ in range(3):
        items = rng.permutation(len(data.items))[: rng.integers(0, len(data.items) + 1)].astype(np.int64)
        pairs = source.among(items, rng)
        found = Counter(
            (int(p), int(items[c]), int(r_item))
            for p, c, r_item in zip(pairs.person_B, pairs.chosen_B, items[pairs.rejected_B], strict=True)
        )
        assert found == every_pair(data, keep, set(items.tolist()))


@given(st.integers(0, 10_000), kinds)
@settings(max_examples=40, deadline=None)
def test_asking_twice_or_after_other_items_gives_the_same(seed: int, kind: Kind) -> None:
    data = random_data(seed, kind)
    source = PairSource(data, np.ones(len(data.people), bool))
    rng = np.random.default_rng(0)
    first, other = np.array([0, 3, 5, 7, 9]), np.array([1, 2, 3, 4])
    before = source.among(first, rng)
    source.among(other, rng)
    after = source.among(first, rng)
    assert all(np.array_equal(getattr(before, name), getattr(after, name)) for name in before.__slots__)


@given(st.integers(0, 10_000), kinds)
@settings(max_examples=40, deadline=None)
def test_a_persons_say_in_a_step_grows_with_the_root_of_their_pairs(seed: int, kind: Kind) -> None:
    data = random_data(seed, kind)
    ones = Comparisons(
        *(getattr(data.comparisons, n) for n in ("person_C", "chosen_C", "rejected_C")),
        np.ones(len(data.comparisons), np.float32),
    )
    source = PairSource(SharedData(data.items, data.people, data.ratings, ones), np.ones(len(data.people), bool))
    pairs = source.among(np.arange(len(data.items)), np.random.default_rng(0))
    for person in np.unique(pairs.person_B):
        mine = pairs.person_B == person
        assert pairs.weight_B[mine].sum() == pytest.approx(np.sqrt(mine.sum()), rel=1e-5)


@given(st.integers(0, 10_000), kinds, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_used_item_exactly_once(seed: int, kind: Kind, size: int) -> None:
    data = random_data(seed, kind)
    keep = np.random.default_rng(seed).random(len(data.people)) < 0.7
    source = PairSource(data, keep)
    chunks = list(source.chunks(size, np.random.default_rng(seed)))
    assert all(0 < len(chunk) <= size for chunk in chunks)
    seen = np.concatenate(chunks) if chunks else np.zeros(0, np.int64)
    used = {int(i) for p, i in zip(data.ratings.person_R, data.ratings.item_R, strict=True) if keep[p]}
    for person, a, b in zip(
        data.comparisons.person_C, data.comparisons.chosen_C, data.comparisons.rejected_C, strict=True
    ):
        used |= {int(a), int(b)} if keep[person] else set()
    assert sorted(seen.tolist()) == sorted(used) == source.used_items().tolist()


def test_small_groups_are_never_split_over_chunks() -> None:
    items = tuple(Item("d", f"prompt {i // 4}", f"text {i}") for i in range(40))
    ratings = Ratings(np.zeros(40, np.int32), np.arange(40, dtype=np.int32), np.arange(40, dtype=np.float32))
    nothing = Comparisons(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))
    source = PairSource(SharedData(items, ("ann",), ratings, nothing), np.ones(1, bool))
    chunks = list(source.chunks(10, np.random.default_rng(0)))
    homes = [{int(i) // 4 for i in chunk} for chunk in chunks]
    assert sum(map(len, homes)) == 10  # each of the ten prompts is in one chunk
    everything = sum(len(source.among(chunk, np.random.default_rng(0))) for chunk in chunks)
    assert everything == 10 * 6


def test_epochs_differ_and_a_seed_repeats_them() -> None:
    source = PairSource(random_data(1, Kind(True, True)), np.ones(6, bool))
    rng = np.random.default_rng(3)
    first, second = list(source.chunks(4, rng)), list(source.chunks(4, rng))
    again = list(source.chunks(4, np.random.default_rng(3)))
    assert [c.tolist() for c in first] == [c.tolist() for c in again]
    assert [c.tolist() for c in first] != [c.tolist() for c in second]


def test_a_step_reads_a_bounded_number_of_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEOPLE_PER_STEP", 5)
    items = (Item("d", "p", "a"), Item("d", "p", "b"))
    people = np.repeat(np.arange(50, dtype=np.int32), 2)
    ratings = Ratings(people, np.tile(np.arange(2, dtype=np.int32), 50), np.tile(np.float32([1, 2]), 50))
    nothing = Comparisons(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))
    source = PairSource(SharedData(items, tuple(map(str, range(50))), ratings, nothing), np.ones(50, bool))
    pairs = source.among(np.array([0, 1]), np.random.default_rng(0))
    assert len(pairs) == len(set(pairs.person_B.tolist())) == 5


def test_judgments_count_ratings_and_comparisons_of_those_who_are_kept() -> None:
    data = random_data(2, Kind(True, True))
    keep = np.array([True, False, True, True, True, True])
    source = PairSource(data, keep)
    expected = np.bincount(data.ratings.person_R, minlength=6) + np.bincount(data.comparisons.person_C, minlength=6)
    assert source.judgments_P.tolist() == np.where(keep, expected, 0).tolist()


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
