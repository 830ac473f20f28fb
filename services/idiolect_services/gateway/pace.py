"""Whether a request that needs no model may be answered on the event loop, without a thread.

Handing a request to a thread and back costs more than answering it from memory and an embedded store. But the loop
serves everybody: after such an answer had to wait for long (a cold disk, a busy file), they all go through threads for
a while, the longer the slower it was. So slow ones hold the loop for a tenth of the time at most.

Not every slow answer is the store's fault. That the system let another process run for a while, or that this thread
waited for the interpreter while others computed, would have been no faster on a thread, which needs it as well.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

SLOW_SECONDS = 0.010
RESTS = 10  # times as long as a slow answer took
MOST_TEXTS = 64  # more of them take milliseconds to sum and to write as JSON
AT_WORK = 0.5  # share of a slow answer's time for which others computed, if that is why it was slow


class Spent(NamedTuple):
    """So far."""

    waits: int  # of this thread, for anything other than its turn on the processor
    reads: int  # of this thread, from a disk
    others_s: float  # processor time of all other threads


@dataclass(frozen=True, slots=True)
class Began:
    at: float
    spent: Spent


def _spent() -> Callable[[], Spent]:
    """Where the system does not tell, this thread has always waited."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        counted = count()
        return lambda: Spent(next(counted), 0, 0.0)

    def spent() -> Spent:
        mine = resource.getrusage(resource.RUSAGE_THREAD)
        return Spent(mine.ru_nvcsw, mine.ru_inblock, time.process_time() - mine.ru_utime - mine.ru_stime)

    return spent


class Pace:
    """Only for the event loop's thread."""

    def __init__(
        self,
        *,
        embedded: bool,
        monotonic: Callable[[], float] = time.monotonic,
        spent: Callable[[], Spent] | None = None,
    ) -> None:
        self._embedded = embedded
        self._monotonic = monotonic
        self._spent = spent or _spent()
        self._rests_until = 0.0

    @property
    def embedded(self) -> bool:
        """Whether the store is a file that this process reads itself."""
        return self._embedded

    def allows(self, texts: int) -> bool:
        return self._embedded and texts <= MOST_TEXTS and self._monotonic() >= self._rests_until

    def begins(self) -> Began:
        return Began(self._monotonic(), self._spent())

    def ends(self, began: Began) -> None:
        now = self._monotonic()
        took = now - began.at
        if took > SLOW_SECONDS and _waited_for_the_store(began.spent, self._spent(), took):
            self._rests_until = now + RESTS * took


def _waited_for_the_store(before: Spent, after: Spent, took: float) -> bool:
    if after.waits == before.waits:
        return False
    return after.reads > before.reads or after.others_s - before.others_s < AT_WORK * took
