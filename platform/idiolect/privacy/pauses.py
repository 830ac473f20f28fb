"""When to train again by itself, after trainings that were charged and came to nothing.

A run that is reserved and not settled is under way, or was cut off: by a kill, or by a store that was gone before it
could publish. Its charge stays. A server that is killed in each training and started again, or whose store of keys is
away for an hour, would use up everybody's budget in a few minutes if it tried again at once, each time.

The ledger tells, so this holds for all servers together and for those that come after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import takewhile

from idiolect.privacy.ledger import LedgerRun

LOOKED_AT = 10  # newest runs of a tenant
_AFTER_TWO, _AFTER_MORE = timedelta(hours=1), timedelta(days=1)
_NONE = timedelta(0)


def pause(runs: Sequence[LedgerRun], now: datetime) -> timedelta:
    """How long to wait, by the newest runs of one unit, newest first. After a single one that came to nothing: not at
    all."""
    charged = (run for run in runs if run.state != "refused")
    cut_off = list(takewhile(lambda run: run.state == "reserved", charged))
    if len(cut_off) < 2:
        return _NONE
    longest = _AFTER_TWO if len(cut_off) == 2 else _AFTER_MORE
    return max(_NONE, min(longest, cut_off[0].reserved_at + longest - now))  # the clock may have been ahead
