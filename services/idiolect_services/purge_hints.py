"""The purge log's stream in Redis: an entry says up to which place whoever wrote it has followed, and nothing of whom.

Who has followed so far already need not ask SQL again. That is all that is believed: no place from here becomes
anybody's cursor, and whatever Redis loses, makes up or holds back is found by asking SQL a moment later.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

from idiolect.stores.redis.link import RedisLink
from idiolect_services.stream_tail import KEPT, Fields, StreamTail

log = logging.getLogger("idiolect.purging")

STREAM = "idiolect:purges"
TELL_SECONDS = 0.25
_PLACE = re.compile(rb"[0-9]{1,18}")

OnHint = Callable[[int | None], None]  # (the place up to which there is something, None where that can't be told)


class RedisHints:
    def __init__(self, url: str) -> None:
        """Raises ValueError for what is not a Redis URL; connects only when used."""
        self._tail = StreamTail(url, STREAM, self._read, log)
        self._link = RedisLink(url, log, "other processes find purges by asking", answer_seconds=TELL_SECONDS)
        self._last = 0  # the place that was said last
        self._on_hint: OnHint | None = None

    def start(self, on_hint: OnHint) -> None:
        self._on_hint = on_hint
        self._tail.start()

    def stop(self) -> None:
        self._tail.stop()
        self._link.close()

    def publish(self, place: int) -> None:
        self._link.ask(lambda client: client.xadd(STREAM, {"seq": place}, maxlen=KEPT, approximate=True))

    def _read(self, entries: Sequence[Fields] | None) -> None:
        assert self._on_hint is not None
        self._on_hint(None if entries is None else self._highest(entries))

    def _highest(self, entries: Sequence[Fields]) -> int | None:
        """None if one of them is nonsense, or all are below what was said before: then who says it, or who said that,
        is wrong, or late."""
        said = [fields.get(b"seq", b"") for fields in entries]
        if not all(map(_PLACE.fullmatch, said)):
            return None
        before, self._last = self._last, max(map(int, said))
        return None if self._last < before else self._last
