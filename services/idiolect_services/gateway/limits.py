"""How often a tenant and a key may call. Off unless set.

Counted in this process, or in Redis for all replicas together. A Redis that fails must not take the API down with it:
each process then counts for itself, says so in the log, and asks Redis again a second later.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from idiolect.errors import ConfigurationError
from idiolect.settings import Settings
from idiolect.tenancy import Caller
from idiolect_services.gateway.statuses import StatusError

logger = logging.getLogger("idiolect.gateway")

REDIS_SECONDS = 0.25  # longer than this no request waits for a counter
REST_SECONDS = 1.0  # for which a Redis that failed is not asked: else one that hangs would hold up every request

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Policy:
    """`name` is what is counted by: the key, or its whole tenant."""

    name: str
    item: RateLimitItem

    def counter(self, caller: Caller) -> tuple[str, ...]:
        return (self.name, caller.tenant, caller.key_id) if self.name == "key" else (self.name, caller.tenant)

    def describe(self) -> str:
        return f'"{self.name}";q={self.item.amount};w={self.item.get_expiry()}'


class RateLimits:
    """The key's own limit comes first, so that one runaway key does not use up its tenant's."""

    def __init__(self, policies: tuple[Policy, ...], shared: Storage | None = None) -> None:
        self._policies = policies
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = None if shared is None else SlidingWindowCounterRateLimiter(shared)
        self._trouble = () if shared is None else _failures(shared)
        self._monotonic: Callable[[], float] = time.monotonic
        self._alone_until: float | None = None  # None while Redis answers

    @staticmethod
    def of(settings: Settings) -> RateLimits:
        """Raises ConfigurationError for a limit or a Redis URL that can't be read."""
        named = (("key", settings.key_rate_limit), ("tenant", settings.tenant_rate_limit))
        policies = tuple(Policy(name, _parsed(name, text)) for name, text in named if text is not None)
        return RateLimits(policies, None if settings.redis_url is None else _redis(settings.redis_url))

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        storage = None if self._shared is None else self._shared.storage
        if isinstance(storage, RedisStorage):
            client: Any = storage.bridge  # its type does not say that it holds a client
            await client.storage.aclose()

    async def take(self, caller: Caller) -> list[Header]:
        """Count one call. The headers to answer with. Raises StatusError (429), which has them too."""
        lines: list[str] = []
        for policy in self._policies:
            taken, remaining, reset_s = await self._hit(policy, caller)
            lines.append(f'"{policy.name}";r={remaining};t={reset_s}')
            if not taken:
                raise StatusError(
                    429,
                    f"the {policy.name} has reached its limit of {policy.item}.",
                    mend="Call again after the time in Retry-After.",
                    code="rate_limited",
                    retry_after_s=max(1, reset_s),
                    headers=self._headers(lines),
                )
        return self._headers(lines)

    def _headers(self, lines: list[str]) -> list[Header]:
        if not lines:
            return []
        policies = ", ".join(policy.describe() for policy in self._policies)
        return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", ", ".join(lines).encode())]

    async def _hit(self, policy: Policy, caller: Caller) -> tuple[bool, int, int]:
        """(whether it may pass, how many are left, seconds until all are)."""
        alone_until = self._alone_until
        if self._shared is not None and (alone_until is None or self._monotonic() >= alone_until):
            try:
                found = await _counted(self._shared, policy, caller)
            except self._trouble as error:
                self._failed(error)
            else:
                self._alone_until = None
                return found
        return await _counted(self._own, policy, caller)

    def _failed(self, error: BaseException) -> None:
        """Said once, not for every request, until Redis has answered in between."""
        if self._alone_until is None:
            logger.warning("rate limits are counted per process: Redis failed (%s)", type(error).__name__)
        self._alone_until = self._monotonic() + REST_SECONDS


async def _counted(limiter: SlidingWindowCounterRateLimiter, policy: Policy, caller: Caller) -> tuple[bool, int, int]:
    counter = policy.counter(caller)
    taken = await limiter.hit(policy.item, *counter)
    window = await limiter.get_window_stats(policy.item, *counter)
    return taken, max(0, window.remaining), max(0, math.ceil(window.reset_time - time.time()))


def _parsed(name: str, text: str) -> RateLimitItem:
    try:
        return parse(text)
    except ValueError:
        raise ConfigurationError(
            f"IDIOLECT_{name.upper()}_RATE_LIMIT is not a limit: {text[:40]!r}.", mend="Write it as '600/minute'."
        ) from None


def _redis(url: str) -> Storage:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigurationError("IDIOLECT_REDIS_URL is not a Redis URL.", mend="Write it as redis://host:6379/0.")
    prefix = "redis+unix" if url.startswith("unix://") else url.partition("://")[0]
    options = {"socket_timeout": REDIS_SECONDS, "socket_connect_timeout": REDIS_SECONDS}
    address = f"async+{prefix}://{url.partition('://')[2]}"
    return cast(Storage, storage_from_string(address, implementation="redispy", **options))


def _failures(storage: Storage) -> tuple[type[Exception], ...]:
    kinds = storage.base_exceptions
    return (*(kinds if isinstance(kinds, tuple) else (kinds,)), OSError, TimeoutError)
