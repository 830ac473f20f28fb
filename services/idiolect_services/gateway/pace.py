"""Whether a request that needs no model may be answered on the event loop, without a thread.

Handing a request to a thread and back costs more than answering it from memory and an embedded store. But the loop
serves everybody: after such an answer had to wait for long (a cold disk, a busy file), they all go through threads for
a while, the longer the slower it was. So slow ones hold the loop for a tenth of the time at most. That the system let
another process run for a while is not the store's fault, and no thread would have been faster.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

SLOW_SECONDS = 0.010
RESTS = 10  # times as long as a slow answer took
MOST_TEXTS = 64  # more of them take milliseconds to sum and to write as JSON


@dataclass(frozen=True, slots=True)
class Began:
    at: float
    waits: int


def _waits() -> Callable[[], int]:
    """How often this thread has waited for anything so far, other than for its turn on the processor. Where the system
    does not tell, it always has."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        return count().__next__
    return lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Pace:
    """Only for the event loop's thread."""

    def __init__(
        self,
        *,
        embedded: bool,
        monotonic: Callable[[], float] = time.monotonic,
        waits: Callable[[], int] | None = None,
    ) -> None:
        self._embedded = embedded
        self._monotonic = monotonic
        self._waits = waits or _waits()
        self._rests_until = 0.0

    @property
    def embedded(self) -> bool:
        """Whether the store is a file that this process reads itself."""
        return self._embedded

    def allows(self, texts: int) -> bool:
        return self._embedded and texts <= MOST_TEXTS and self._monotonic() >= self._rests_until

    def begins(self) -> Began:
        return Began(self._monotonic(), self._waits())

    def ends(self, began: Began) -> None:
        now = self._monotonic()
        if now - began.at > SLOW_SECONDS and self._waits() > began.waits:
            self._rests_until = now + RESTS * (now - began.at)
