"""Forwards of the model that concurrent requests share, fair between tenants.

What is not cached waits here. One thread takes from the tenants in turn (deficit round robin by work), as much as one
forward does in about `FORWARD_SECONDS`, and everything that arrives meanwhile waits for the next one. So a tenant with
a few texts waits for the forward that runs and for its own turn, however much another tenant has sent. The bits of a
text don't depend on what it was computed with, so rows under different LoRAs share a forward as all others do.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from idiolect.errors import UnavailableError
from idiolect_adapters.runtime.features import FeatureCache, Features, Pair, Stacked, Wanted
from idiolect_services.gateway.process import Process
from idiolect_services.gateway.queueing import Ask, Bounds, FairQueue, Missing, Waiting
from idiolect_services.gateway.statuses import StatusError

GATHER_SECONDS = 0.002  # an idle server waits this long for others to join, a busy one not at all
FORWARD_SECONDS = 0.1
# Whoever would wait longer than this for a turn is refused at once, unless they said that they will wait. Their places
# are needed for those who need no model: a number of texts, too, may be far more than a slow machine does in time.
QUEUE_SECONDS = 5.0
FIRST_WORK = 64  # of one forward, until its speed is known
LEAST_WORK, MOST_WORK = 16, 4096
SMOOTHING = 0.3  # weight of the newest forward in the estimate of the speed
MAX_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Counts since the start; `waiting` and `tenants` are of now."""

    waiting: int
    tenants: int
    forwards: int
    computed: int
    shared: int  # texts that joined one which was already waiting or being computed
    expired: int
    left: int  # requests whose client went away
    refused_share: int
    refused_full: int


@dataclass(slots=True)
class _Counts:
    forwards: int = 0
    computed: int = 0
    expired: int = 0
    left: int = 0


@dataclass(slots=True)
class _Speed:
    """Work per second of the last forwards."""

    per_second: float | None = None

    def saw(self, work: int, seconds: float) -> None:
        now = work / max(seconds, 1e-6)
        self.per_second = now if self.per_second is None else self.per_second + SMOOTHING * (now - self.per_second)

    @property
    def budget(self) -> int:
        if self.per_second is None:
            return FIRST_WORK
        return int(min(max(self.per_second * FORWARD_SECONDS, LEAST_WORK), MOST_WORK))

    def work_in(self, seconds: float) -> float:
        """Any amount, until the speed is known."""
        return math.inf if self.per_second is None else seconds * self.per_second

    def seconds_for(self, work: int) -> int:
        """Whole, at least 1."""
        seconds = work / self.per_second if self.per_second else 1.0
        return max(1, min(math.ceil(seconds), MAX_RETRY_SECONDS))


@dataclass(frozen=True, slots=True)
class _Outcome:
    text: Waiting
    row: Features | BaseException


class Batcher:
    """Ask it from any event loop. It has one thread, which is at work only while something waits."""

    def __init__(self, bounds: Bounds | None = None, process: Process | None = None) -> None:
        process = process or Process()
        self._queue = FairQueue(bounds or Bounds())
        self._monotonic = process.monotonic
        self._lock = threading.Lock()
        self._enough = threading.Event()  # for one forward: an idle server need not wait for more
        self._working = False
        self._speed = _Speed()
        self._counts = _Counts()
        self._pool = process.threads("compute", 1)

    async def features(
        self,
        cache: FeatureCache,
        tenant: str,
        pairs: Sequence[Pair],
        person: str | None,
        seconds: float,
        stacks: Sequence[Stacked] = (),
        patience: float | None = None,
    ) -> Features:
        """[N, W] of the bare model, and under it as many rows more for each of `stacks`.

        Raises StatusError: 429 beyond the tenant's share of the queue, or if what they have sent already is estimated
        to take over `patience` (if None: `seconds`); 503 if the queue is full or it took over `seconds`; and what the
        model raises. Cancelled, it leaves the queue.
        """
        rows_NW, missing = _found(cache, tenant, pairs, person, stacks)
        if not missing:
            return rows_NW
        loop = asyncio.get_running_loop()
        ask = Ask(tenant, person, rows_NW, self._monotonic() + seconds, loop, loop.create_future(), cache.moment)
        self._join(ask, cache, missing, seconds if patience is None else patience)
        try:
            async with asyncio.timeout(seconds):
                await ask.done
        except TimeoutError:
            self._leave(ask, expired=True)
            raise self._too_late(seconds) from None
        except asyncio.CancelledError:
            self._leave(ask, expired=False)
            raise
        return rows_NW

    def _join(self, ask: Ask, cache: FeatureCache, missing: Sequence[Missing], patience: float) -> None:
        with self._lock:
            refused = self._queue.join(ask, cache, missing, self._speed.work_in(patience))
            if refused is None:
                if self._queue.work >= self._speed.budget:
                    self._enough.set()
                if not self._working:
                    self._pool.submit(self._work)  # first, because it raises once the pool is closed
                    self._working = True
                return
            seconds = self._speed.seconds_for(self._queue.work)
        if refused == "share":
            raise StatusError(
                429,
                "too many texts of this tenant wait for the model.",
                mend="Send fewer at once, or come back after the time in Retry-After.",
                code="share_exceeded",
                retry_after_s=seconds,
            )
        raise StatusError(
            503,
            "too many texts wait for the model.",
            mend="Come back after the time in Retry-After.",
            code="overloaded",
            retry_after_s=seconds,
        )

    def _leave(self, ask: Ask, *, expired: bool) -> None:
        with self._lock:
            self._queue.leave(ask)
            self._counts.expired += expired
            self._counts.left += not expired

    def _too_late(self, seconds: float) -> StatusError:
        return StatusError(
            503,
            f"the model had no answer within {seconds:g} seconds.",
            mend="Come back after the time in Retry-After, send fewer texts, or allow more time.",
            code="deadline_exceeded",
            retry_after_s=self._speed.seconds_for(self._queue.work),
        )

    def _work(self) -> None:
        """Until nothing waits."""
        self._enough.wait(GATHER_SECONDS)
        try:
            while texts := self._next():
                outcomes = self._computed(texts)
                with self._lock:
                    done = [ask for one in outcomes for ask in self._queue.landed(one.text, one.row)]
                    self._counts.computed += len(outcomes)
                _tell(done)
        except BaseException:
            self._working = False  # a bug: those who wait run out of time, and the next one starts it again
            raise

    def _next(self) -> list[Waiting]:
        with self._lock:
            texts = self._queue.take(self._speed.budget, self._monotonic())
            self._working = bool(texts)
            self._enough.clear()
            return texts

    def _computed(self, texts: Sequence[Waiting]) -> list[_Outcome]:
        """Two models are only there while one takes over from the other."""
        began = self._monotonic()
        outcomes: list[_Outcome] = []
        for _, group in groupby(sorted(texts, key=lambda text: id(text.cache)), key=lambda text: id(text.cache)):
            outcomes += self._forward(list(group))
        self._speed.saw(sum(text.work for text in texts), self._monotonic() - began)
        return outcomes

    def _forward(self, texts: Sequence[Waiting]) -> list[_Outcome]:
        """A text that the model can't do takes nobody else's answer away: after a failure each is tried alone."""
        self._counts.forwards += 1
        try:
            rows_NW = texts[0].cache.project_each([_wanted(text) for text in texts])
            return [_Outcome(text, row) for text, row in zip(texts, rows_NW, strict=True)]
        except Exception as error:
            if len(texts) == 1:
                return [_Outcome(texts[0], error)]
            return [outcome for text in texts for outcome in self._forward([text])]

    def stats(self) -> BatchStats:
        with self._lock:
            queue, counts = self._queue, self._counts
            return BatchStats(
                waiting=queue.texts,
                tenants=queue.tenants,
                forwards=counts.forwards,
                computed=counts.computed,
                shared=queue.shared,
                expired=counts.expired,
                left=counts.left,
                refused_share=queue.refused_share,
                refused_full=queue.refused_full,
            )

    def close(self) -> None:
        """Whoever still waits is told that the server stops; the forward that runs is waited for."""
        with self._lock:
            asks = self._queue.clear()
        for ask in asks:
            ask.error = UnavailableError("the server stops.", mend="Try again.")
        _tell(asks)
        self._pool.shutdown(wait=True)


def _found(
    cache: FeatureCache, tenant: str, pairs: Sequence[Pair], person: str | None, stacks: Sequence[Stacked]
) -> tuple[Features, list[Missing]]:
    parts: list[Features] = []
    missing: list[Missing] = []
    for number, stack in enumerate((None, *stacks)):
        rows_NW, gaps = cache.found(tenant, pairs, person, stack)
        parts.append(rows_NW)
        missing += [(number * len(pairs) + index, pairs[index], stack) for index in gaps]
    return parts[0] if len(parts) == 1 else np.concatenate(parts), missing


def _wanted(text: Waiting) -> Wanted:
    people = {ask.person for ask in text.asks}
    since = max((ask.since for ask in text.asks), default=0)
    return Wanted(text.tenant, text.pair, people.pop() if len(people) == 1 else None, text.stack, since)


def _tell(asks: Sequence[Ask]) -> None:
    for ask in asks:
        with suppress(RuntimeError):  # that loop was closed, so nobody waits there any more
            ask.loop.call_soon_threadsafe(_finish, ask)


def _finish(ask: Ask) -> None:
    if ask.done.done():  # cancelled, or too late
        return
    if ask.error is None:
        ask.done.set_result(None)
    else:
        ask.done.set_exception(ask.error)
