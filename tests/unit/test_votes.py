"""Votes: what ratings and comparisons say about items, with nobody's flood counting for much."""

from __future__ import annotations

import numpy as np

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.training.votes import MAX_SAY, Votes, votes_of

ITEMS = tuple(Item("d", prompt, text) for prompt, text in (("p", "a"), ("p", "b"), ("p", "c"), ("q", "a"), ("q", "b")))


def ratings(*rows: tuple[int, int, float]) -> Ratings:
    person, item, value = zip(*rows, strict=True) if rows else ((), (), ())
    return Ratings(np.array(person, np.int32), np.array(item, np.int32), np.array(value, np.float32))


def comparisons(*rows: tuple[int, int, int, float]) -> Comparisons:
    person, chosen, rejected, weight = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Comparisons(
        np.array(person, np.int32),
        np.array(chosen, np.int32),
        np.array(rejected, np.int32),
        np.array(weight, np.float32),
    )


def votes(rated: Ratings, compared: Comparisons, keep: tuple[int, ...] = (0, 1, 2)) -> Votes:
    data = SharedData(ITEMS, ("x", "y", "z"), rated, compared)
    return votes_of(data, np.isin(np.arange(3), keep), np.random.default_rng(0))


def listed(found: Votes) -> set[tuple[int, int, float]]:
    return set(zip(found.person_V.tolist(), found.item_V.tolist(), found.liked_V.tolist(), strict=True))


def test_a_rating_is_a_vote_against_the_persons_own_mean_for_that_prompt() -> None:
    found = votes(ratings((0, 0, 5), (0, 1, 4), (0, 2, 3), (0, 3, 1), (0, 4, 2)), comparisons())
    assert listed(found) == {(0, 0, 1.0), (0, 2, 0.0), (0, 3, 0.0), (0, 4, 1.0)}  # item 1 is just the mean


def test_equal_ratings_and_single_ones_say_nothing() -> None:
    assert not len(votes(ratings((0, 0, 1), (0, 1, 1), (1, 3, 5)), comparisons()))


def test_a_comparison_is_a_vote_for_one_and_against_the_other() -> None:
    found = votes(ratings(), comparisons((1, 0, 2, 0.5)))
    assert listed(found) == {(1, 0, 1.0), (1, 2, 0.0)}
    assert found.weight_V.tolist() == [0.5, 0.5]


def test_who_is_not_kept_has_no_vote() -> None:
    found = votes(ratings((0, 0, 1), (0, 1, 2)), comparisons((1, 0, 2, 1.0), (2, 1, 0, 1.0)), keep=(2,))
    assert listed(found) == {(2, 1, 1.0), (2, 0, 0.0)}


def test_a_flood_of_one_person_weighs_no_more_than_the_bound() -> None:
    found = votes(ratings(), comparisons(*[(0, 0, 1, 1.0)] * 10_000, (1, 1, 0, 1.0)))
    total = np.bincount(found.person_V, found.weight_V)
    assert np.isclose(total[0], MAX_SAY)
    assert np.isclose(total[1], 2.0)


def test_a_flood_on_items_of_its_own_brings_few_of_them_and_drops_nobody_elses() -> None:
    many = tuple(Item("d", "p", f"text {n}") for n in range(5_000))
    shared = [(person, item, float(item % 2)) for person in (0, 1) for item in range(10)]
    flood = [(2, item, float(item % 2)) for item in (*range(8), *range(10, 5_000))]
    data = SharedData(many, ("x", "y", "flood"), ratings(*shared, *flood), comparisons())
    found = votes_of(data, np.ones(3, dtype=np.bool_), np.random.default_rng(0))
    seen = found.seen_items()
    assert set(range(10)) <= set(seen.tolist())
    assert len(seen) == 10 + MAX_SAY
    assert len(np.unique(seen[10:] // 1_000)) == 5  # at random, not the first ones
    assert (found.person_V < 2).sum() == 20
    assert np.isclose(found.weight_V[found.person_V == 2].sum(), MAX_SAY)


def test_who_judges_very_much_of_what_others_judge_too_is_read_whole() -> None:
    many = tuple(Item("d", "p", f"text {n}") for n in range(500))
    rows = [(n % 2, n, float(n % 3 > 0)) for n in range(500)] + [(2, n, float(n % 3 > 1)) for n in range(500)]
    data = SharedData(many, ("x", "y", "eager"), ratings(*rows), comparisons())
    found = votes_of(data, np.ones(3, dtype=np.bool_), np.random.default_rng(0))
    assert (found.person_V == 2).sum() == 500


def test_no_data_gives_no_votes() -> None:
    assert len(votes(ratings(), comparisons())) == 0
