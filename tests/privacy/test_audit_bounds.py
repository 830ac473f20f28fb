"""Confidence limits and conversions of the audit, against scipy, hand values and the accountant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from idiolect.privacy.accountant import epsilon_of_run, gaussian_delta
from idiolect.privacy.events import GaussianEvent
from idiolect_adapters.audit.bounds import (
    MAX_EPSILON,
    epsilon_bounds,
    epsilon_of_mu,
    gaussian_epsilon,
    lower_limit,
    threshold_epsilon,
    upper_limit,
)


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-9])
@pytest.mark.parametrize(("hits", "trials"), [(1, 10), (5, 10), (9, 10), (300, 1000), (99_999, 100_000)])
def test_clopper_pearson_limits_agree_with_the_beta_quantiles(hits: int, trials: int, alpha: float) -> None:
    lower = lower_limit(np.array([hits]), trials, alpha)[0]
    upper = upper_limit(np.array([hits]), trials, alpha)[0]
    assert lower == pytest.approx(beta.ppf(alpha, hits, trials - hits + 1), rel=1e-8)
    assert upper == pytest.approx(beta.isf(alpha, hits + 1, trials - hits), rel=1e-8)
    # By definition: at the limit, so many hits or more (or fewer) have exactly the chance alpha.
    assert binom.sf(hits - 1, trials, lower) == pytest.approx(alpha, rel=1e-5)
    assert binom.cdf(hits, trials, upper) == pytest.approx(alpha, rel=1e-5)


def test_limits_of_all_or_nothing_have_the_closed_form() -> None:
    none, every = np.array([0]), np.array([50])
    assert lower_limit(none, 50, 0.05)[0] == 0.0
    assert upper_limit(none, 50, 0.05)[0] == pytest.approx(1.0 - 0.05 ** (1 / 50))  # the rule of three: about 3 / 50
    assert lower_limit(every, 50, 0.05)[0] == pytest.approx(0.05 ** (1 / 50))
    assert upper_limit(every, 50, 0.05)[0] == 1.0


@pytest.mark.parametrize(
    ("tpr", "fpr", "delta", "epsilon"),
    [
        (0.5, 0.1, 0.0, math.log(5.0)),
        (0.9, 0.5, 0.0, math.log(5.0)),  # the other side: 1 - fpr against 1 - tpr
        (0.5, 0.1, 0.1, math.log(4.0)),
        (0.3, 0.3, 0.0, 0.0),
        (0.1, 0.5, 0.0, 0.0),
        (0.0, 1.0, 0.5, 0.0),
    ],
)
def test_rates_give_the_epsilon_of_the_hand_calculation(tpr: float, fpr: float, delta: float, epsilon: float) -> None:
    assert threshold_epsilon(tpr, fpr, delta) == pytest.approx(epsilon)


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-3])
def test_the_rates_of_a_gaussian_mechanism_give_back_its_epsilon(multiplier: float, delta: float) -> None:
    mu = 1.0 / multiplier
    expected = epsilon_of_run(GaussianEvent(multiplier, 1), delta)
    for fpr in (0.01, 0.3, 0.8):
        assert gaussian_epsilon(float(norm.cdf(norm.ppf(fpr) + mu)), fpr, delta) == pytest.approx(expected, rel=1e-6)
    if expected > 0:
        assert gaussian_delta(epsilon_of_mu(mu, delta), mu) == pytest.approx(delta, rel=1e-6)


def test_rates_without_information_or_with_all_of_it_stay_numbers() -> None:
    assert gaussian_epsilon(0.0, 0.5, 1e-5) == 0.0
    assert gaussian_epsilon(0.2, 1.0, 1e-5) == 0.0
    assert gaussian_epsilon(1.0, 0.0, 1e-5) == MAX_EPSILON
    assert epsilon_of_mu(math.nan, 1e-5) == 0.0
    assert epsilon_of_mu(500.0, 1e-5) == MAX_EPSILON


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 3.0])
def test_bounds_on_a_known_gaussian_are_below_the_truth_and_the_gaussian_one_is_near_it(mu: float) -> None:
    rng = np.random.default_rng(1)
    truth = epsilon_of_mu(mu, 1e-5)
    bounds = epsilon_bounds(mu + rng.normal(size=200_000), rng.normal(size=200_000), 1e-5, 1e-6)
    assert 0.0 <= bounds.threshold <= truth
    assert 0.75 * truth <= bounds.gaussian <= truth
    assert bounds.best == max(bounds.threshold, bounds.gaussian)


def test_bounds_are_wrong_no_more_often_than_they_say() -> None:
    rng = np.random.default_rng(2)
    truth, alpha, audits = epsilon_of_mu(1.0, 1e-3), 0.1, 300
    found = [epsilon_bounds(1.0 + rng.normal(size=1_000), rng.normal(size=1_000), 1e-3, alpha) for _ in range(audits)]
    wrong = [
        sum(bound > truth for bound in kind) for kind in zip(*((b.threshold, b.gaussian) for b in found), strict=True)
    ]
    assert max(wrong) <= binom.isf(1e-6, audits, alpha)
    assert min(bound.gaussian for bound in found) > 0.0


def test_a_score_that_is_always_the_same_shows_nothing() -> None:
    bounds = epsilon_bounds(np.zeros(1_000), np.zeros(1_000), 1e-5, 0.01)
    assert bounds.best == 0.0


def test_two_constants_show_as_much_as_the_number_of_trials_allows() -> None:
    few, many = (epsilon_bounds(np.ones(n), np.zeros(n), 1e-5, 0.01).threshold for n in (1_000, 100_000))
    assert few == pytest.approx(math.log(500 / -math.log(0.005)), abs=0.05)
    assert many - few == pytest.approx(math.log(100), abs=0.05)


def test_a_score_in_the_wrong_direction_shows_nothing() -> None:
    rng = np.random.default_rng(3)
    bounds = epsilon_bounds(rng.normal(size=2_000) - 3.0, rng.normal(size=2_000), 1e-5, 0.01)
    assert bounds.best == 0.0
