"""Following the log of swaps: what becomes live for people whose adapters are in memory is loaded before they ask.

Low priority throughout: a few look-ups at a time with a break between them, and loads by the thread of the bank that
gives way. Of a large release only those are looked up who are in memory, and not again within some seconds. What an
entry says is never believed: the store is asked what is live now.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from idiolect.errors import IdiolectError
from idiolect.registry.pointers import Adapter
from idiolect.registry.resolution import Resolution
from idiolect.registry.swaps import Swap, swap_in
from idiolect.stores.ports import Store
from idiolect_adapters.runtime.bank import Owner
from idiolect_services.gateway.metrics import SwapStats
from idiolect_services.live import LiveScorer
from idiolect_services.models import Models
from idiolect_services.stream_tail import Fields, StreamTail
from idiolect_services.swap_log import MAX_WAITING, STREAM, SwapTeller

log = logging.getLogger("idiolect.swaps")

AT_ONCE = 32  # that are looked up together
BREAK_SECONDS = 0.02  # after each of these
# Between two looks at everybody of a tenant who is in memory.
SWEEP_SECONDS = 10.0


class SwapFollower:
    """Two threads: one follows the stream, one looks up. `tell` is for swaps of this process."""

    def __init__(
        self, url: str, live: LiveScorer, store: Store, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError for what is not a Redis URL; connects only when started."""
        self._live = live
        self._store = store
        self._monotonic = monotonic
        self._teller = SwapTeller(url)
        self._tail = StreamTail(url, STREAM, self._read, log)
        self._heard: queue.Queue[Swap | None] = queue.Queue(MAX_WAITING)
        self._swept: dict[str, float] = {}  # tenant -> when, of those in the last SWEEP_SECONDS
        self._due: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following swaps", daemon=True)
        self.tell = self._teller.note
        self.followed = self.prefetched = 0

    def stats(self) -> SwapStats:
        return SwapStats(self.followed, self.prefetched)

    def start(self) -> None:
        self._teller.start()
        self._tail.start()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._teller.stop()
        self._tail.stop()
        with suppress(queue.Full):  # then it wakes up by itself
            self._heard.put_nowait(None)
        self._thread.join()

    def _read(self, entries: Sequence[Fields] | None) -> None:
        """Missed ones are not looked for, and of too many the last are dropped: whoever asks has theirs loaded."""
        for fields in entries or ():
            swap = swap_in(fields)
            if swap is not None:
                with suppress(queue.Full):
                    self._heard.put_nowait(swap)

    def _run(self) -> None:
        while not self._stop.is_set():
            swap: Swap | None = None
            with suppress(queue.Empty):
                swap = self._heard.get(timeout=1.0 if self._due else None)
            try:
                if swap is not None:
                    self.follow(swap)
                self.sweep()
            except IdiolectError as error:
                log.info("what is live is not loaded ahead for now: %s", error)
            except Exception:
                log.exception("a swap could not be followed")
            self._stop.wait(BREAK_SECONDS)

    def follow(self, swap: Swap) -> None:
        """Raises what the store raises."""
        with self._live.lease() as models:
            if not any(scorer.bank.knows(swap.tenant) for scorer in models.scorers):
                return
        self.followed += 1
        if not swap.versions:
            self._due.add(swap.tenant)
            return
        named = (self._store.version(swap.tenant, version) for version in swap.versions)
        owners = {Adapter.of(one.version.subject, one.version.domain) for one in named if one is not None}
        self._renew([Owner(swap.tenant, owner.scope, owner.name) for owner in owners])

    def sweep(self) -> None:
        """Everybody who is in memory, of the tenants where many changed. Raises what the store raises."""
        now = self._monotonic()
        self._swept = {tenant: at for tenant, at in self._swept.items() if now - at < SWEEP_SECONDS}
        for tenant in self._due - self._swept.keys():
            self._due.discard(tenant)
            self._swept[tenant] = now
            with self._live.lease() as models:
                owners = {owner: None for scorer in models.scorers for owner, _ in scorer.bank.used_last(tenant)}
            self._renew(owners)

    def _renew(self, owners: Iterable[Owner]) -> None:
        waiting = list(owners)
        while waiting and not self._stop.is_set():
            some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            with self._live.lease() as models:
                some = [owner for owner in some if any(scorer.bank.used_by(owner) for scorer in models.scorers)]
                found = self._store.resolve_each([_question(owner) for owner in some]) if some else ()
                for owner, resolution in zip(some, found, strict=True):
                    self._load_ahead(models, owner, resolution)
            if waiting:
                self._stop.wait(BREAK_SECONDS)

    def _load_ahead(self, models: Models, owner: Owner, resolution: Resolution) -> None:
        """And free what nobody is served any more. A domain may have two at once, while one is rolled out."""
        scorer, seen = models.serving(resolution)
        wanted, bank = seen.user if owner.scope == "user" else seen.domain, scorer.bank
        if wanted is None or seen.global_digest != scorer.model.digest or bank.holds(owner, wanted):
            return
        before = bank.used_by(owner)
        self.prefetched += bank.prefetch(owner, wanted)
        if before is not None and owner.scope == "user":
            bank.unload(owner, before)


def _question(owner: Owner) -> tuple[str, str | None, str | None]:
    is_person = owner.scope == "user"
    return owner.tenant, owner.name if is_person else None, None if is_person else owner.name
