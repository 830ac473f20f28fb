"""Freeing what this process keeps of people who were reset, wherever that happened.

The log is in SQL, and every process follows it with a cursor of its own. A hint says up to where there is something
new; when no hint comes, it is found a moment later by asking. Nothing that is served depends on any of this.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from idiolect.clock import Clock
from idiolect.errors import IdiolectError, UnavailableError
from idiolect.ids import new_id
from idiolect.stores.purge_ports import PurgeStore
from idiolect_services.redis_setting import redis_wanted

log = logging.getLogger("idiolect.purging")

POLL_SECONDS = 0.25  # between processes; an embedded store has hardly ever a second one
EMBEDDED_POLL_SECONDS = 1.0
BEAT_SECONDS = 5.0
PAGE = 1000
# Between two looks at least, however many hints come: with many resets a second one look finds several of them.
GATHER_SECONDS = 0.25

Forget = Callable[[str, str], None]  # (tenant, subject)
# Of several people, what all processes share. Raises UnavailableError while it may still be there.
ForgetShared = Callable[[Sequence[tuple[str, str]]], None]


class PurgeListener:
    """What the gateway tells of purges, and by which name this process follows them. This one follows nothing."""

    replica: str | None = None

    def announce(self) -> None:
        """Something was just purged. Never blocks."""


class Hints(Protocol):
    """A fast and unreliable way to say up to which place of the log there is something."""

    def start(self, on_hint: Callable[[int | None], None]) -> None:
        """`on_hint` is told the place, or None: ask the log."""
        ...

    def stop(self) -> None: ...

    def publish(self, place: int) -> None:
        """Best effort; raises nothing."""
        ...


class NoHints:
    """Only asking."""

    def start(self, on_hint: Callable[[int | None], None]) -> None: ...

    def stop(self) -> None: ...

    def publish(self, place: int) -> None: ...


def redis_hints(url: str) -> Hints:
    """Raises ConfigurationError if the URL can't be read or the client is not installed."""
    with redis_wanted():
        from idiolect_services.purge_hints import RedisHints

        return RedisHints(url)


class PurgeFollower(PurgeListener):
    """One thread. `start` it before anything is cached."""

    def __init__(
        self,
        store: PurgeStore,
        forget: Forget,
        clock: Clock,
        *,
        embedded: bool = False,
        hints: Hints | None = None,
        forget_shared: ForgetShared | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replica: str = new_id()
        self._store = store
        self._forget = forget
        self._forget_shared = forget_shared
        self._clock = clock
        self._poll_s = EMBEDDED_POLL_SECONDS if embedded else POLL_SECONDS
        self._hints = hints or NoHints()
        self._monotonic = monotonic
        self._since = self._cursor = self._said = -1
        self._shared: list[tuple[str, str]] = []  # people up to the cursor, of whom what is shared is not purged yet
        self._beat_at = 0.0
        self._tell = threading.Event()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="purging", daemon=True)

    @property
    def cursor(self) -> int:
        """Everything up to here is purged from memory; -1 until the store could be asked for the first time."""
        return self._cursor

    def start(self) -> None:
        self.begin()
        self._hints.start(self._hinted)
        self._thread.start()

    def begin(self) -> None:
        """Follow from the end of the log on. If the store can't be asked now, follow all of it later."""
        try:
            self._since = self._cursor = self._store.purge_head()
            self._say(self._cursor)
        except IdiolectError as error:
            self._since = 0 if self._since < 0 else self._since
            self._complain(error)

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._hints.stop()
        try:
            self._store.leave(self.replica)
        except IdiolectError:
            log.info("the store can't be told that this process ends; it will notice")

    def announce(self) -> None:
        self._tell.set()
        self._wake.set()

    def _hinted(self, place: int | None) -> None:
        """What is said to be there is followed already, or asked for. Never believed: a small place only leaves it to
        the next time that is due anyway."""
        if place is None or place > self._cursor:
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._poll_s)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._follow_and_tell()
                self._failing = False
                self._stop.wait(GATHER_SECONDS)
            except IdiolectError as error:
                self._complain(error)
            except Exception:
                log.exception("purging failed; it is tried again")
                self._stop.wait(self._poll_s)

    def _follow_and_tell(self) -> None:
        """The others, of what was announced before this look: it is in what was found."""
        tells = self._tell.is_set()
        self._tell.clear()
        try:
            self.follow()
        except BaseException:
            if tells:
                self._tell.set()
            raise
        if tells:
            self._hints.publish(self._cursor)

    def follow(self) -> None:
        """Purge what is new, and say so. What was purged counts only after it was: a crash repeats it."""
        found = PAGE
        while found == PAGE:
            after = max(self._cursor, 0)
            purges = self._store.purges(after, limit=PAGE)
            for purge in purges:
                self._forget(purge.tenant, purge.subject)
            self._shared += [(purge.tenant, purge.subject) for purge in purges]
            found = len(purges)
            self._cursor = purges[-1].seq if purges else after
        trouble = self._purge_shared()
        purged = self._cursor if trouble is None else self._said
        beats = self._monotonic() - self._beat_at > BEAT_SECONDS
        if beats:
            self._store.sweep_blobs()  # what whoever doomed it did not come to
        if purged >= 0 and (beats or purged != self._said):
            self._say(purged)
        if trouble is not None:
            raise trouble

    def _purge_shared(self) -> UnavailableError | None:
        """Last, and all of it before any is said to be purged: memory is not to wait for what others hold."""
        try:
            while self._shared:
                if self._forget_shared is not None:
                    self._forget_shared(self._shared[:PAGE])
                del self._shared[:PAGE]
        except UnavailableError as error:
            return error
        return None

    def _say(self, purged: int) -> None:
        self._store.follow(self.replica, self._since, purged, self._clock.now())
        self._said, self._beat_at = purged, self._monotonic()

    def _complain(self, error: IdiolectError) -> None:
        """Once per trouble: what is cached is not served, so this can wait."""
        if not self._failing:
            log.warning("caches are not purged for now: %s", error)
        self._failing = True
