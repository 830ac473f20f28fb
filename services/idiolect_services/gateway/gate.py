"""The last fence between a reset and responses that were already under way.

A request that resolved before a reset may still be computing when the reset answers. The reset announces the new
generation here, on the event loop, before it answers; a response is checked here, on the same loop and with no await
before it is sent. So within one process nothing older than an acknowledged reset leaves. Across processes the scorer's
second look at the store stands alone.
"""

from __future__ import annotations

from collections import OrderedDict

DEFAULT_CAPACITY = 65_536


class GenerationGate:
    """Only for the event loop's thread: that is what makes check-then-send atomic.

    Bounded, and still exact. An announcement matters only to requests that began before it; later ones read the new
    generation from the store. When the oldest announcement is dropped to make room, `_horizon` remembers its number,
    and a request with an older ticket is refused rather than trusted.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._announced: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()  # (generation, number)
        self._number = 0
        self._horizon = 0

    def ticket(self) -> int:
        """Take one before resolving; it says which announcements the request can't have missed."""
        return self._number

    def announce(self, tenant: str, subject: str, generation: int) -> None:
        """Nothing of this person older than `generation` may leave from now on. Lower than before: ignored."""
        known = self._announced.pop((tenant, subject), (generation, 0))
        self._number += 1
        self._announced[tenant, subject] = (max(generation, known[0]), self._number)
        if len(self._announced) > self._capacity:
            _, (_, self._horizon) = self._announced.popitem(last=False)

    def admits(self, ticket: int, tenant: str, subject: str | None, generation: int | None) -> bool:
        """Whether a response computed under `generation` may be sent. False: resolve again with a new ticket."""
        if subject is None or generation is None:
            return True
        if ticket < self._horizon:
            return False  # an announcement that it might have missed is gone
        announced = self._announced.get((tenant, subject))
        return announced is None or generation >= announced[0]

    def __len__(self) -> int:
        return len(self._announced)
