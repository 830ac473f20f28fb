"""Hints over Redis: an entry in a stream says that the purge log has grown, and nothing of whom.

Redis may lose it, or be flushed, stopped or replaced: whoever missed a hint asks the log itself a moment later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import redis

log = logging.getLogger("idiolect.purging")

STREAM = "idiolect:purges"
KEPT = 1000
BLOCK_SECONDS = 1.0
REST_SECONDS = 0.25
_TROUBLE = (redis.RedisError, OSError)


class RedisHints:
    """Two connections: one that waits, and one that tells. Each is thrown away after an error, whatever state it is
    in."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for what is not a Redis URL; connects only when used."""
        self._reader: Any = redis.Redis.from_url(
            url, protocol=2, socket_timeout=BLOCK_SECONDS + 1.0, socket_connect_timeout=0.5
        )
        self._writer: Any = redis.Redis.from_url(url, protocol=2, socket_timeout=0.25, socket_connect_timeout=0.25)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, on_hint: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._listen, args=(on_hint,), name="purge-hints", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._reader.close()
        self._writer.close()

    def publish(self) -> None:
        try:
            self._writer.xadd(STREAM, {"new": "1"}, maxlen=KEPT, approximate=True)
        except _TROUBLE as error:
            self._writer.connection_pool.disconnect()
            log.info("no hint was sent to the other processes (%s)", type(error).__name__)

    def _listen(self, on_hint: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                self._follow_stream(on_hint)
            except _TROUBLE as error:
                self._reader.connection_pool.disconnect()
                log.info("no hints of other processes come in (%s)", type(error).__name__)
                self._stop.wait(REST_SECONDS)

    def _follow_stream(self, on_hint: Callable[[], None]) -> None:
        newest = self._reader.xrevrange(STREAM, count=1)
        last = newest[0][0] if newest else b"0-0"
        on_hint()  # whatever came while nobody listened
        while not self._stop.is_set():
            found = self._reader.xread({STREAM: last}, count=KEPT, block=int(BLOCK_SECONDS * 1000))
            if found:
                last = found[0][1][-1][0]
                on_hint()
