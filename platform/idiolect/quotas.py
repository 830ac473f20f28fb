"""What a tenant may use at most: set by the operator, and checked in the transaction that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from idiolect.errors import InvalidInputError

# Of those by the day, what was used counts from midnight UTC.
DAILY: Mapping[str, str] = {
    "signals": "signals of feedback in a day",
    "trainings": "trainings in a day",
    # As they are served: also of a text that is stored already, so that nobody has to guess what will count.
    "text_bytes": "bytes of served texts in a day",
}
STANDING: Mapping[str, str] = {"people": "people who are opted in"}
QUOTAS: Mapping[str, str] = {**STANDING, **DAILY}

DAY_MICROS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Quota:
    """`used`: today, or for people who are in now."""

    name: str
    most: int
    used: int


def check_quota(name: str, most: int) -> None:
    """Raises InvalidInputError."""
    if name not in QUOTAS:
        raise InvalidInputError(f"there is no quota {name[:80]!r}.", mend=f"Use one of: {', '.join(QUOTAS)}.")
    if not 0 <= most < 2**62:
        raise InvalidInputError(f"a quota of {most} is not usable.", mend="Use a whole number from 0.")
