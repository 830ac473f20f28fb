"""What servers remember together of what was resolved, where there is a Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from idiolect.errors import UnavailableError
from idiolect.stores.redis.resolutions import RememberedResolutions
from idiolect_services.redis_setting import redis_wanted
from idiolect_services.wiring import Installation

log = logging.getLogger("idiolect.serving")

_PURPOSE = "remembered resolutions"


def memory_of(installation: Installation) -> RememberedResolutions | None:
    """None without a Redis, and for an embedded store, which answers faster than any. Raises ConfigurationError."""
    url = installation.settings.redis_url
    if url is None or installation.store.embedded:
        return None
    with redis_wanted():
        from idiolect.stores.redis.link import RedisLink

        link = RedisLink(url, log, "nothing that was resolved is remembered")
    return RememberedResolutions(link, installation.vault.derive("", _PURPOSE), installation.clock.now)


class Forgetting:
    """For the purge log: what is remembered of people who were reset is deleted. It could be served no more anyway.

    What a Redis holds that failed for so long has expired; then a purge need not wait for it any longer.
    """

    def __init__(self, memory: RememberedResolutions, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._monotonic = monotonic
        self._failing_since: float | None = None

    def __call__(self, people: Sequence[tuple[str, str]]) -> None:
        """Raises UnavailableError while Redis does not answer, and what it holds may still be there."""
        if self._memory.forget(people):
            self._failing_since = None
            return
        now = self._monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since < self._memory.longest_s:
            raise UnavailableError(
                "Redis does not answer, and may hold what was resolved for people who were reset.",
                mend=f"It is deleted as soon as Redis answers, and expires within {self._memory.longest_s} seconds.",
            )
