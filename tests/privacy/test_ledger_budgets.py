"""Budgets as policy: what is allowed, what is forecast, and what survives a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect.privacy.accountant import composed_epsilon, epsilon_of_run, filter_epsilon
from idiolect.privacy.budget import DEFAULT_DELTA, Budget, default_delta, plan_run, statement_for
from idiolect.privacy.events import GaussianEvent
from idiolect.privacy.forecast import forecast
from idiolect.privacy.policy import budget_of
from idiolect.settings import load_settings
from idiolect.stores.ports import Store
from idiolect.stores.sql import open_store
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_services.production_noise import checked_noise
from idiolect_services.trainer import Trainer

T0 = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOT_POSITIVE = [0, 0.0, -1.0, float("nan"), float("inf"), float("-inf"), "2", True, None]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'idiolect.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def rounds(store: Store, budget: Budget, event: GaussianEvent, limit: int = 200) -> int:
    """How often the ledger grants a run until it refuses."""
    for number in range(limit):
        now = T0 + timedelta(minutes=number)
        args = ("acme", budget.unit, "x", event, ["ann"], budget.rho, now)
        if not store.reserve(*args, window=budget.window).granted:
            return number
    return limit


@pytest.mark.parametrize("window", [None, timedelta(days=30)])
@pytest.mark.parametrize(
    ("epsilon", "total"), [(2.0, 8.0), (0.5, 3.0), (1.0, 1.0), (1.0, 1.1), (4.0, 12.0), (3.0, 2.0)]
)
def test_a_forecast_is_what_the_ledger_really_allows(
    store: Store, epsilon: float, total: float, window: timedelta | None
) -> None:
    budget = Budget("comparison", total, window=window)
    event = plan_run(epsilon, DEFAULT_DELTA, 5)
    ahead = forecast(0.0, budget, event)
    for done in range(ahead.runs):
        spent = store.account("acme", "comparison", "ann").spent_rho
        assert forecast(spent, budget, event).epsilon_after == pytest.approx(ahead.epsilon_after[done:])
        assert rounds(store, budget, event, limit=1) == 1
    assert rounds(store, budget, event) == 0
    spent = store.account("acme", "comparison", "ann").spent_rho
    assert (forecast(spent, budget, event).runs, ahead.more) == (0, False)
    assert forecast(spent, budget, event).epsilon_now <= total * (1 + 1e-6)


@given(st.floats(0, 5), st.floats(0.1, 10), st.floats(0.5, 20))
@settings(max_examples=40, deadline=None)
def test_a_forecast_never_passes_the_budget_and_leaves_no_room(spent: float, epsilon: float, total: float) -> None:
    budget = Budget("subject", total)
    event = plan_run(epsilon, DEFAULT_DELTA, 3)
    found = forecast(spent, budget, event, limit=20)
    assert all(after <= total * (1 + 1e-6) for after in found.epsilon_after)
    assert sorted(found.epsilon_after) == list(found.epsilon_after)
    if not found.more:
        assert filter_epsilon(spent + (found.runs + 1) * event.rho, DEFAULT_DELTA) > total * (1 - 1e-6)


def test_a_forecast_stops_counting_and_says_so() -> None:
    found = forecast(0.0, Budget("comparison", 50.0), plan_run(0.05, DEFAULT_DELTA, 1), limit=7)
    assert (found.runs, found.more) == (7, True)


def test_steps_do_not_change_how_many_trainings_are_left() -> None:
    budget = Budget("comparison", 8.0)
    left = {forecast(0.0, budget, plan_run(2.0, DEFAULT_DELTA, steps)).runs for steps in (1, 5, 20)}
    assert len(left) == 1


def test_twelve_charged_runs_at_epsilon_two_compose_to_about_eight_point_four(store: Store) -> None:
    event = plan_run(2.0, DEFAULT_DELTA, 20)
    assert rounds(store, Budget("comparison", 20.0), event, limit=12) == 12
    spent = store.account("acme", "comparison", "ann")
    assert (spent.runs, spent.spent_rho) == (12, pytest.approx(12 * event.rho))
    assert composed_epsilon(spent.spent_rho, DEFAULT_DELTA) == pytest.approx(8.417, abs=0.005)
    assert filter_epsilon(spent.spent_rho, DEFAULT_DELTA) == pytest.approx(9.04, abs=0.01)
    assert composed_epsilon(0.0, DEFAULT_DELTA) == 0.0


_RESERVE = """
import sys, time
from datetime import UTC, datetime, timedelta
from idiolect.privacy.events import GaussianEvent
from idiolect.stores.sql import open_store
url, times = sys.argv[1], int(sys.argv[2])
store = open_store(url, lock_timeout_s=60)
print("ready", flush=True)
sys.stdin.readline()
now = datetime(2026, 5, 1, 12, tzinfo=UTC)
for _ in range(times):
    store.reserve("acme", "comparison", "x", GaussianEvent(2.0, 8), ["ann"], 10.0, now, window=timedelta(days=1))
print("reserved", flush=True)
sys.stdin.readline()
"""


def worker(url: str, times: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _RESERVE, url, str(times)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_trainer_that_is_killed_after_it_reserved_leaves_the_charge(store: Store, url: str) -> None:
    with worker(url, 1) as process:
        told(process, "ready")
        go(process)
        told(process, "reserved")
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    (run,) = store.runs("acme")
    assert run.state == "reserved"
    assert store.account("acme", "comparison", "ann").spent_rho == 1.0
    (charge,) = store.charges("acme", "ann")
    assert (charge.run.id, charge.release) == (run.id, None)
    store.settle("acme", run.id, T0)
    assert store.account("acme", "comparison", "ann").spent_rho == 1.0


def test_processes_do_not_spend_the_same_rest_of_a_window(store: Store, url: str) -> None:
    old = GaussianEvent(2.0, 8)
    for _ in range(5):
        store.reserve("acme", "comparison", "x", old, ["ann"], 10.0, T0 - timedelta(days=2))
    workers = [worker(url, 8) for _ in range(2)]
    for process in workers:
        told(process, "ready")
    for process in workers:
        go(process)
    for process in workers:
        told(process, "reserved")
        go(process)
        assert process.wait(30) == 0
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close(), process.stdout.close()
    assert store.account("acme", "comparison", "ann", since=T0).runs == 10
    assert len(store.runs("acme", limit=1000)) == 5 + 16


@pytest.mark.parametrize("value", NOT_POSITIVE)
def test_no_run_is_planned_from_numbers_that_are_none(value: Any) -> None:
    statement = {"unit": "comparison", "event": GaussianEvent(1.0, 1), "clip_norm": 1.0, "delta": 1e-5}
    for refuse in (
        lambda: plan_run(value, 1e-5, 5),
        lambda: plan_run(value, 1e-5, 5, allow_weak=True),
        lambda: plan_run(2.0, value, 5),
        lambda: Budget("comparison", value),
        lambda: Budget("comparison", 2.0, value),
        lambda: statement_for(**statement | {"clip_norm": value}),  # type: ignore[arg-type]
        lambda: statement_for(**statement | {"delta": value}),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInputError) as refused:
            refuse()
        assert refused.value.mend


@pytest.mark.parametrize("value", [value for value in NOT_POSITIVE if value is not None])
def test_no_statement_claims_a_local_epsilon_that_is_none(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        statement_for("comparison", GaussianEvent(1.0, 1), 1.0, 1e-5, local_epsilon=value)


@pytest.mark.parametrize("steps", [0, -1, 1.5, float("nan"), "3", True, None])
def test_no_run_is_planned_with_steps_that_are_none(steps: Any) -> None:
    with pytest.raises(InvalidInputError, match="steps"):
        plan_run(2.0, 1e-5, steps)


@pytest.mark.parametrize("epsilon", [20.000001, 1000, 1e6])
def test_an_absurd_epsilon_must_be_asked_for_and_the_statement_says_so(epsilon: float) -> None:
    with pytest.raises(InvalidInputError, match="IDIOLECT_ALLOW_WEAK_PRIVACY"):
        plan_run(epsilon, 1e-5, 5)
    statement = statement_for("comparison", plan_run(epsilon, 1e-5, 5, allow_weak=True), 1.0, 1e-5)
    assert statement.weak
    assert statement.to_json()["weak"] is True
    strong = statement_for("comparison", plan_run(20.0, 1e-5, 5, allow_weak=True), 1.0, 1e-5)
    assert not strong.weak
    assert "weak" not in strong.to_json()


@pytest.mark.parametrize("name", ["user_epsilon", "domain_epsilon", "user_budget_epsilon", "domain_budget_epsilon"])
def test_a_setting_that_protects_nothing_needs_the_override(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"IDIOLECT_{name.upper()}", "1000")
    with pytest.raises(ConfigurationError, match=rf"IDIOLECT_{name.upper()}.*ALLOW_WEAK_PRIVACY"):
        load_settings()
    monkeypatch.setenv("IDIOLECT_ALLOW_WEAK_PRIVACY", "true")
    assert getattr(load_settings(), name) == 1000


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
@pytest.mark.parametrize("name", ["BUDGET_RENEWAL_DAYS", "LOCAL_EPSILON"])
def test_a_policy_that_is_no_number_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"IDIOLECT_{name}", value)
    with pytest.raises(ConfigurationError, match=f"IDIOLECT_{name}"):
        load_settings()


def test_budgets_come_from_the_settings() -> None:
    policy = load_settings(user_budget_epsilon=7.0, domain_budget_epsilon=11.0, budget_renewal_days=0.5)
    assert budget_of(policy, "comparison") == Budget("comparison", 7.0, window=timedelta(hours=12))
    assert budget_of(policy, "subject", 1e-7) == Budget("subject", 11.0, 1e-7, timedelta(hours=12))
    assert budget_of(load_settings(), "subject").since(T0) is None
    assert budget_of(policy, "subject").since(T0) == T0 - timedelta(hours=12)
    assert Budget("subject", 1.0, window=timedelta.max).since(T0) is None
    with pytest.raises(InvalidInputError, match="window"):
        Budget("subject", 1.0, window=timedelta(0))


@given(st.integers(1, 10**9))
def test_the_default_delta_is_always_below_one_over_the_units(units: int) -> None:
    delta = default_delta(units)
    assert 0 < delta <= min(DEFAULT_DELTA, 0.11 / units)
    plan = plan_run(2.0, delta, 1, units=units)
    assert epsilon_of_run(plan, delta) <= 2.0


def test_a_delta_that_could_publish_one_unit_outright_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="1/100000"):
        plan_run(2.0, 1e-5, 5, units=100_000)
    assert default_delta(50) == default_delta(10_000) == DEFAULT_DELTA
    assert default_delta(10_001) == pytest.approx(1e-6)


class Seeded:
    """Noise that anyone can draw again."""

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(1).standard_normal(shape)


class Relabelled(SecureNoise):
    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


def trainer(noise: Any) -> Trainer:
    installation: Any = SimpleNamespace(store=None, settings=load_settings())
    return Trainer(installation, None, None, noise)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [Seeded(), Relabelled(), Seeded])
def test_a_process_that_runs_no_test_refuses_noise_that_is_not_secure(
    noise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked_noise(noise) is noise
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    for name in ("IDIOLECT_TESTING", "TESTING", "CI", "PYTEST_VERSION"):  # nothing else stands in for it
        monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigurationError, match="not a secure source of noise"):
        checked_noise(noise)
    with pytest.raises(ConfigurationError, match="not a secure source of noise"):
        trainer(noise)


def test_a_trainer_draws_secure_noise_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert type(trainer(None)._noise) is SecureNoise
    secure = SecureNoise()
    assert trainer(secure)._noise is secure


def test_no_setting_names_a_seed() -> None:
    assert not [name for name in type(load_settings()).model_fields if "seed" in name or "noise" in name]
    assert "PYTEST_CURRENT_TEST" in os.environ  # else the tests above test nothing
