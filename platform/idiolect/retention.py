"""How long raw texts are kept: what was served, what people did with it, and the comparisons that came of that.

Counted from the moment a text was served, whether it was for a named person or for nobody in particular. Adapters stay,
since they are what is kept instead: a handful of noised numbers. What was imported stays too, as long as its data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from idiolect.errors import InvalidInputError

MIN_DAYS, MAX_DAYS = 1, 3_650


@dataclass(frozen=True, slots=True)
class Swept:
    """Rows that were deleted."""

    inferences: int = 0
    signals: int = 0
    comparisons: int = 0
    texts: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.inferences + other.inferences,
            self.signals + other.signals,
            self.comparisons + other.comparisons,
            self.texts + other.texts,
        )


def check_days(days: int) -> int:
    """Raises InvalidInputError for what is no retention."""
    if not MIN_DAYS <= days <= MAX_DAYS:
        raise InvalidInputError(
            f"a retention of {days} days is not usable.", mend=f"Use {MIN_DAYS} to {MAX_DAYS} whole days."
        )
    return days


def etag_of(days: int | None) -> str:
    """Of what a tenant has set. It names the state alone, so going back to it is going back to its tag."""
    return "default" if days is None else str(days)


def oldest_kept(now: datetime, days: int) -> datetime:
    """What was served before this goes."""
    return now - timedelta(days=days)
