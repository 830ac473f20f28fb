"""A connection to a Redis that nobody waits for: what fails is not asked again for a moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

TROUBLE = (redis.RedisError, OSError)
ANSWER_SECONDS = 0.05  # longer than this no request waits
REST_SECONDS = 1.0  # for which a Redis that failed is not asked: else one that hangs would hold up every request

Given = TypeVar("Given")


class RedisLink:
    """Thread-safe. A connection that failed in any way is thrown away, whatever state it is in."""

    def __init__(
        self,
        url: str,
        log: logging.Logger,
        without_it: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`without_it`: what the log says is so while Redis fails. Connects only when asked. Raises ValueError for what
        is not a Redis URL."""
        self._client: Any = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=answer_seconds,
            socket_connect_timeout=answer_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._log = log
        self._without_it = without_it
        self._monotonic = monotonic
        self._rests_until: float | None = None  # None while Redis answers

    def ask(self, question: Callable[[Any], Given]) -> Given | None:
        """What Redis says to `question`, which is given the client; None if it fails or rests."""
        rests_until = self._rests_until
        if rests_until is not None and self._monotonic() < rests_until:
            return None
        try:
            answer = question(self._client)
        except TROUBLE as error:
            self._failed(error)
            return None
        self._rests_until = None
        return answer

    def close(self) -> None:
        self._client.close()

    def _failed(self, error: Exception) -> None:
        """Said once, until Redis has answered in between."""
        if self._rests_until is None:
            self._log.warning("%s: Redis failed (%s)", self._without_it, type(error).__name__)
        self._rests_until = self._monotonic() + REST_SECONDS
        self._client.connection_pool.disconnect(inuse_connections=False)
