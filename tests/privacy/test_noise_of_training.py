"""How much noise each training draws, how often, and that nothing of the data decides it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2, kstest, norm

from idiolect.errors import InvalidInputError
from idiolect_adapters.training.clip_noise import SecureNoise, add_gaussian_noise, check_clip_norm
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import SubjectComparisons, releases, train_domain
from idiolect_adapters.training.user import PaddedComparisons, train_users


class Recorded:
    """Zeros, or `value` everywhere; remembers the shapes that were asked for."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return np.full(shape, self.value)


def recipe(steps: int, rank: int = 4, **changes: float) -> Recipe:
    values = {"clip_norm": 0.5, "prior": 2.0} | changes
    return Recipe(values["clip_norm"], values["prior"], steps, np.eye(rank))


def people(count: int, comparisons: int, rank: int = 4) -> PaddedComparisons:
    rng = np.random.default_rng(0)
    return PaddedComparisons(
        rng.normal(size=(count, comparisons, rank)), np.zeros((count, comparisons)), np.ones((count, comparisons))
    )


def subjects(count: int, rank: int = 4) -> SubjectComparisons:
    rng = np.random.default_rng(0)
    return SubjectComparisons(count, np.arange(count), rng.normal(size=(count, rank)), np.zeros(count), np.ones(count))


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("comparisons", [0, 1, 50])
def test_a_user_training_of_t_steps_draws_t_times(steps: int, comparisons: int) -> None:
    noise = Recorded()
    train_users(people(3, comparisons), recipe(steps), 1.0, noise)
    assert noise.shapes == [(3, 4)] * steps


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_a_domain_training_draws_once_for_the_count_and_once_a_step(steps: int, count: int) -> None:
    noise = Recorded()
    train_domain(subjects(count), recipe(steps), 1.0, noise)
    assert noise.shapes == [(1,)] + [(1, 4)] * steps
    assert len(noise.shapes) == releases(recipe(steps))


def test_the_draws_do_not_depend_on_what_people_said() -> None:
    quiet, loud = Recorded(), Recorded()
    data = people(2, 5)
    train_users(data, recipe(6), 1.0, quiet)
    train_users(
        PaddedComparisons(1e3 * data.differences_P_C_K, data.margins_P_C, 0 * data.weights_P_C), recipe(6), 1.0, loud
    )
    assert quiet.shapes == loud.shapes


@pytest.mark.parametrize(("multiplier", "clip_norm", "prior"), [(1.0, 0.5, 2.0), (3.0, 0.5, 2.0), (2.0, 4.0, 7.0)])
def test_the_noise_of_a_step_is_the_multiplier_times_the_clip_norm(
    multiplier: float, clip_norm: float, prior: float
) -> None:
    once = recipe(1, clip_norm=clip_norm, prior=prior)
    adapters = train_users(people(2, 0), once, multiplier, Recorded(1.0))
    assert np.allclose(adapters, multiplier * clip_norm / (prior + 1.0), rtol=1e-12)


def test_a_batch_without_comparisons_gets_pure_noise_of_the_full_size() -> None:
    count, multiplier = 20_000, 1.7
    for data in (people(count, 0), people(count, 3)):
        silent = PaddedComparisons(data.differences_P_C_K, data.margins_P_C, 0.0 * data.weights_P_C)
        adapters = train_users(silent, recipe(1), multiplier, SecureNoise())
        deviation = multiplier * 0.5 / 3.0
        draws = adapters.size
        assert abs(adapters.mean()) < 5.5 * deviation / math.sqrt(draws)
        assert abs(adapters.std() / deviation - 1.0) < 5.5 / math.sqrt(2.0 * draws)


def test_every_step_adds_noise_of_its_own() -> None:
    """With a huge prior a step forgets the one before, so equal noise in each would show as equal adapters."""
    seen = [train_users(people(1, 0), recipe(steps, prior=1e9), 1.0, SecureNoise())[0] * 1e9 for steps in (1, 2, 3)]
    assert len({float(value) for row in seen for value in row}) == 12


def test_a_domain_without_anybody_draws_noise_like_any_other() -> None:
    adapters = np.array([train_domain(subjects(0), recipe(1), 1.0, SecureNoise()) for _ in range(300)])
    assert np.all(adapters != 0.0)
    assert len(np.unique(adapters)) == adapters.size


def test_the_number_of_subjects_is_released_with_noise_of_the_same_multiplier() -> None:
    """The count scales prior and curvature: with sensitivity 1 its noise is the multiplier itself."""

    class OnlyTheCount(Recorded):
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.ones(shape) if shape == (1,) else np.zeros(shape)

    data = subjects(10)
    plain = train_domain(data, recipe(1), 0.0, Recorded())
    for multiplier in (0.5, 3.0):
        noisy = train_domain(data, recipe(1), multiplier, OnlyTheCount())
        # One step from zero is sums / (count * (prior + curvature)).
        assert np.allclose(noisy * (10.0 + multiplier), plain * 10.0)


def test_a_count_that_noise_made_negative_does_not_break_the_training() -> None:
    adapter = train_domain(subjects(3), recipe(3), 2.0, Recorded(-50.0))
    assert np.isfinite(adapter).all()


@pytest.mark.parametrize("multiplier", [float("nan"), float("inf"), -1.0, -1e-9, "2", True])
def test_a_noise_multiplier_that_would_silently_mean_none_is_refused(multiplier: float) -> None:
    with pytest.raises(InvalidInputError, match=r"noise multiplier .*not usable"):
        train_users(people(1, 2), recipe(2), multiplier, SecureNoise())


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf"), "1", True, None])
def test_a_clip_norm_that_bounds_nothing_is_refused(clip_norm: float) -> None:
    with pytest.raises(InvalidInputError, match="clip norm"):
        check_clip_norm(clip_norm)
    with pytest.raises(InvalidInputError, match="clip norm"):
        Recipe(clip_norm, 1.0, 1, np.eye(1))


@pytest.mark.parametrize("steps", [0, -1, 21, 1000])
def test_a_recipe_has_one_to_twenty_steps(steps: int) -> None:
    with pytest.raises(InvalidInputError, match=f"{steps} steps"):
        Recipe(1.0, 1.0, steps, np.eye(1))


@pytest.mark.parametrize(("prior", "curvature"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_a_recipe_with_an_unusable_prior_or_curvature_is_refused(prior: float, curvature: float) -> None:
    with pytest.raises(InvalidInputError, match="prior and curvature"):
        Recipe(1.0, prior, 1, np.full((1, 1), curvature))


BY_CHANCE = 1e-7  # how often a test may fail though all is well


@pytest.mark.parametrize("steps", [1, 4])
def test_the_noise_of_released_adapters_is_chi_squared_over_runs_steps_and_coordinates(steps: int) -> None:
    """T independent draws of the stated size add up to T times the variance; equal or missing ones would not."""
    summing = Recipe(0.5, 1e-12, steps, np.eye(4))  # an adapter is the plain sum of all draws
    runs = [train_users(people(1, 0), summing, 1.7, SecureNoise())[0] for _ in range(4_000)]
    found = np.array(runs) / (1.7 * 0.5 * math.sqrt(steps))
    total = float((found**2).sum())
    assert BY_CHANCE < chi2.cdf(total, found.size) < 1 - BY_CHANCE
    per_run = (found**2).sum(axis=1)  # each of 4 independent coordinates
    assert kstest(per_run, chi2(4).cdf).pvalue > BY_CHANCE
    assert kstest(found.ravel(), "norm").pvalue > BY_CHANCE


def test_the_draws_of_coordinates_steps_people_and_runs_are_independent() -> None:
    runs, steps = 3_000, 3
    drawn = np.zeros((runs, steps, 2, 4))  # of two people

    class Kept(SecureNoise):
        def __init__(self, run: int) -> None:
            self.at = (run, 0)

        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            (run, step), values = self.at, super().normal(shape)
            drawn[run, step], self.at = values, (run, step + 1)
            return values

        any_order = False

    for run in range(runs):
        train_users(people(2, 1), recipe(steps), 1.0, Kept(run))
    flat = drawn.reshape(runs, -1)
    correlation = np.corrcoef(np.concatenate([flat[:-1], flat[1:]], axis=1).T)  # within a run, and with the next
    apart = correlation[np.triu_indices(len(correlation), 1)]
    largest = 2.0 * norm.isf(BY_CHANCE / len(apart)) / math.sqrt(runs)
    assert np.abs(apart).max() < largest
    squares = np.corrcoef((flat**2).T)
    assert np.abs(squares[np.triu_indices(len(squares), 1)]).max() < largest


def test_noise_is_added_to_every_entry_independently() -> None:
    sums = np.arange(12.0).reshape(3, 4)
    noisy = add_gaussian_noise(sums, noise_multiplier=2.0, clip_norm=0.5, noise=SecureNoise())
    assert noisy.shape == sums.shape
    assert len(np.unique(noisy - sums)) == 12
    assert np.array_equal(sums, np.arange(12.0).reshape(3, 4))  # the caller's sums are left alone
