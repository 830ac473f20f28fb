"""The batched user training against an optimiser that is slow and obviously right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from idiolect.signals.data import Comparisons
from idiolect_adapters.training.clip_noise import clip_lengths, clip_rows, directions_and_lengths
from idiolect_adapters.training.descent import Recipe, noisy_descent
from idiolect_adapters.training.user import BLOCK, PaddedComparisons, pad_comparisons, train_users

NO_CLIPPING = 1e9


class NoNoise:
    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


class Replayed:
    """The same noise for a person, alone or in a batch: step by step, row by row."""

    def __init__(self, draws_T_P_K: np.ndarray) -> None:
        self.draws = list(draws_T_P_K)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        drawn = self.draws.pop(0)
        assert drawn.shape == shape
        return drawn


class OnesInAnyOrder:
    """Noise of which every draw is the same, so that threads may take it as they come; counts what was drawn."""

    any_order = True

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return np.ones(shape)


def slow_and_obvious(data: PaddedComparisons, recipe: Recipe, noise_multiplier: float) -> np.ndarray:
    """Person by person and comparison by comparison, with noise of 1 everywhere."""
    rank = data.differences_P_C_K.shape[2]
    step = np.linalg.inv(recipe.prior * np.eye(rank) + recipe.curvature_K_K)
    adapters = []
    for rows, margins, weights in zip(data.differences_P_C_K, data.margins_P_C, data.weights_P_C, strict=True):
        adapter = np.zeros(rank)
        for _ in range(recipe.steps):
            total = np.zeros(rank)
            for row, margin, weight in zip(rows, margins, weights, strict=True):
                gradient = weight * expit(-(margin + row @ adapter)) * row
                total += gradient * min(1.0, recipe.clip_norm / max(np.linalg.norm(gradient), 1e-300))
            total += noise_multiplier * recipe.clip_norm
            adapter = adapter + (total - recipe.prior * adapter) @ step
        adapters.append(adapter)
    return np.array(adapters).reshape(len(adapters), rank)


def random_people(seed: int, people: int = 5, comparisons: int = 30, rank: int = 4) -> PaddedComparisons:
    rng = np.random.default_rng(seed)
    taste_P_K = rng.normal(size=(people, rank))
    differences = rng.normal(size=(people, comparisons, rank))
    flip = rng.random((people, comparisons)) > expit(np.einsum("pck,pk->pc", differences, taste_P_K))
    differences[flip] *= -1.0
    margins = 0.5 * rng.normal(size=(people, comparisons))
    return PaddedComparisons(differences, margins, rng.random((people, comparisons)))


def hessian_at_zero(data: PaddedComparisons, person: int) -> np.ndarray:
    p = expit(data.margins_P_C[person])
    weighted = data.differences_P_C_K[person] * (data.weights_P_C[person] * p * (1 - p))[:, None]
    return weighted.T @ data.differences_P_C_K[person]


def reference(data: PaddedComparisons, person: int, prior: float) -> np.ndarray:
    rows, margins, weights = (
        data.differences_P_C_K[person],
        data.margins_P_C[person],
        data.weights_P_C[person],
    )

    def loss(adapter: np.ndarray) -> float:
        total = 0.5 * prior * float(adapter @ adapter)
        for row, margin, weight in zip(rows, margins, weights, strict=True):
            total += weight * float(np.logaddexp(0.0, -(margin + row @ adapter)))
        return total

    found = minimize(loss, np.zeros(rows.shape[1]), method="BFGS", options={"gtol": 1e-9})
    return np.asarray(found.x)


@pytest.mark.parametrize("prior", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_without_noise_and_clipping_it_finds_the_minimum_of_the_penalised_loss(seed: int, prior: float) -> None:
    data = random_people(seed)
    for person in range(5):
        alone = PaddedComparisons(*(getattr(data, name)[person : person + 1] for name in data.__slots__))
        recipe = Recipe(NO_CLIPPING, prior, 20, hessian_at_zero(data, person))
        assert np.allclose(train_users(alone, recipe, 0.0, NoNoise())[0], reference(data, person, prior), atol=1e-4)


def test_a_curvature_that_is_only_typical_reaches_the_same_minimum() -> None:
    data = random_people(7)
    typical = np.mean([hessian_at_zero(data, person) for person in range(5)], axis=0) * 1.3
    found = train_users(data, Recipe(NO_CLIPPING, 3.0, 20, typical), 0.0, NoNoise())
    expected = [reference(data, person, 3.0) for person in range(5)]
    assert np.allclose(found, expected, atol=1e-3)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 7), st.integers(1, 5), st.floats(0.05, 5))
@settings(max_examples=60, deadline=None)
def test_a_batch_of_people_equals_one_person_at_a_time(
    seed: int, people: int, comparisons: int, rank: int, clip_norm: float
) -> None:
    data = random_people(seed, people, comparisons, rank)
    steps = 4
    recipe = Recipe(clip_norm, 1.5, steps, np.eye(rank))
    draws = np.random.default_rng(seed).normal(size=(steps, people, rank))
    together = train_users(data, recipe, 0.8, Replayed(draws))
    for person in range(people):
        alone = PaddedComparisons(*(getattr(data, name)[person : person + 1] for name in data.__slots__))
        one = train_users(alone, recipe, 0.8, Replayed(draws[:, person : person + 1]))
        assert np.allclose(together[person], one[0], rtol=1e-10, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_padding_rows_change_nothing(seed: int, padding: int) -> None:
    data = random_people(seed, 3, 5, 2)
    rng = np.random.default_rng(seed)
    padded = PaddedComparisons(
        np.concatenate([data.differences_P_C_K, 1e6 * rng.normal(size=(3, padding, 2))], axis=1),
        np.concatenate([data.margins_P_C, 1e6 * rng.normal(size=(3, padding))], axis=1),
        np.concatenate([data.weights_P_C, np.zeros((3, padding))], axis=1),
    )
    recipe = Recipe(0.7, 1.0, 6, np.eye(2))
    assert np.allclose(
        train_users(padded, recipe, 0.0, NoNoise()), train_users(data, recipe, 0.0, NoNoise()), rtol=1e-10, atol=1e-12
    )


def test_the_order_of_a_persons_comparisons_does_not_matter() -> None:
    data = random_people(3)
    order = np.random.default_rng(0).permutation(30)
    shuffled = PaddedComparisons(*(getattr(data, name)[:, order] for name in data.__slots__))
    recipe = Recipe(0.5, 1.0, 10, np.eye(4))
    assert np.allclose(
        train_users(data, recipe, 0.0, NoNoise()), train_users(shuffled, recipe, 0.0, NoNoise()), rtol=1e-9, atol=1e-12
    )


def test_an_endless_prior_leaves_no_adapter() -> None:
    data = random_people(1)
    sizes = [
        np.abs(train_users(data, Recipe(1.0, prior, 20, np.eye(4)), 0.0, NoNoise())).max() for prior in (1, 1e3, 1e12)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-9


def test_people_who_contradict_themselves_learn_nothing() -> None:
    row = np.array([1.0, -2.0, 0.5])
    data = PaddedComparisons(np.array([[row, -row] * 5]), np.zeros((1, 10)), np.ones((1, 10)))
    assert np.allclose(train_users(data, Recipe(1.0, 1.0, 20, np.eye(3)), 0.0, NoNoise()), 0.0, atol=1e-12)


def test_swapped_answers_swap_the_adapter() -> None:
    data = random_people(2)
    calm = PaddedComparisons(data.differences_P_C_K, 0 * data.margins_P_C, data.weights_P_C)
    swapped = PaddedComparisons(-data.differences_P_C_K, 0 * data.margins_P_C, data.weights_P_C)
    recipe = Recipe(0.4, 1.0, 10, np.eye(4))
    assert np.allclose(train_users(calm, recipe, 0.0, NoNoise()), -train_users(swapped, recipe, 0.0, NoNoise()))


def test_what_the_stack_below_already_knows_is_not_learned_again() -> None:
    data = random_people(4)
    sure = PaddedComparisons(data.differences_P_C_K, data.margins_P_C + 30.0, data.weights_P_C)
    recipe = Recipe(1.0, 1.0, 10, np.eye(4))
    assert np.abs(train_users(sure, recipe, 0.0, NoNoise())).max() < 1e-8


@pytest.mark.parametrize("people", [0, 1, 3])
def test_nobody_and_nothing_are_fine(people: int) -> None:
    empty = PaddedComparisons(np.zeros((people, 0, 2)), np.zeros((people, 0)), np.zeros((people, 0)))
    assert np.array_equal(train_users(empty, Recipe(1.0, 1.0, 3, np.eye(2)), 0.0, NoNoise()), np.zeros((people, 2)))


@pytest.mark.parametrize("hostile", ["huge", "all the same", "ten thousand"])
def test_hostile_comparisons_leave_a_bounded_adapter(hostile: str) -> None:
    rng = np.random.default_rng(0)
    count = 10_000 if hostile == "ten thousand" else 50
    rows = rng.normal(size=(1, count, 3))
    if hostile == "huge":
        rows *= 1e150
    if hostile == "all the same":
        rows[:] = rows[:, :1]
    data = PaddedComparisons(rows, np.zeros((1, count)), np.ones((1, count)))
    adapter = train_users(data, Recipe(0.5, 1.0, 20, np.eye(3)), 0.0, NoNoise())
    assert np.isfinite(adapter).all()
    assert np.linalg.norm(adapter) <= 0.5 * count / 1.0  # sums over the prior


def test_the_descent_itself_solves_a_quadratic_in_one_step() -> None:
    """Gradient H B* - H B with curvature H and no prior to speak of is Newton's method."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    hessian = root @ root.T + np.eye(3)
    target = rng.normal(size=(1, 3))
    found = noisy_descent(
        lambda adapters: (target - adapters) @ hessian, (1, 3), Recipe(1.0, 1e-9, 1, hessian), 0.0, NoNoise()
    )
    assert np.allclose(found, target, atol=1e-6)


@given(st.integers(0, 10_000), st.integers(0, 7), st.integers(0, 9), st.integers(1, 5), st.floats(0.05, 5))
@settings(max_examples=60, deadline=None)
def test_the_fast_training_is_the_slow_and_obvious_one(
    seed: int, people: int, comparisons: int, rank: int, clip_norm: float
) -> None:
    data = random_people(seed, people, comparisons, rank)
    recipe = Recipe(clip_norm, 1.5, 5, np.eye(rank))
    found = train_users(data, recipe, 0.8, OnesInAnyOrder())
    assert np.allclose(found, slow_and_obvious(data, recipe, 0.8), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("people", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_people_in_blocks_on_all_cores_keep_their_order_and_each_draws_noise_of_their_own(people: int) -> None:
    data = random_people(5, people, comparisons=3, rank=2)
    recipe = Recipe(0.3, 1.0, 4, np.eye(2))
    noise = OnesInAnyOrder()
    found = train_users(data, recipe, 0.5, noise)
    assert np.allclose(found, slow_and_obvious(data, recipe, 0.5), rtol=1e-9, atol=1e-11)
    assert sum(rows for rows, _ in noise.shapes) == people * recipe.steps


def test_noise_whose_order_matters_is_drawn_for_all_people_at_once() -> None:
    data = random_people(6, BLOCK + 3, comparisons=2, rank=2)
    draws = np.random.default_rng(0).normal(size=(3, BLOCK + 3, 2))
    recipe = Recipe(0.3, 1.0, 3, np.eye(2))
    first, second = (train_users(data, recipe, 0.5, Replayed(draws)) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_error_in_one_block_is_not_lost_in_its_thread() -> None:
    class Fails(OnesInAnyOrder):
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            raise OSError("no randomness left")

    with pytest.raises(OSError, match="no randomness left"):
        train_users(random_people(1, 2 * BLOCK, 1, 2), Recipe(1.0, 1.0, 1, np.eye(2)), 1.0, Fails())


WILD = st.one_of(
    st.floats(-10, 10), st.floats(width=64), st.sampled_from([0.0, 1e308, -1e308, 5e-324, np.nan, np.inf, -np.inf])
)


@given(st.lists(st.lists(WILD, min_size=3, max_size=3), max_size=5), st.floats(1e-3, 1e3))
@settings(max_examples=300, deadline=None)
def test_clipping_lengths_along_unit_vectors_is_clipping_rows(rows: list[list[float]], clip_norm: float) -> None:
    rows_N_K = np.array(rows).reshape(-1, 3)
    directions, lengths = directions_and_lengths(rows_N_K)
    assert np.isfinite(directions).all()
    assert np.isfinite(lengths).all()
    clipped = clip_lengths(lengths, clip_norm)[:, None] * directions
    assert np.allclose(clipped, clip_rows(rows_N_K, clip_norm), rtol=1e-9, atol=1e-300)
    assert np.all(np.linalg.norm(clipped, axis=1) <= clip_norm * (1 + 1e-12))


def test_a_length_that_is_no_number_or_negative_counts_as_zero() -> None:
    assert clip_lengths(np.array([np.nan, -1.0, np.inf, 0.2]), 0.5).tolist() == [0.0, 0.0, 0.5, 0.2]


# From columns to a padded batch


def some_comparisons(people: list[int], weights: list[float] | None = None) -> Comparisons:
    count = len(people)
    return Comparisons(
        np.array(people, np.int32),
        np.arange(count, dtype=np.int32) % 6,
        (np.arange(count, dtype=np.int32) + 1) % 6,
        np.array(weights or [1.0] * count, np.float32),
    )


def test_each_person_gets_their_own_first_comparisons() -> None:
    taste = np.random.default_rng(0).normal(size=(6, 2))
    pairs = some_comparisons([2, 0, 2, 5, 2, 0, 2])
    margins = np.arange(7.0)
    padded = pad_comparisons(pairs, np.array([0, 2, 3, 5]), taste, margins, limit=3)
    assert padded.weights_P_C.tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert padded.margins_P_C.tolist() == [[1, 5, 0], [0, 2, 4], [0, 0, 0], [3, 0, 0]]
    expected = taste[pairs.chosen_C] - taste[pairs.rejected_C]
    assert np.array_equal(padded.differences_P_C_K[1], expected[[0, 2, 4]])
    assert np.array_equal(padded.differences_P_C_K[3, 1:], np.zeros((2, 2)))


def test_nobodys_comparisons_pad_to_zeros() -> None:
    padded = pad_comparisons(some_comparisons([]), np.array([0, 1]), np.ones((6, 3)), np.zeros(0), limit=4)
    assert padded.differences_P_C_K.shape == (2, 4, 3)
    assert not padded.weights_P_C.any()


def test_weights_are_bounded_to_zero_and_one() -> None:
    pairs = some_comparisons([0, 0, 0], [-3.0, 0.25, 7.0])
    padded = pad_comparisons(pairs, np.array([0]), np.ones((6, 1)), np.zeros(3), limit=3)
    assert padded.weights_P_C.tolist() == [[0.0, 0.25, 1.0]]
