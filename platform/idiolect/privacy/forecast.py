"""How many more runs a budget has room for, by the same rule that the ledger refuses with."""

from __future__ import annotations

from dataclasses import dataclass

from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.budget import Budget
from idiolect.privacy.events import GaussianEvent
from idiolect.privacy.ledger import fits

LIMIT = 100


@dataclass(frozen=True, slots=True)
class Forecast:
    """`epsilon_after[i]`: what the filter will claim after i + 1 more runs. `more`: there is room beyond those."""

    epsilon_now: float
    epsilon_after: tuple[float, ...]
    more: bool

    @property
    def runs(self) -> int:
        return len(self.epsilon_after)


def forecast(spent_rho: float, budget: Budget, event: GaussianEvent, limit: int = LIMIT) -> Forecast:
    """What the ledger will grant one after another, counted up to `limit`, if nothing leaves the window meanwhile."""
    now = filter_epsilon(spent_rho, budget.delta)
    after: list[float] = []
    while len(after) < limit and fits(spent_rho, event.rho, budget.rho):
        spent_rho += event.rho
        after.append(filter_epsilon(spent_rho, budget.delta))
    return Forecast(now, tuple(after), fits(spent_rho, event.rho, budget.rho))
