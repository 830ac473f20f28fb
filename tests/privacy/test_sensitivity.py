"""The heart of every claim: one unit more or less moves a step's sums by at most the clip norm, whatever it says.

The trainings hand out only adapters, so the descent is replaced by one that returns a step's sums at any adapter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.signals.data import Comparisons
from idiolect_adapters.training import domain as domain_module
from idiolect_adapters.training import user as user_module
from idiolect_adapters.training.clip_noise import clip_rows
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import SubjectComparisons, train_domain
from idiolect_adapters.training.user import PaddedComparisons, pad_comparisons, train_users

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")

SLACK = 1.0 + 1e-9
Train = Callable[[Recipe], np.ndarray]

wild = st.floats(allow_nan=True, allow_infinity=True, width=64)
usual = st.floats(-10, 10)
value = st.one_of(usual, wild, st.sampled_from([0.0, 1e308, -1e308, 5e-324, np.nan, np.inf, -np.inf]))
clip = st.floats(1e-3, 1e3)


class NoNoise:
    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


def sums_at(train: Train, adapter: np.ndarray, clip_norm: float) -> np.ndarray:
    """The clipped sums that a training computes at `adapter`."""
    rank = adapter.shape[-1]
    recipe = Recipe(clip_norm, 1.0, 1, np.zeros((rank, rank)))

    def one_step(sums: Callable[[np.ndarray], np.ndarray], *_: object) -> np.ndarray:
        return sums(adapter[None])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_module, "noisy_descent", one_step)
        patch.setattr(domain_module, "noisy_descent", one_step)
        return train(recipe)


def users(rows: np.ndarray, margins: np.ndarray, weights: np.ndarray) -> Train:
    data = PaddedComparisons(rows[None], margins[None], weights[None])
    return lambda recipe: train_users(data, recipe, 1.0, NoNoise())


def domain(subject_rows: list[np.ndarray], margins: list[np.ndarray], weights: list[np.ndarray], rank: int) -> Train:
    subjects = np.repeat(np.arange(len(subject_rows)), [len(rows) for rows in subject_rows])
    data = SubjectComparisons(
        len(subject_rows),
        subjects.astype(np.int64),
        np.concatenate([*subject_rows, np.zeros((0, rank))]),
        np.concatenate([*margins, np.zeros(0)]),
        np.concatenate([*weights, np.zeros(0)]),
    )
    return lambda recipe: train_domain(data, recipe, 1.0, NoNoise())


def draw_rows(data: st.DataObject, count: int, rank: int) -> np.ndarray:
    drawn = data.draw(st.lists(st.lists(value, min_size=rank, max_size=rank), min_size=count, max_size=count))
    return np.array(drawn, dtype=np.float64).reshape(count, rank)


def draw_values(data: st.DataObject, count: int, element: st.SearchStrategy[float] = value) -> np.ndarray:
    return np.array(data.draw(st.lists(element, min_size=count, max_size=count)), dtype=np.float64)


@given(st.data(), clip)
@settings(max_examples=300, deadline=None)
def test_no_row_is_longer_than_the_clip_norm(data: st.DataObject, clip_norm: float) -> None:
    rows = draw_rows(data, data.draw(st.integers(0, 5)), data.draw(st.integers(1, 5)))
    clipped = clip_rows(rows, clip_norm)
    assert clipped.shape == rows.shape
    assert np.isfinite(clipped).all()
    assert np.all(np.linalg.norm(clipped, axis=-1) <= clip_norm * SLACK)


@given(st.data(), clip)
@settings(max_examples=200, deadline=None)
def test_a_short_row_stays_as_it_is_and_a_long_one_keeps_its_direction(data: st.DataObject, clip_norm: float) -> None:
    rank = data.draw(st.integers(1, 5))
    row = np.array(data.draw(st.lists(usual, min_size=rank, max_size=rank)))
    norm = np.linalg.norm(row)
    clipped = clip_rows(row[None], clip_norm)[0]
    if norm <= clip_norm * (1 - 1e-12):
        assert np.array_equal(clipped, row)
    else:
        assert np.allclose(clipped, row * (clip_norm / norm), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 50.0, 1e6])
@pytest.mark.parametrize(
    "row", [[0.0, 0.0], [1e308, 1e308], [5e-324, 0.0], [1e-200, -1e-200], [np.nan, 1.0], [np.inf, 0]]
)
def test_extreme_rows_are_clipped_without_a_warning(row: list[float], clip_norm: float) -> None:
    clipped = clip_rows(np.array([row]), clip_norm)[0]
    expected = 0.0 if not np.isfinite(row).all() else min(clip_norm, float(np.hypot(row[0] / 4, row[1] / 4)) * 4)
    assert np.hypot(*clipped) == pytest.approx(expected, rel=1e-9)


@given(st.data(), clip)
@settings(max_examples=300, deadline=None)
def test_a_comparison_more_or_less_moves_a_users_sums_by_at_most_the_clip_norm(
    data: st.DataObject, clip_norm: float
) -> None:
    count, rank = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    rows, margins = draw_rows(data, count, rank), draw_values(data, count)
    weights = draw_values(data, count, st.floats(0, 1))
    adapter = draw_values(data, rank, st.floats(-1e6, 1e6))
    gone = data.draw(st.integers(0, count - 1))
    all_of_it = sums_at(users(rows, margins, weights), adapter, clip_norm)
    kept = np.delete(np.arange(count), gone)
    without = sums_at(users(rows[kept], margins[kept], weights[kept]), adapter, clip_norm)
    silenced = sums_at(users(rows, margins, np.where(np.arange(count) == gone, 0.0, weights)), adapter, clip_norm)
    tolerance = 1e-9 * clip_norm * count
    assert np.isfinite(all_of_it).all()
    assert np.linalg.norm(all_of_it - without) <= clip_norm + tolerance
    assert np.linalg.norm(all_of_it - silenced) <= clip_norm + tolerance


@given(st.data(), clip)
@settings(max_examples=150, deadline=None)
def test_a_subject_more_or_less_moves_a_domains_sums_by_at_most_the_clip_norm(
    data: st.DataObject, clip_norm: float
) -> None:
    rank, subjects = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.integers(0, 4), min_size=subjects, max_size=subjects))
    rows = [draw_rows(data, count, rank) for count in counts]
    margins = [draw_values(data, count) for count in counts]
    weights = [draw_values(data, count) for count in counts]  # also negative, infinite, NaN
    adapter = draw_values(data, rank, st.floats(-1e6, 1e6))
    gone = data.draw(st.integers(0, subjects - 1))
    all_of_them = sums_at(domain(rows, margins, weights, rank), adapter, clip_norm)
    others = [[part for i, part in enumerate(parts) if i != gone] for parts in (rows, margins, weights)]
    without = sums_at(domain(others[0], others[1], others[2], rank), adapter, clip_norm)
    assert np.isfinite(all_of_them).all()
    tolerance = 1e-9 * clip_norm * subjects
    assert np.linalg.norm(all_of_them - without) <= clip_norm + tolerance


@pytest.mark.parametrize("comparisons", [1, 10_000])
@pytest.mark.parametrize("says", ["the same", "contradictions", "huge"])
def test_a_subject_moves_a_domain_no_more_with_ten_thousand_comparisons_than_with_one(
    comparisons: int, says: str
) -> None:
    rank, clip_norm = 3, 0.5
    rng = np.random.default_rng(0)
    others = [rng.normal(size=(5, rank)) for _ in range(4)]
    row = np.array([3.0, -2.0, 1.0]) * (1e200 if says == "huge" else 1.0)
    flood = np.tile(row, (comparisons, 1))
    if says == "contradictions":
        flood[::2] *= -1.0

    def sums(parts: list[np.ndarray]) -> np.ndarray:
        zeros, ones = [np.zeros(len(p)) for p in parts], [np.ones(len(p)) for p in parts]
        return sums_at(domain(parts, zeros, ones, rank), np.array([0.1, 0.2, -0.3]), clip_norm)

    moved = np.linalg.norm(sums([*others, flood]) - sums(others))
    assert moved <= clip_norm * SLACK
    if says != "contradictions" or comparisons == 1:
        assert moved == pytest.approx(clip_norm, rel=1e-6)  # the bound is reached: it is no looser than it says


def test_a_subject_in_two_shards_is_one_contribution() -> None:
    """What they said in one data set and in another is averaged and clipped together, wherever the rows lie."""
    rank, clip_norm, adapter = 2, 0.5, np.zeros(2)
    loud, other = np.array([[90.0, 0.0]]), np.array([[0.0, 80.0]])
    shards = SubjectComparisons(
        2, np.array([0, 1, 0, 1, 0]), np.concatenate([loud, other] * 2 + [loud]), np.zeros(5), np.ones(5)
    )
    apart = sums_at(lambda recipe: train_domain(shards, recipe, 1.0, NoNoise()), adapter, clip_norm)
    assert np.allclose(apart, [[clip_norm, clip_norm]])
    once = domain([loud, other], [np.zeros(1)] * 2, [np.ones(1)] * 2, rank)
    assert np.allclose(apart, sums_at(once, adapter, clip_norm))


@pytest.mark.parametrize("comparisons", [0, 1, 2])
def test_tiny_data_sets_are_trained_on_like_any_other(comparisons: int) -> None:
    rows = np.ones((comparisons, 3))
    recipe = Recipe(0.5, 1.0, 4, np.eye(3))
    mine = PaddedComparisons(rows[None], np.zeros((1, comparisons)), np.ones((1, comparisons)))
    ours = SubjectComparisons(1, np.zeros(comparisons, np.int64), rows, np.zeros(comparisons), np.ones(comparisons))
    for adapter in (train_users(mine, recipe, 0.0, NoNoise()), train_domain(ours, recipe, 0.0, NoNoise())):
        assert np.isfinite(adapter).all()
        assert bool(adapter.any()) == (comparisons > 0)


def test_a_comparison_that_says_as_much_as_it_can_reaches_the_clip_norm() -> None:
    rows, margins, weights = np.array([[1e4, 0.0], [0.1, 0.1]]), np.array([-50.0, 0.0]), np.ones(2)
    moved = sums_at(users(rows, margins, weights), np.zeros(2), 0.7) - sums_at(
        users(rows[1:], margins[1:], weights[1:]), np.zeros(2), 0.7
    )
    assert np.linalg.norm(moved) == pytest.approx(0.7, rel=1e-9)


def test_the_two_responses_of_a_comparison_are_one_contribution() -> None:
    """Each response alone would be clipped to 1 and the two would add up to 2; together they are 1."""
    taste_I_K = np.array([[50.0, 0.0], [-50.0, 0.0]])
    one = Comparisons(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.int32), np.ones(1, np.float32))
    padded = pad_comparisons(one, np.zeros(1, np.int64), taste_I_K, np.zeros(1), limit=1)
    adapter = train_users(padded, Recipe(1.0, 1.0, 1, np.zeros((2, 2))), 0.0, NoNoise())
    assert np.allclose(adapter, [[1.0, 0.0]])


def test_duplicates_count_as_often_as_they_are_sent_each_within_its_own_bound() -> None:
    row = np.array([[100.0, 0.0]])
    for copies in (1, 2, 50):
        rows = np.repeat(row, copies, axis=0)
        sums = sums_at(users(rows, np.zeros(copies), np.ones(copies)), np.zeros(2), 0.25)
        assert np.allclose(sums, [[0.25 * copies, 0.0]])


def test_the_weight_of_a_comparison_can_not_lift_it_over_the_clip_norm() -> None:
    taste_I_K = np.array([[9.0], [0.0]])
    weighty = Comparisons(
        np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.int32), np.array([1e30], np.float32)
    )
    padded = pad_comparisons(weighty, np.zeros(1, np.int64), taste_I_K, np.zeros(1), limit=3)
    assert padded.weights_P_C.max() == 1.0
    adapter = train_users(padded, Recipe(2.0, 1.0, 1, np.zeros((1, 1))), 0.0, NoNoise())
    assert adapter.item() <= 2.0 * SLACK
