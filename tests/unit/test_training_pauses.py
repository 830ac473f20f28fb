"""How long a server waits after trainings that were charged and came to nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from idiolect.privacy.events import GaussianEvent
from idiolect.privacy.ledger import LedgerRun, RunState
from idiolect.privacy.pauses import pause

NOW = datetime(2026, 11, 1, tzinfo=UTC)
STATES: dict[str, RunState] = {"c": "reserved", "s": "settled", "r": "refused"}


def run(state: RunState, minutes_ago: float) -> LedgerRun:
    at = NOW - timedelta(minutes=minutes_ago)
    settled = None if state == "reserved" else at
    return LedgerRun("x", "acme", "comparison", "user adapters", GaussianEvent(1.0, 2), state, 1, at, settled)


@pytest.mark.parametrize(
    ("newest", "minutes_ago", "waits"),
    [
        ("", 0, 0),
        ("s", 0, 0),
        ("c", 0, 0),
        ("cs", 0, 0),
        ("csc", 0, 0),
        ("sccc", 0, 0),
        ("cc", 0, 60),
        ("ccs", 20, 40),
        ("cc", 60, 0),
        ("ccc", 60, 23 * 60),
        ("cccccc", 24 * 60, 0),
        ("crc", 0, 60),
        ("rrcc", 0, 60),
        ("r", 0, 0),
        ("cc", -10 * 365 * 24 * 60, 60),
    ],
)
def test_two_that_were_cut_off_pause_for_an_hour_and_more_for_a_day(
    newest: str, minutes_ago: float, waits: float
) -> None:
    """From left to right, newest first: (c)ut off, (s)ettled, (r)efused to everybody."""
    assert pause([run(STATES[one], minutes_ago) for one in newest], NOW) == timedelta(minutes=waits)
