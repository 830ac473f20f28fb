"""Batches of subjects: who draws them, how, and what divides the sum."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from idiolect.errors import InvalidInputError
from idiolect.privacy.accountant import sampled_run_for
from idiolect.privacy.budget import plan_run
from idiolect.privacy.events import SampledGaussianEvent, check_sample_rate
from idiolect.settings import load_settings
from idiolect_adapters.training import domain as domain_module
from idiolect_adapters.training import sampling
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import SubjectComparisons, releases, train_domain
from idiolect_adapters.training.sampling import poisson_sample

DELTA = 1e-5
BY_CHANCE = 1e-7  # how often a test may fail though all is well
RATES_THAT_ARE_NONE: list[Any] = [0, 0.0, -0.1, 1.0000001, 2, float("nan"), float("inf"), "0.5", True, None]


class Recorded:
    """Zeros, or `value` everywhere; remembers the shapes."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return np.full(shape, self.value)


def subjects(count: int, rank: int = 3, seed: int = 0) -> SubjectComparisons:
    rng = np.random.default_rng(seed)
    subject_C = np.repeat(np.arange(count), rng.integers(1, 4, count))
    rows = rng.normal(size=(len(subject_C), rank))
    return SubjectComparisons(count, subject_C, rows, np.zeros(len(rows)), np.ones(len(rows)))


def only(data: SubjectComparisons, batch_S: np.ndarray) -> SubjectComparisons:
    kept = batch_S[data.subject_C]
    renamed = (np.cumsum(batch_S) - 1)[data.subject_C[kept]]
    return SubjectComparisons(
        int(batch_S.sum()), renamed, data.differences_C_K[kept], data.margins_C[kept], data.weights_C[kept]
    )


def recipe(steps: int = 1, rank: int = 3, **changes: float) -> Recipe:
    values = {"clip_norm": 0.5, "prior": 2.0} | changes
    return Recipe(values["clip_norm"], values["prior"], steps, np.eye(rank))


# The sampler


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.97])
def test_each_unit_is_in_a_batch_with_the_rate_and_alone(rate: float) -> None:
    """Sizes are binomial, so neither fixed nor clustered, and two neighbours are in as often as independence says."""
    batches = np.array([poisson_sample(20, rate) for _ in range(20_000)])
    sizes = np.bincount(batches.sum(axis=1), minlength=21)
    expected = len(batches) * binom.pmf(np.arange(21), 20, rate)
    common = expected >= 5
    seen = np.append(sizes[common], sizes[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    rare = wanted[-1] < 1.0
    seen, wanted = (seen[:-1], wanted[:-1]) if rare else (seen, wanted)
    assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > BY_CHANCE
    for one, other in ((batches[:, 0], batches[:, 1]), (batches[:-1, 5], batches[1:, 5])):  # units; and steps
        cells = np.bincount(2 * one.astype(int) + other, minlength=4)
        odds = np.array([(1 - rate) ** 2, (1 - rate) * rate, rate * (1 - rate), rate**2])
        assert chisquare(cells, cells.sum() * odds).pvalue > BY_CHANCE


def test_a_batch_may_be_empty_and_a_rate_of_one_is_everybody() -> None:
    assert not any(poisson_sample(50, 1e-15).any() for _ in range(100))
    assert poisson_sample(50, 1.0).all()
    assert poisson_sample(0, 0.5).shape == (0,)
    assert poisson_sample(0, 1.0).shape == (0,)
    assert poisson_sample(1000, math.nextafter(1.0, 0.0)).sum() >= 999


def test_batches_come_from_the_operating_system_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(inspect.signature(poisson_sample).parameters) == {"units", "sample_rate"}
    np.random.seed(0)
    first = poisson_sample(200, 0.5)
    np.random.seed(0)
    assert not np.array_equal(first, poisson_sample(200, 0.5))
    monkeypatch.setattr(sampling.os, "urandom", lambda size: b"\xff" * size)
    assert not poisson_sample(8, 0.999).any()
    monkeypatch.setattr(sampling.os, "urandom", bytes)
    assert poisson_sample(8, 0.001).all()


def test_no_training_takes_a_batch_or_a_generator_from_outside() -> None:
    assert set(inspect.signature(train_domain).parameters) == {
        "data",
        "recipe",
        "noise_multiplier",
        "noise",
        "sample_rate",
    }


@pytest.mark.parametrize("rate", RATES_THAT_ARE_NONE)
def test_a_rate_that_is_no_probability_is_refused_before_anything_is_drawn(rate: Any) -> None:
    noise = Recorded()
    refusals: list[Callable[[], object]] = [
        lambda: check_sample_rate(rate),
        lambda: poisson_sample(3, rate),
        lambda: train_domain(subjects(3), recipe(), 1.0, noise, sample_rate=rate),
        lambda: SampledGaussianEvent(1.0, 5, rate),
        lambda: sampled_run_for(2.0, DELTA, 5, rate),
        lambda: plan_run(2.0, DELTA, 5, sample_rate=rate),
    ]
    for refuse in refusals:
        with pytest.raises(InvalidInputError, match="sample rate"):
            refuse()
    assert noise.shapes == []


@pytest.mark.parametrize("rate", ["0", "-0.1", "1.5", "nan", "inf", "often"])
def test_a_setting_that_is_no_probability_is_refused(rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDIOLECT_DOMAIN_SAMPLE_RATE", rate)
    with pytest.raises(Exception, match="IDIOLECT_DOMAIN_SAMPLE_RATE"):
        load_settings()


# The mechanism


@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_a_step_sums_the_batch_and_is_scaled_by_the_expected_size(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    data, batch = subjects(10), np.arange(10) % 3 == 0
    monkeypatch.setattr(domain_module, "poisson_sample", lambda _units, _rate: batch)
    sampled = train_domain(data, recipe(), 0.0, Recorded(), sample_rate=rate)
    monkeypatch.setattr(domain_module, "poisson_sample", lambda units, _rate: np.ones(units, bool))
    whole = train_domain(only(data, batch), recipe(), 0.0, Recorded())
    # One step from zero is sums / (scale * (prior + curvature)); the scale is public, not the size of the batch.
    assert np.allclose(sampled * rate * 10, whole * batch.sum(), rtol=1e-12)


def test_the_size_of_a_batch_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise moves the adapter as far, whoever was drawn."""

    class OnlyTheStep(Recorded):
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.full(shape, 0.0 if shape == (1,) else self.value)

    for size in (0, 1, 9):
        monkeypatch.setattr(domain_module, "poisson_sample", lambda units, _rate, n=size: np.arange(units) < n)
        quiet, loud = (train_domain(subjects(9), recipe(), 1.0, OnlyTheStep(v), sample_rate=0.5) for v in (0.0, 7.0))
        assert np.allclose(loud - quiet, 7.0 * 0.5 / (0.5 * 9 * 3.0), rtol=1e-9)


@given(st.integers(0, 10_000), st.lists(st.booleans(), min_size=5, max_size=5), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_with_any_fixed_batch_a_subject_moves_the_sums_by_at_most_the_clip_norm(
    seed: int, drawn: list[bool], gone: int
) -> None:
    """Also one who says far more than all others; one who was not drawn moves nothing."""
    rng = np.random.default_rng(seed)
    data = subjects(5, seed=seed)
    loud = np.where(data.subject_C == gone, 10.0 ** rng.integers(-3, 200), 1.0)
    data = replace(data, differences_C_K=data.differences_C_K * loud[:, None])
    adapter, batch = rng.normal(size=(1, 3)), np.array(drawn)
    kept = np.arange(5) != gone

    def sums(of: SubjectComparisons, batch_S: np.ndarray) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(domain_module, "poisson_sample", lambda _units, _rate: batch_S)
            patch.setattr(domain_module, "noisy_descent", lambda clipped_sums, *_: clipped_sums(adapter))
            return train_domain(of, recipe(), 1.0, Recorded(), sample_rate=0.5)

    moved = np.linalg.norm(sums(data, batch) - sums(only(data, kept), batch[kept]))
    assert moved <= 0.5 * (1 + 1e-9)
    if not batch[gone]:
        assert moved <= 1e-12


@pytest.mark.parametrize("rate", [1e-15, 0.5, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_every_step_draws_noise_whoever_is_in_the_batch(count: int, rate: float) -> None:
    noise = Recorded()
    train_domain(subjects(count), recipe(4), 1.0, noise, sample_rate=rate)
    assert noise.shapes == [(1,)] + [(1, 3)] * 4
    assert len(noise.shapes) == releases(recipe(4))
    pure = train_domain(subjects(count), recipe(1), 1.0, Recorded(1.0), sample_rate=1e-15)
    assert np.all(pure > 0.0)


def test_every_step_draws_a_batch_of_its_own_from_all_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def watched(units: int, rate: float) -> np.ndarray:
        asked.append((units, rate))
        return poisson_sample(units, rate)

    monkeypatch.setattr(domain_module, "poisson_sample", watched)
    train_domain(subjects(7), recipe(5), 1.0, Recorded(), sample_rate=0.25)
    assert asked == [(7, 0.25)] * 5


def test_reading_everybody_is_the_full_batch() -> None:
    data = subjects(8)
    assert np.array_equal(
        train_domain(data, recipe(5), 1.0, Recorded(0.3)),
        train_domain(data, recipe(5), 1.0, Recorded(0.3), sample_rate=1.0),
    )


def test_on_average_a_sampled_training_is_the_full_one() -> None:
    data = subjects(40)
    whole = train_domain(data, recipe(), 0.0, Recorded())
    sampled = np.array([train_domain(data, recipe(), 0.0, Recorded(), sample_rate=0.3) for _ in range(3000)])
    error = sampled.std(axis=0) / math.sqrt(len(sampled))
    assert np.all(np.abs(sampled.mean(axis=0) - whole) < 5.5 * error)
    assert np.all(error > 0)


def test_secure_noise_and_secure_batches_never_repeat_a_run() -> None:
    runs = [tuple(train_domain(subjects(5), recipe(2), 1.0, SecureNoise(), sample_rate=0.5)) for _ in range(50)]
    assert len(set(runs)) == 50
