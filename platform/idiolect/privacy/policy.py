"""The settings that decide about privacy, as the values that the ledger and the trainer work with."""

from __future__ import annotations

from datetime import timedelta

from idiolect.privacy.budget import DEFAULT_DELTA, Budget, default_delta
from idiolect.privacy.events import Unit
from idiolect.privacy.ledger import LedgerRun
from idiolect.settings import Settings


def budget_of(settings: Settings, unit: Unit, delta: float = DEFAULT_DELTA) -> Budget:
    """User adapters spend from the comparison unit's budget, domain adapters from the subject unit's."""
    epsilon = settings.user_budget_epsilon if unit == "comparison" else settings.domain_budget_epsilon
    return Budget(unit, epsilon, delta, _window(settings))


def delta_of(settings: Settings, units: int) -> float:
    """The delta of a training over `units` protected units, and of the budget that it is held against."""
    return default_delta(units) if settings.delta is None else settings.delta


def delta_of_run(settings: Settings, run: LedgerRun) -> float:
    """At which to report a run of which no manifest exists, or none is at hand.

    Those whom the run refused are not in `accounts`, so the training itself may have used a smaller one.
    """
    return delta_of(settings, run.accounts if run.unit == "subject" else 1)


def _window(settings: Settings) -> timedelta | None:
    days = settings.budget_renewal_days
    return None if days is None else timedelta(days=days)
