"""The private global model: what each subject may add, what noise hides it, and that the basis is found anyway."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from idiolect.errors import InvalidInputError
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import SubjectComparisons
from idiolect_adapters.training.private_global import (
    clipped_moment,
    halves,
    leading_directions,
    private_global,
    release_private_global,
    releases,
    to_matrix,
    to_vector,
    without_noise,
)

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")

RANK = 3
value = st.one_of(
    st.floats(-10, 10),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1e308, -1e308, 5e-324, np.nan, np.inf, -np.inf]),
)


class Recorded:
    """Zeros; remembers the shapes that were asked for."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return np.zeros(shape)


def recipe(steps: int = 3, rank: int = RANK, clip_norm: float = 0.5) -> Recipe:
    return Recipe(clip_norm, 1.0, steps, np.eye(rank))


def subjects(parts: list[np.ndarray], margin: float = 0.0) -> SubjectComparisons:
    """`parts`: the differences [C, D] of each subject."""
    rows = np.concatenate([*parts, np.zeros((0, RANK))])
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return SubjectComparisons(len(parts), owner.astype(np.int64), rows, np.full(len(rows), margin), np.ones(len(rows)))


# What one subject may add


@given(st.data(), st.floats(1e-3, 1e3))
@settings(max_examples=200, deadline=None)
def test_a_subject_more_or_less_moves_the_moment_by_at_most_the_clip_norm(
    data: st.DataObject, clip_norm: float
) -> None:
    counts = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    every = data.draw(st.lists(value, min_size=sum(counts) * RANK, max_size=sum(counts) * RANK))
    rows = np.split(np.array(every).reshape(-1, RANK), np.cumsum(counts)[:-1])
    half = [np.array(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), np.int64) for n in counts]
    margin, reward = data.draw(value), np.array(data.draw(st.lists(st.floats(-1e3, 1e3), min_size=RANK, max_size=RANK)))
    gone = data.draw(st.integers(0, len(counts) - 1))

    def moment(kept: list[int]) -> np.ndarray:
        half_C = np.concatenate([*(half[i] for i in kept), np.zeros(0, np.int64)])
        return clipped_moment(subjects([rows[i] for i in kept], margin), half_C, reward, clip_norm)

    everybody = list(range(len(counts)))
    moved = np.linalg.norm(moment(everybody) - moment([i for i in everybody if i != gone]))
    assert moved <= clip_norm * (1.0 + 1e-9 * len(counts))


def test_a_subject_who_says_one_thing_as_loudly_as_can_be_reaches_the_bound() -> None:
    loud = np.tile([1e6, 0.0, 0.0], (4, 1))
    moment_V = clipped_moment(subjects([loud], margin=-1e9), np.array([0, 1, 0, 1]), np.zeros(RANK), 0.7)
    assert np.linalg.norm(moment_V) == pytest.approx(0.7, rel=1e-9)


@pytest.mark.parametrize("half", [[0, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1]])
def test_whoever_is_in_one_half_alone_adds_nothing_to_the_basis(half: list[int]) -> None:
    loud = np.tile([1e6, 0.0, 0.0], (4, 1))
    assert not clipped_moment(subjects([loud]), np.array(half), np.zeros(RANK), 0.7).any()


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_symmetric_matrix_and_its_vector_have_one_norm_and_are_one_thing(size: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    matrix = matrix + matrix.T
    vector = to_vector(matrix)
    assert len(vector) == size * (size + 1) // 2
    assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(matrix))
    assert np.allclose(to_matrix(vector, size), matrix)


# Halves


def test_the_two_halves_of_a_subject_share_no_text() -> None:
    rng = np.random.default_rng(0)
    group_I = np.repeat(np.arange(12), 10)
    subject_C = np.repeat(np.arange(40), 30)
    group_C = np.where(subject_C < 20, rng.integers(0, 12, len(subject_C)), 7)  # some speak about one prompt alone
    chosen, rejected = (10 * group_C + rng.integers(0, 10, len(subject_C)) for _ in range(2))
    half_C = halves(subject_C, chosen, rejected, group_I, rng)
    assert set(half_C.tolist()) == {-1, 0, 1}
    both = 0
    for subject in range(40):
        texts = [
            set(chosen[(subject_C == subject) & (half_C == half)])
            | set(rejected[(subject_C == subject) & (half_C == half)])
            for half in (0, 1)
        ]
        assert not texts[0] & texts[1]
        both += all(texts)
    assert both > 30


def test_who_else_is_there_changes_nobodys_halves() -> None:
    group_I = np.repeat(np.arange(6), 4)
    rng = np.random.default_rng(1)
    subject_C, chosen, rejected = np.repeat(np.arange(5), 20), rng.integers(0, 24, 100), rng.integers(0, 24, 100)
    whole = halves(subject_C, chosen, rejected, group_I, np.random.default_rng(2))
    others = subject_C != 4
    alone = halves(subject_C[others], chosen[others], rejected[others], group_I, np.random.default_rng(2))
    assert np.array_equal(whole[others], alone)


# Then the noise


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("people", [0, 1, 9])
def test_the_count_every_step_and_the_moment_draw_their_noise_whoever_speaks(people: int, steps: int) -> None:
    noise = Recorded()
    data = subjects([np.ones((2, RANK))] * people)
    release_private_global(data, np.arange(len(data.subject_C)) % 2, recipe(steps), 1.0, noise)
    assert noise.shapes == [(1,)] + [(1, RANK)] * steps + [(RANK * (RANK + 1) // 2,)]
    assert len(noise.shapes) == releases(recipe(steps))


def test_the_noise_of_the_moment_is_the_multiplier_times_the_clip_norm_in_every_entry() -> None:
    multiplier, clip_norm, size, runs = 3.0, 0.5, 4, 400
    nobody = SubjectComparisons(0, np.zeros(0, np.int64), np.zeros((0, size)), np.zeros(0), np.zeros(0))
    draws = np.array(
        [
            to_vector(
                release_private_global(
                    nobody, np.zeros(0, np.int64), recipe(1, size, clip_norm), multiplier, SecureNoise()
                ).moment_D_D
            )
            for _ in range(runs)
        ]
    ) / (multiplier * clip_norm**2)
    low, high = chi2.ppf([1e-8, 1 - 1e-8], draws.size)
    assert low < (draws**2).sum() < high
    correlation = np.corrcoef(draws.T)[np.triu_indices(draws.shape[1], 1)]
    assert np.abs(correlation).max() < 6.5 / np.sqrt(runs)


@pytest.mark.parametrize("multiplier", [-1.0, float("nan"), float("inf"), "1", True])
def test_a_noise_multiplier_that_would_silently_mean_none_is_refused(multiplier: float) -> None:
    with pytest.raises(InvalidInputError):
        release_private_global(subjects([]), np.zeros(0, np.int64), recipe(), multiplier, Recorded())


@pytest.mark.parametrize("comparisons", [0, 1, 2])
def test_tiny_data_sets_are_trained_on_like_any_other(comparisons: int) -> None:
    data = subjects([np.ones((comparisons, RANK))])
    released = release_private_global(data, np.arange(comparisons) % 2, recipe(), 1.0, SecureNoise())
    made = private_global(released, recipe(), np.eye(RANK), 2, 1.0)
    assert made.basis_K_D.shape == (2, RANK)
    assert np.isfinite(made.reward_D).all()
    assert np.isfinite(made.basis_K_D).all()


# What is found


def planted(people: int, size: int, each: int = 20, seed: int = 0) -> tuple[SubjectComparisons, np.ndarray]:
    """Everybody likes direction 0; people differ along directions 1 and 2, and in nothing else."""
    rng = np.random.default_rng(seed)
    taste = np.zeros((people, size))
    taste[:, 0], taste[:, 1:3] = 0.5, 1.5 * rng.normal(size=(people, 2))
    subject_C = np.repeat(np.arange(people), each)
    rows = rng.normal(size=(people * each, size))
    first_better = rng.random(len(rows)) < 1.0 / (1.0 + np.exp(-(rows * taste[subject_C]).sum(axis=1)))
    rows[~first_better] *= -1.0
    half_C = np.tile(np.arange(each) % 2, people)
    return SubjectComparisons(people, subject_C, rows, np.zeros(len(rows)), np.ones(len(rows))), half_C


def share_within(basis_K_D: np.ndarray, directions: slice) -> float:
    """Of the length of the basis."""
    return float((basis_K_D[:, directions] ** 2).sum() / (basis_K_D**2).sum())


@pytest.mark.parametrize("multiplier", [0.0, 3.0])
def test_what_people_share_is_the_reward_and_what_they_differ_in_the_basis(multiplier: float) -> None:
    size = 8
    data, half_C = planted(4000, size)
    one = Recipe(1.0, 0.01, 8, 0.2 * np.eye(size))
    released = release_private_global(data, half_C, one, multiplier, SecureNoise())
    made = private_global(released, one, 1e-3 * np.eye(size), 2, multiplier)
    assert made.reward_D[0] > 0.2
    assert np.abs(made.reward_D[1:]).max() < 0.25 * made.reward_D[0]
    assert share_within(made.basis_K_D, slice(1, 3)) > 0.9


def test_chance_of_what_was_shown_leaves_no_trace_in_the_halves() -> None:
    """Without tastes the product of halves is zero on average; a plain second moment would be far from it."""
    size, people = 6, 3000
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(people * 4, size)) * rng.choice([1.0, 3.0], size=size)
    data = SubjectComparisons(people, np.repeat(np.arange(people), 4), rows, np.zeros(len(rows)), np.ones(len(rows)))
    moment = to_matrix(clipped_moment(data, np.tile([0, 1], people * 2), np.zeros(size), 50.0), size) * 50.0 / people
    plain = (rows / 2.0).T @ (rows / 2.0) / len(rows) / 2.0
    assert np.linalg.norm(moment) < 0.1 * np.linalg.norm(plain)


def test_where_noise_hides_the_tastes_the_expected_ones_are_kept() -> None:
    size = 8
    data, half_C = planted(20, size)
    expected = np.diag([0.0] * 5 + [3.0, 2.0, 1.0])
    one = Recipe(1.0, 0.01, 8, 0.2 * np.eye(size))
    released = release_private_global(data, half_C, one, 1000.0, SecureNoise())
    hidden = replace(released, moment_D_D=0.1 * released.moment_D_D)  # noise alone stands out of itself now and then
    made = private_global(hidden, one, expected, 2, 1000.0)
    assert np.allclose(made.basis_K_D**2, [[0] * 5 + [3.0, 0.0, 0.0], [0] * 6 + [2.0, 0.0]], atol=1e-5)


@pytest.mark.parametrize("size", [12, 48])
def test_the_spectrum_of_noise_is_cut_and_what_stands_out_is_shrunk_back(size: int) -> None:
    rng = np.random.default_rng(4)
    deviation = 0.1
    noise = to_matrix(rng.normal(size=size * (size + 1) // 2), size) * np.sqrt(2.0) * deviation
    direction = np.ones(size) / np.sqrt(size)
    strong = 6.0 * deviation * np.sqrt(size)
    cleaned = without_noise(noise + strong * np.outer(direction, direction), deviation)
    values, axes = np.linalg.eigh(cleaned)
    assert values[-1] == pytest.approx(strong, rel=0.1)
    assert abs(axes[:, -1] @ direction) > 0.95
    assert values[:-2].max() < 1e-9


def test_leading_directions_come_in_order_and_are_as_long_as_tastes_are_spread() -> None:
    basis = leading_directions(np.diag([1.0, 9.0, 4.0]), 2)
    assert np.allclose(np.abs(basis), [[0.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
