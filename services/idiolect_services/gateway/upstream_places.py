"""How many completions may wait for upstreams at once.

One that waits costs next to nothing here, but it waits as long as a tenant's upstream likes, in a place of
`IDIOLECT_MAX_REQUESTS`. An upstream that hangs must not take those places from everybody's rankings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from idiolect_services.gateway.statuses import StatusError

SHARE = 2  # of all places completions have one in so many, and one tenant one in so many of those


class UpstreamPlaces:
    """Only for the event loop's thread."""

    def __init__(self, most_requests: int) -> None:
        self._most = max(1, most_requests // SHARE)
        self._most_of_tenant = max(1, self._most // SHARE)
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Raises StatusError: 429 (`share_exceeded`), 503 (`overloaded`)."""
        if self._taken[tenant] >= self._most_of_tenant:
            raise StatusError(
                429,
                f"{self._most_of_tenant} completions of this tenant wait for its upstream.",
                mend="Call again after the time in Retry-After.",
                code="share_exceeded",
            )
        if self._taken.total() >= self._most:
            raise StatusError(
                503,
                "too many completions wait for upstreams.",
                mend="Call again after the time in Retry-After.",
                code="overloaded",
            )
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            self._taken += Counter()  # forgets whoever has none
