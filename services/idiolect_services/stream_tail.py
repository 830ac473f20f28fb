"""Following a stream in Redis, which may be flushed, stopped, trimmed, failed over to an older copy, or wrong.

The cursor is kept across reconnects. That the entry it stands on is not there any more says that others may be lost as
well: whoever follows is told so, and asks SQL.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis

from idiolect.stores.redis.link import TROUBLE

Fields = Mapping[bytes, bytes]
OnNews = Callable[[Sequence[Fields] | None], None]  # entries in their order; None: some may have been missed

KEPT = 1000  # entries of a stream, about
BLOCK_SECONDS = 1.0
ANSWER_SECONDS = 1.0
REST_SECONDS = 0.25
_EMPTY = b"0-0"  # before every entry


class StreamTail:
    """One thread with one connection, which is thrown away after any error. Begins after the newest entry; where the
    cursor is lost, with the first."""

    def __init__(self, url: str, stream: str, on_news: OnNews, log: logging.Logger) -> None:
        """Raises ValueError for what is not a Redis URL; connects only when started. `on_news` raises nothing."""
        self._client: Any = redis.Redis.from_url(
            url, protocol=2, socket_timeout=BLOCK_SECONDS + ANSWER_SECONDS, socket_connect_timeout=0.5
        )
        self._stream = stream
        self._on_news = on_news
        self._log = log
        self._cursor: bytes | None = None  # None: not known yet
        self._in_trouble = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"following {stream}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except TROUBLE as error:
                self._client.connection_pool.disconnect()
                self._log.log(
                    logging.DEBUG if self._in_trouble else logging.INFO,
                    "the stream %s can't be followed for now (%s)",
                    self._stream,
                    type(error).__name__,
                )
                self._in_trouble = True
                self._stop.wait(REST_SECONDS)

    def _follow(self) -> None:
        found: Any = None
        while not self._stop.is_set():
            if not found and not self._cursor_stands():
                self._cursor = self._newest() if self._cursor is None else _EMPTY
                self._on_news(None)
            self._in_trouble = False
            found = self._client.xread({self._stream: self._cursor}, count=KEPT, block=int(BLOCK_SECONDS * 1000))
            if found:
                entries = found[0][1]
                self._cursor = entries[-1][0]
                self._on_news([fields for _, fields in entries])

    def _newest(self) -> bytes:
        newest: list[tuple[bytes, Fields]] = self._client.xrevrange(self._stream, count=1)
        return newest[0][0] if newest else _EMPTY

    def _cursor_stands(self) -> bool:
        """Of a stream that is younger than the cursor nothing would ever come: its entries are before it."""
        if self._cursor is None or self._cursor == _EMPTY:
            return self._cursor is not None
        return bool(self._client.xrange(self._stream, self._cursor, self._cursor))
