"""The guarantees of the sequential tests, by simulation with fixed seeds: every observation is looked at."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from idiolect.rollouts.sequential import (
    MEAN_PRIOR,
    difference,
    log_evidence,
    proportion,
    ratio_evidence,
)

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]
ALPHA = 0.05
RUNS = 1_000


def bernoulli(mean: float) -> Draw:
    return lambda rng, shape: (rng.random(shape) < mean).astype(np.float64)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Mostly near 0, at times near 1: mean 1/6."""
    return rng.beta(0.2, 1.0, shape)


def drifting(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """From 0.3 to 0.7 in the course of the run, in both arms alike: not covered by the proof."""
    return (rng.random(shape) < np.linspace(0.3, 0.7, shape[1])).astype(np.float64)


NULLS: dict[str, Draw] = {
    "half": bernoulli(0.5),
    "rare": bernoulli(0.01),
    "skewed": skewed,
    "drifting": drifting,
}


def paths(control: Draw, candidate: Draw, people: int, share: float, seed: int, runs: int = RUNS) -> tuple[Array, ...]:
    """n and s of both arms after each of `people` observations: [runs, people] each."""
    rng = np.random.default_rng(seed)
    shape = (runs, people)
    on_candidate = rng.random(shape) < share
    a, b = control(rng, shape), candidate(rng, shape)
    n_b, s_b = np.cumsum(on_candidate, axis=1), np.cumsum(np.where(on_candidate, b, 0.0), axis=1)
    n_a, s_a = np.cumsum(~on_candidate, axis=1), np.cumsum(np.where(on_candidate, 0.0, a), axis=1)
    return n_a.astype(float), s_a, n_b.astype(float), s_b


def evidence_of_a_difference(n_a: Array, s_a: Array, n_b: Array, s_b: Array) -> Array:
    """The least log evidence over equal means, which is at the pooled mean: over log(1 / alpha) exactly where the
    interval for the difference leaves 0 out. Much faster than the interval."""
    pooled = (s_a + s_b) / (n_a + n_b)
    return log_evidence(n_a, s_a, pooled, MEAN_PRIOR, MEAN_PRIOR) + log_evidence(
        n_b, s_b, pooled, MEAN_PRIOR, MEAN_PRIOR
    )


def test_the_fast_form_and_the_interval_agree() -> None:
    cases = paths(bernoulli(0.6), skewed, 300, 0.3, seed=1, runs=20)
    found = difference(*cases, ALPHA)
    excluded = (found.low > 0) | (found.high < 0)
    assert excluded.any()
    assert not excluded.all()
    np.testing.assert_array_equal(excluded, evidence_of_a_difference(*cases) > math.log(1 / ALPHA))


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_without_an_effect_a_false_alarm_is_rarer_than_alpha_however_often_one_looks(name: str, share: float) -> None:
    draw = NULLS[name]
    evidence = evidence_of_a_difference(*paths(draw, draw, 2_000, share, seed=2))
    alarms = (evidence > math.log(1 / ALPHA)).any(axis=1).mean()
    assert alarms <= ALPHA


def test_a_fixed_sample_test_would_have_cried_wolf_on_the_same_data() -> None:
    """That the simulation can tell: peeking at a z-test at 5% raises many times as many alarms."""
    n_a, s_a, n_b, s_b = paths(bernoulli(0.5), bernoulli(0.5), 2_000, 0.5, seed=2)
    pooled = np.clip((s_a + s_b) / (n_a + n_b), 1e-9, 1 - 1e-9)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(n_a, 1) + 1 / np.maximum(n_b, 1)))
    z = np.abs(s_b / np.maximum(n_b, 1) - s_a / np.maximum(n_a, 1)) / spread
    assert (z[:, 30:] > 1.96).any(axis=1).mean() > 4 * ALPHA


@pytest.mark.parametrize(("control", "candidate"), [(0.5, 0.4), (0.02, 0.05), (0.9, 0.95)])
def test_the_true_difference_is_covered_at_all_times_at_once(control: float, candidate: float) -> None:
    runs, people = 200, 600
    found = difference(*paths(bernoulli(control), bernoulli(candidate), people, 0.5, seed=3, runs=runs), ALPHA)
    truth = candidate - control
    missed = ((found.low > truth) | (found.high < truth)).any(axis=1).mean()
    assert missed <= ALPHA


@pytest.mark.parametrize("mean", [0.5, 0.05])
def test_a_single_mean_is_covered_at_all_times_at_once(mean: float) -> None:
    """In the fast form: the evidence against the truth stays under log(1 / alpha)."""
    rng = np.random.default_rng(4)
    s = np.cumsum(rng.random((RUNS, 2_000)) < mean, axis=1)
    n = np.arange(1, 2_001)
    missed = (log_evidence(n, s, mean, MEAN_PRIOR, MEAN_PRIOR) > math.log(1 / ALPHA)).any(axis=1).mean()
    assert 0 < missed <= ALPHA


# Measured; the decision record deploy/decisions/0004-rollouts.md has the table.
@pytest.mark.parametrize(
    ("control", "candidate", "people", "least"),
    [(0.5, 0.4, 4_000, 0.95), (0.5, 0.3, 1_000, 0.95), (0.02, 0.10, 1_000, 0.9), (0.5, 0.45, 20_000, 0.9)],
)
def test_harm_is_found_with_the_stated_number_of_people(
    control: float, candidate: float, people: int, least: float
) -> None:
    evidence = evidence_of_a_difference(*paths(bernoulli(control), bernoulli(candidate), people, 0.5, 5, runs=100))
    assert (evidence > math.log(1 / ALPHA)).any(axis=1).mean() >= least


RATIO_BOUND = math.log(1 / 0.001)


def test_a_ratio_of_48_to_52_is_found_within_25_000_people() -> None:
    rng = np.random.default_rng(6)
    people = np.arange(1, 25_001)
    on_candidate = np.cumsum(rng.random((100, len(people))) < 0.52, axis=1)
    found = (ratio_evidence(people - on_candidate, on_candidate, 0.5) > RATIO_BOUND).any(axis=1)
    assert found.mean() >= 0.9


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_a_ratio_that_is_right_is_left_alone(share: float) -> None:
    """At a bound of 5%, where a simulation can see alarms at all."""
    rng = np.random.default_rng(7)
    people = np.arange(1, 5_001)
    on_candidate = np.cumsum(rng.random((RUNS, len(people))) < share, axis=1)
    evidence = ratio_evidence(people - on_candidate, on_candidate, share)
    assert (evidence > math.log(1 / ALPHA)).any(axis=1).mean() <= ALPHA


def test_without_people_nothing_is_known() -> None:
    assert difference(0, 0, 0, 0, ALPHA) == (-1, 1)
    assert difference(50, 25, 0, 0, ALPHA) == (-1, 1)
    assert proportion(0, 0, ALPHA) == (0, 1)
    assert float(ratio_evidence(0, 0, 0.5)) == pytest.approx(0.0)


def test_counts_of_all_or_nothing_give_finite_bounds() -> None:
    for s_a, s_b in ((0, 0), (100, 100), (0, 100), (100, 0)):
        low, high = difference(100, s_a, 100, s_b, ALPHA)
        assert -1 <= low <= (s_b - s_a) / 100 <= high <= 1
        assert high - low < 0.2


@settings(max_examples=60)
@given(
    n=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    alpha=st.floats(1e-6, 0.5),
)
def test_the_bounds_hold_the_estimate_and_mirror_each_other(
    n: tuple[int, int], fractions: tuple[float, float], alpha: float
) -> None:
    (n_a, n_b), (f_a, f_b) = n, fractions
    low, high = difference(n_a, n_a * f_a, n_b, n_b * f_b, alpha)
    assert -1 <= low <= f_b - f_a + 1e-9
    assert f_b - f_a - 1e-9 <= high <= 1
    turned = difference(n_b, n_b * f_b, n_a, n_a * f_a, alpha)
    assert (-turned.high, -turned.low) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    stricter = difference(n_a, n_a * f_a, n_b, n_b * f_b, alpha / 10)
    assert stricter.low <= low + 1e-9
    assert stricter.high >= high - 1e-9


def test_no_pair_of_means_outside_the_bounds_is_plausible() -> None:
    """Against the slow, obvious way: all pairs of a fine grid."""
    n_a, s_a, n_b, s_b = 80, 31.5, 40, 28.25
    grid = np.linspace(0.001, 0.999, 1500)
    joint = (
        log_evidence(n_a, s_a, grid, MEAN_PRIOR, MEAN_PRIOR)[:, None]
        + log_evidence(n_b, s_b, grid, MEAN_PRIOR, MEAN_PRIOR)[None, :]
    )
    gaps = (grid[None, :] - grid[:, None])[joint <= math.log(1 / ALPHA)]
    low, high = difference(n_a, s_a, n_b, s_b, ALPHA)
    assert (gaps.min(), gaps.max()) == (pytest.approx(float(low), abs=2e-3), pytest.approx(float(high), abs=2e-3))


def test_the_bounds_of_one_mean_are_those_of_its_evidence() -> None:
    low, high = proportion(50, 20, ALPHA)
    for edge in (low, high):
        assert log_evidence(50, 20, edge, MEAN_PRIOR, MEAN_PRIOR) == pytest.approx(math.log(1 / ALPHA), abs=1e-6)
