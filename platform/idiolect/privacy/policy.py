"""The settings that decide about privacy, as the values that the ledger and the trainer work with."""

from __future__ import annotations

from datetime import timedelta

from idiolect.privacy.budget import DEFAULT_DELTA, Budget
from idiolect.privacy.events import Unit
from idiolect.settings import Settings


def budget_of(settings: Settings, unit: Unit, delta: float = DEFAULT_DELTA) -> Budget:
    """User adapters spend from the comparison unit's budget, domain adapters from the subject unit's."""
    epsilon = settings.user_budget_epsilon if unit == "comparison" else settings.domain_budget_epsilon
    return Budget(unit, epsilon, delta, _window(settings))


def _window(settings: Settings) -> timedelta | None:
    days = settings.budget_renewal_days
    return None if days is None else timedelta(days=days)
