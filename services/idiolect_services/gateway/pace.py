"""Whether a request that needs no model may be answered on the event loop, without a thread.

Handing a request to a thread and back costs more than answering it from memory and an embedded store. But the loop
serves everybody: as soon as one such answer was slow (a cold disk, a busy file), they all go through threads for
a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SLOW_SECONDS = 0.010
REST_SECONDS = 1.0
MOST_TEXTS = 64  # more of them take milliseconds to sum and to write as JSON


class Pace:
    """Only for the event loop's thread."""

    def __init__(self, *, embedded: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._embedded = embedded
        self._monotonic = monotonic
        self._rests_until = 0.0

    def allows(self, texts: int) -> bool:
        return self._embedded and texts <= MOST_TEXTS and self._monotonic() >= self._rests_until

    def took(self, seconds: float) -> None:
        if seconds > SLOW_SECONDS:
            self._rests_until = self._monotonic() + REST_SECONDS
