"""Two independent accountants against ours.

Exact curve of one finished run: dp_accounting's PLD, Opacus' PRV accountant at sampling rate 1, and Opacus' mu-GDP
formula. Filters: Opacus' RDP accountant. (Opacus' GDP accountant itself is not comparable: at sampling rate 1 it
still takes a limit that holds for small rates only.)
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import gdp

from idiolect.errors import InvalidInputError
from idiolect.privacy.accountant import (
    check_delta,
    check_epsilon,
    epsilon_of_run,
    filter_epsilon,
    filter_rho,
    gaussian_delta,
    noise_multiplier_for,
)
from idiolect.privacy.budget import Budget, plan_run, statement_for
from idiolect.privacy.events import UNITS, GaussianEvent

DELTA = 1e-5
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
STEPS = (1, 2, 5, 11, 20)
WITHIN = 0.01
NOT_POSITIVE: list[Any] = [0, 0.0, -1.0, float("nan"), float("inf"), -float("inf"), "2", True, False, None, 10**400]


def pld(multiplier: float, steps: int, delta: float = DELTA) -> float:
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(multiplier), steps))
    return float(accountant.get_epsilon(delta))


def opacus(accountant: Any, multiplier: float, steps: int, **options: float) -> float:
    accountant.history = [(multiplier, 1.0, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about RDP orders, and log(0) where nothing is sampled away
        return float(accountant.get_epsilon(DELTA, **options))


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("steps", STEPS)
def test_a_planned_run_costs_what_it_should_by_every_exact_accountant(epsilon: float, steps: int) -> None:
    multiplier = noise_multiplier_for(epsilon, DELTA, steps)
    assert pld(multiplier, steps) == pytest.approx(epsilon, rel=WITHIN)
    assert opacus(PRVAccountant(), multiplier, steps, eps_error=0.002) == pytest.approx(epsilon, rel=WITHIN)
    assert gdp.eps_from_mu(mu=math.sqrt(steps) / multiplier, delta=DELTA) == pytest.approx(epsilon, rel=WITHIN)


@pytest.mark.parametrize(("multiplier", "steps"), [(0.8, 1), (1.5, 3), (3.3, 20), (12.0, 20)])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_the_epsilon_of_a_finished_run_is_that_of_pld(multiplier: float, steps: int, delta: float) -> None:
    assert epsilon_of_run(GaussianEvent(multiplier, steps), delta) == pytest.approx(
        pld(multiplier, steps, delta), rel=WITHIN
    )


@pytest.mark.parametrize("multiplier", [0.4, 1.0, 3.3, 12.0])
@pytest.mark.parametrize("steps", [1, 5, 20, 240])
def test_the_filter_agrees_with_opacus_rdp(multiplier: float, steps: int) -> None:
    ours = filter_epsilon(GaussianEvent(multiplier, steps).rho, DELTA)
    assert ours == pytest.approx(opacus(RDPAccountant(), multiplier, steps), rel=WITHIN)


def test_twelve_runs_at_epsilon_two_cost_about_eight_and_not_twenty_four() -> None:
    event = plan_run(2.0, DELTA, 5)
    twelve = GaussianEvent(event.noise_multiplier, 12 * event.steps)
    assert epsilon_of_run(twelve, DELTA) == pytest.approx(8.417, abs=0.005)
    assert pld(event.noise_multiplier, 12 * event.steps) == pytest.approx(8.417, abs=0.01)
    assert filter_epsilon(12 * event.rho, DELTA) == pytest.approx(9.04, abs=0.01)  # what a filter may claim


@given(st.floats(0.05, 50), st.integers(1, 20), st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=150, deadline=None)
def test_noise_and_epsilon_are_inverse(epsilon: float, steps: int, delta: float) -> None:
    event = plan_run(epsilon, delta, steps, allow_weak=True)
    claimed = epsilon_of_run(event, delta)
    assert claimed <= epsilon  # rounded to the safe side
    assert claimed == pytest.approx(epsilon, rel=1e-5)
    assert noise_multiplier_for(claimed, delta, steps) == pytest.approx(event.noise_multiplier, rel=1e-5)


@given(st.floats(0.05, 100), st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=100, deadline=None)
def test_a_filter_never_passes_its_budget(epsilon: float, delta: float) -> None:
    rho = filter_rho(epsilon, delta)
    assert rho > 0
    assert filter_epsilon(rho, delta) <= epsilon
    assert filter_epsilon(rho * 1.01 + 1e-9, delta) > epsilon * 0.999  # nor does it stop far below


@given(st.floats(0, 500), st.floats(0, 500))
@settings(max_examples=100, deadline=None)
def test_a_filters_epsilon_never_falls_when_more_is_spent(one: float, other: float) -> None:
    low, high = sorted([one, other])
    assert filter_epsilon(low, DELTA) <= filter_epsilon(high, DELTA)


@given(st.floats(1e-4, 200))
@settings(max_examples=100, deadline=None)
def test_an_adaptive_filter_claims_no_less_than_one_finished_run(rho: float) -> None:
    run = GaussianEvent(1.0 / math.sqrt(2.0 * rho), 1)
    assert filter_epsilon(rho, DELTA) >= epsilon_of_run(run, DELTA) * (1 - 1e-9)


@given(st.floats(0.3, 20), st.integers(1, 19))
@settings(max_examples=100, deadline=None)
def test_more_noise_or_fewer_steps_cost_less(multiplier: float, steps: int) -> None:
    here = epsilon_of_run(GaussianEvent(multiplier, steps), DELTA)
    assert epsilon_of_run(GaussianEvent(1.01 * multiplier, steps), DELTA) < here
    assert epsilon_of_run(GaussianEvent(multiplier, steps + 1), DELTA) > here


@pytest.mark.parametrize("mu", [1e-300, 1e-6, 0.1, 1.0, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 1.0, 1e3, 1e9])
def test_delta_is_a_probability_for_every_mechanism(epsilon: float, mu: float) -> None:
    assert 0.0 <= gaussian_delta(epsilon, mu) <= 1.0


@pytest.mark.parametrize(("epsilon", "delta"), [(1e-9, 1e-12), (1e-6, 1e-5), (1e4, 1e-5), (1e6, 1e-5), (2.0, 1e-300)])
def test_absurd_but_valid_targets_still_get_their_noise(epsilon: float, delta: float) -> None:
    event = plan_run(epsilon, delta, 3, allow_weak=True)
    assert epsilon_of_run(event, delta) == pytest.approx(epsilon, rel=1e-3, abs=delta)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1000.0, 1e6])
def test_absurd_budgets_are_kept_too(epsilon: float) -> None:
    assert filter_epsilon(Budget("subject", epsilon).rho, DELTA) <= epsilon


def test_a_budget_that_no_run_fits_into_is_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidInputError, match=r"1e-12.*too small.*1e-30"):
        filter_rho(1e-12, 1e-30)


@pytest.mark.parametrize("epsilon", NOT_POSITIVE)
def test_an_epsilon_that_is_no_finite_number_above_zero_is_refused(epsilon: Any) -> None:
    for refuse in (
        lambda: check_epsilon(epsilon),
        lambda: noise_multiplier_for(epsilon, DELTA, 5),
        lambda: filter_rho(epsilon, DELTA),
        lambda: plan_run(epsilon, DELTA, 5),
        lambda: Budget("comparison", epsilon),
    ):
        with pytest.raises(InvalidInputError) as refused:
            refuse()
        assert repr(epsilon)[:80] in str(refused.value)


@pytest.mark.parametrize("delta", [*NOT_POSITIVE, 1.0, 1.5])
def test_a_delta_outside_zero_and_one_is_refused(delta: Any) -> None:
    for refuse in (
        lambda: check_delta(delta),
        lambda: epsilon_of_run(GaussianEvent(1.0, 1), delta),
        lambda: noise_multiplier_for(1.0, delta, 5),
        lambda: filter_epsilon(1.0, delta),
        lambda: filter_rho(1.0, delta),
        lambda: Budget("comparison", 1.0, delta),
    ):
        with pytest.raises(InvalidInputError, match="delta") as refused:
            refuse()
        assert repr(delta)[:80] in str(refused.value)


def test_delta_must_be_below_one_over_the_number_of_units() -> None:
    assert check_delta(1e-5, units=99_999) == 1e-5
    assert check_delta(1e-5, units=0) == 1e-5
    with pytest.raises(InvalidInputError, match="1/100001"):
        check_delta(1e-5, units=100_001)


@pytest.mark.parametrize("multiplier", [*NOT_POSITIVE, 1e-200])
def test_an_event_without_noise_is_refused(multiplier: Any) -> None:
    with pytest.raises(InvalidInputError, match="noise multiplier") as refused:
        GaussianEvent(multiplier, 1)
    assert repr(multiplier)[:80] in str(refused.value)


@pytest.mark.parametrize("steps", [0, -1, 1.0, float("nan"), "3", True, None])
def test_an_event_has_a_whole_number_of_steps(steps: Any) -> None:
    with pytest.raises(InvalidInputError, match="steps"):
        GaussianEvent(1.0, steps)
    with pytest.raises(InvalidInputError, match="steps"):
        noise_multiplier_for(1.0, DELTA, steps)


@pytest.mark.parametrize("rho", [-1e-9, float("nan"), float("inf"), "1", True])
def test_a_cost_that_is_no_number_is_not_reported_as_free(rho: Any) -> None:
    with pytest.raises(InvalidInputError, match="cost"):
        filter_epsilon(rho, DELTA)


@pytest.mark.parametrize("clip_norm", NOT_POSITIVE)
def test_no_statement_is_made_about_an_unclipped_sum(clip_norm: Any) -> None:
    with pytest.raises(InvalidInputError, match="clip norm"):
        statement_for("comparison", GaussianEvent(1.0, 1), clip_norm, DELTA)


@pytest.mark.parametrize("unit", ["comparison", "subject"])
def test_a_statement_says_what_the_run_did(unit: Any) -> None:
    event = plan_run(2.0, DELTA, 7)
    statement = statement_for(unit, event, 0.3, DELTA)
    assert statement.epsilon == pytest.approx(2.0, rel=1e-6)
    assert statement.epsilon <= 2.0
    assert (statement.unit, statement.steps, statement.clip_norm, statement.delta) == (unit, 7, 0.3, DELTA)
    assert statement.rho == pytest.approx(7 / (2 * event.noise_multiplier**2))
    assert statement.event == event
    assert unit in statement.adjacency


def test_what_a_comparison_is_protected_from_matches_the_window_it_is_read_in() -> None:
    """A window of the newest n holds n whoever adds one: "add or remove" would move two of them."""
    adjacency = {unit: statement_for(unit, GaussianEvent(1.0, 1), 1.0, DELTA).adjacency for unit in UNITS}
    assert adjacency["comparison"].startswith("zero out one comparison: ")
    assert adjacency["subject"].startswith("add or remove one subject ")
