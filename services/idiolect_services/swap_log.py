"""The log of swaps, a stream in Redis: which versions became live, so that servers may load them ahead of need.

Best effort, after the commit: a command writes at once and waits for a moment at most, a server from a thread of its
own. Which entries there are or are not changes nothing that is served.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress

from idiolect.registry.swaps import Swap
from idiolect.stores.redis.link import RedisLink
from idiolect_services.stream_tail import KEPT

log = logging.getLogger("idiolect.swaps")

STREAM = "idiolect:swaps"
TELL_SECONDS = 0.25
MAX_WAITING = 1000


class SwapLog:
    """Thread-safe."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for what is not a Redis URL; connects only when used."""
        without = "servers load new versions when they are asked for"
        self._link = RedisLink(url, log, without, answer_seconds=TELL_SECONDS)

    def tell(self, swap: Swap) -> None:
        self._link.ask(lambda client: client.xadd(STREAM, swap.fields(), maxlen=KEPT, approximate=True))

    def close(self) -> None:
        self._link.close()


class SwapTeller:
    """One thread that tells. Whoever has something to tell does not wait; what is too much is not told."""

    def __init__(self, url: str) -> None:
        self._log = SwapLog(url)
        self._waiting: queue.Queue[Swap | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="telling swaps", daemon=True)

    def note(self, swap: Swap) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait(swap)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What waits is told first."""
        self._waiting.put(None)
        self._thread.join()
        self._log.close()

    def _run(self) -> None:
        while (swap := self._waiting.get()) is not None:
            self._log.tell(swap)
