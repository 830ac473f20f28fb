"""When to send again, and after how long. Pure: the clock and the dice are passed in.

A call is sent again only where that can't do anything twice: it was never sent, it was refused before anything was done
(429, or because the same call is under way), or it is `safe`: a read, a write that carries an id of the client's
making, or one that is the same done twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from idiolect.errors import InvalidInputError

# Refused, overloaded or lost on the way: another try may find it mended. A plain 500 will only fail again.
_PASSING = frozenset({408, 502, 503, 504})


class Lost(Enum):
    """No answer came."""

    NEVER_SENT = "never sent"
    NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter. `attempts` counts the first one; times are in seconds."""

    attempts: int = 4
    base_s: float = 0.25
    cap_s: float = 8.0
    patience_s: float = 30.0  # a Retry-After beyond this is not waited for: the error says when instead

    def __post_init__(self) -> None:
        if not (1 <= self.attempts <= 20 and 0 <= self.base_s <= self.cap_s and self.patience_s >= 0):
            raise InvalidInputError(f"{self} makes no sense.", mend="Use 1 to 20 attempts, and times from 0.")

    def wait_s(
        self, outcome: int | Lost, *, attempt: int, safe: bool, retry_after_s: float | None, draw: float
    ) -> float | None:
        """Seconds until the next try after `attempt` (from 0), or None to give up. `draw` is uniform in [0, 1)."""
        if attempt + 1 >= self.attempts or not _may_repeat(outcome, safe):
            return None
        jitter = draw * min(self.cap_s, self.base_s * 2.0**attempt)
        asked = retry_after_s or 0.0
        return asked + jitter if asked <= self.patience_s else None


def _may_repeat(outcome: int | Lost, safe: bool) -> bool:
    if outcome in (Lost.NEVER_SENT, 429):
        return True
    return safe and (outcome is Lost.NO_ANSWER or outcome in _PASSING)


def parse_retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds from now, from either form of the header (RFC 9110, 10.2.3); None if it is missing or unreadable."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
