"""What is claimed and what is charged for a run on Poisson samples: three accountants, one bound."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant
from opacus.accountants import RDPAccountant as OpacusRDP
from opacus.accountants.analysis import rdp as opacus_rdp

from idiolect.errors import InvalidInputError
from idiolect.privacy.accountant import PLD_MAX_EPSILON, epsilon_of_run, noise_multiplier_for
from idiolect.privacy.budget import PrivacyStatement, plan_run, statement_for
from idiolect.privacy.claims import claims
from idiolect.privacy.events import GaussianEvent, SampledGaussianEvent

DELTA = 1e-5
WITHIN = 0.01
RUNS = [(0.9, 6, 0.1), (2.0, 6, 0.5), (3.4, 6, 0.9), (1.0, 20, 0.01), (5.0, 20, 0.3)]


def mixture(multiplier: float, steps: int, rate: float, unsampled: int) -> Any:
    release = dp_accounting.GaussianDpEvent(multiplier)
    parts = [dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(rate, release), steps)]
    parts += [dp_accounting.SelfComposedDpEvent(release, unsampled)] * (unsampled > 0)
    return dp_accounting.ComposedDpEvent(parts)


def opacus(accountant: Any, multiplier: float, steps: int, rate: float, unsampled: int, **options: float) -> float:
    accountant.history = [(multiplier, rate, steps)] + [(multiplier, 1.0, unsampled)] * (unsampled > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about RDP orders, and log(0) where nothing is sampled away
        return float(accountant.get_epsilon(DELTA, **options))


@pytest.mark.parametrize("unsampled", [0, 1])
@pytest.mark.parametrize(("multiplier", "steps", "rate"), RUNS)
def test_the_claim_of_a_sampled_run_is_that_of_opacus_and_of_a_finer_grid(
    multiplier: float, steps: int, rate: float, unsampled: int
) -> None:
    claimed = epsilon_of_run(SampledGaussianEvent(multiplier, steps + unsampled, rate, unsampled), DELTA)
    fine = PLDAccountant(value_discretization_interval=1e-4)
    fine.compose(mixture(multiplier, steps, rate, unsampled))
    assert claimed == pytest.approx(fine.get_epsilon(DELTA), rel=WITHIN)
    prv = opacus(PRVAccountant(), multiplier, steps, rate, unsampled, eps_error=0.002)
    assert claimed == pytest.approx(prv, rel=WITHIN)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("multiplier", "steps", "rate"), RUNS)
def test_the_two_libraries_agree_on_the_renyi_curve_of_a_sampled_run(
    multiplier: float, steps: int, rate: float
) -> None:
    orders = [2, 3, 4, 5, 8, 16, 32, 64]
    theirs = opacus_rdp.compute_rdp(q=rate, noise_multiplier=multiplier, steps=steps, orders=orders)
    ours = RdpAccountant(orders)
    ours.compose(mixture(multiplier, steps, rate, 0))
    assert np.allclose(ours._rdp, theirs, rtol=WITHIN)
    accountant = RdpAccountant()
    accountant.compose(mixture(multiplier, steps, rate, 0))
    assert accountant.get_epsilon(DELTA) == pytest.approx(opacus(OpacusRDP(), multiplier, steps, rate, 0), rel=WITHIN)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("multiplier", "steps", "rate"), RUNS)
def test_what_the_ledger_charges_bounds_a_sampled_run_at_every_order(
    multiplier: float, steps: int, rate: float
) -> None:
    orders = [1.5, 2, 3, 4, 6, 10, 20, 50, 100, 500]
    accountant = RdpAccountant(orders)
    accountant.compose(mixture(multiplier, steps, rate, 1))
    event = SampledGaussianEvent(multiplier, steps + 1, rate, 1)
    assert event.rho == event.charged.rho == (steps + 1) / (2 * multiplier**2)
    assert event.charged == GaussianEvent(multiplier, steps + 1)
    for order, cost in zip(orders, accountant._rdp, strict=True):
        assert not math.isfinite(cost) or cost <= event.rho * order * (1 + 1e-9)
    assert epsilon_of_run(event, DELTA) < epsilon_of_run(event.charged, DELTA)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_a_planned_sampled_run_keeps_its_epsilon_with_hardly_more_noise_than_it_needs(
    epsilon: float, rate: float
) -> None:
    event = plan_run(epsilon, DELTA, 7, sample_rate=rate, unsampled_steps=1)
    assert isinstance(event, SampledGaussianEvent)
    assert (event.sample_rate, event.steps, event.unsampled_steps) == (rate, 7, 1)
    assert epsilon_of_run(event, DELTA) <= epsilon
    less = replace(event, noise_multiplier=0.995 * event.noise_multiplier)
    assert epsilon_of_run(less, DELTA) > epsilon
    assert event.noise_multiplier < noise_multiplier_for(epsilon, DELTA, 7)  # what sampling is for ...
    assert event.rho > plan_run(epsilon, DELTA, 7).rho  # ... and what it costs


def test_the_release_that_reads_everybody_is_not_counted_as_sampled() -> None:
    sampled = SampledGaussianEvent(2.0, 3, 0.1)
    assert epsilon_of_run(replace(sampled, unsampled_steps=1), DELTA) > 1.5 * epsilon_of_run(sampled, DELTA)


@pytest.mark.parametrize("multiplier", [1e-6, 0.01, 1e4, 1e9])
def test_extreme_noise_is_accounted_without_trouble_and_never_over_the_full_batch(multiplier: float) -> None:
    event = SampledGaussianEvent(multiplier, 3, 0.5, 1)
    claimed = epsilon_of_run(event, DELTA)
    assert 0.0 <= claimed <= epsilon_of_run(event.charged, DELTA)
    if claimed > PLD_MAX_EPSILON:
        assert claimed == epsilon_of_run(event.charged, DELTA)


def test_everybody_in_every_step_is_planned_as_a_full_batch() -> None:
    assert plan_run(2.0, DELTA, 7, sample_rate=1.0, unsampled_steps=1) == plan_run(2.0, DELTA, 7)
    with pytest.raises(InvalidInputError, match="everybody"):
        SampledGaussianEvent(1.0, 3, 1.0)
    full = GaussianEvent(2.0, 3)
    assert (full.sample_rate, full.charged) == (1.0, full)


@pytest.mark.parametrize("unsampled", [-1, 5, 6, True, 1.0, "1", None])
def test_at_least_one_step_must_sample(unsampled: Any) -> None:
    with pytest.raises(InvalidInputError, match="sample"):
        SampledGaussianEvent(1.0, 5, 0.5, unsampled)


@pytest.mark.parametrize(("multiplier", "steps"), [(0.0, 5), (float("nan"), 5), ("1", 5), (1.0, 0), (1.0, 2.0)])
def test_a_sampled_event_is_checked_like_any_other(multiplier: Any, steps: Any) -> None:
    with pytest.raises(InvalidInputError):
        SampledGaussianEvent(multiplier, steps, 0.5)


@pytest.mark.parametrize("epsilon", [20.1, 1000.0])
def test_an_absurd_epsilon_must_be_asked_for_where_subjects_are_sampled_too(epsilon: float) -> None:
    with pytest.raises(InvalidInputError, match="IDIOLECT_ALLOW_WEAK_PRIVACY"):
        plan_run(epsilon, DELTA, 7, sample_rate=0.5)
    event = plan_run(epsilon, DELTA, 7, sample_rate=0.5, allow_weak=True)
    assert statement_for("subject", event, 1.0, DELTA).epsilon <= epsilon
    assert statement_for("subject", event, 1.0, DELTA).weak == (epsilon_of_run(event, DELTA) > 20.0)


def test_a_statement_carries_the_event_through_its_json_and_says_it_in_words() -> None:
    event = plan_run(2.0, DELTA, 7, sample_rate=0.25, unsampled_steps=1)
    made = statement_for("subject", event, 0.5, DELTA)
    stored = json.loads(json.dumps(made.to_json()))
    assert PrivacyStatement.from_json(stored) == made
    assert PrivacyStatement.from_json(stored).event == event
    assert (made.rho, made.epsilon) == (event.rho, epsilon_of_run(event, DELTA))
    said = " ".join(claims(made))
    for part in ("Poisson", "probability 0.25", "but for 1 that read everybody", "as if every step had read everybody"):
        assert part in said
    full = statement_for("subject", plan_run(2.0, DELTA, 7), 0.5, DELTA)
    assert not {"sample_rate", "unsampled_steps"} & set(full.to_json())
    assert "sample" not in " ".join(claims(full))
