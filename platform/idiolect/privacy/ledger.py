"""The ledger's words: a run reserves before it touches data, and settles after it published.

Accounts are per (tenant, unit, subject): a user adapter charges the comparison-unit account of one person, a domain
adapter the subject-unit account of everyone it reads. The two units are never added. A reservation *is* the charge:
a crash between reserve and settle leaves it. Nothing refunds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from idiolect.privacy.events import GaussianEvent, Unit

RunState = Literal["reserved", "settled", "refused"]  # refused: to everyone, so nobody was charged or read

# Sums of costs are floats: three runs of a third of a budget may add up to a hair more than it.
RELATIVE_TOLERANCE = 1e-9


def fits(spent_rho: float, rho: float, budget_rho: float) -> bool:
    """The filter: whether a run of cost `rho` may follow what was spent."""
    return spent_rho + rho <= budget_rho * (1.0 + RELATIVE_TOLERANCE)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Who may be read in this run. `refused` would have passed the budget and was not charged."""

    run: str
    rho: float
    granted: frozenset[str]
    refused: frozenset[str]


@dataclass(frozen=True, slots=True)
class LedgerRun:
    """`reserved_at` is the ledger's time, which never goes back: not before that of any earlier run of the tenant."""

    id: str
    tenant: str
    unit: Unit
    purpose: str  # "user adapters", "domain support-chat"
    event: GaussianEvent  # what was charged; the signed manifest has what was done, which may have cost less
    state: RunState
    accounts: int
    reserved_at: datetime
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Account:
    subject: str  # pseudonym
    unit: Unit
    spent_rho: float
    runs: int


@dataclass(frozen=True, slots=True)
class Charge:
    """What one run cost one subject. `release` is None where the run published nothing: the cost is the same."""

    run: LedgerRun
    release: str | None
    revoked: bool
