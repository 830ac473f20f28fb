"""Where a version comes from, and where a person's data went."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class Contribution:
    """A version that learned from a person. `via` says how that is known.

    `own`: it is the person's own adapter. `ledger`: its run charged the person's account before it read anything, so it
    may have read them; those who were charged and then left out of the data are listed too, never the other way round.
    """

    version: str
    release: str
    scope: str
    domain: str | None
    run: str
    published_at: datetime
    revoked: bool
    via: Literal["own", "ledger"]


@dataclass(frozen=True, slots=True)
class VersionLineage:
    """`parents`: nearest first, each version's own parent; the last may be one that no longer exists."""

    version: str
    release: str
    adapter: str
    run: str
    purpose: str | None  # of the run; None if the ledger does not know it
    accounts: int | None  # how many the run charged
    data_window: str
    global_digest: str
    parents: tuple[str, ...]
