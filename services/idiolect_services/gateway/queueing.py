"""The queue in front of the model: bounded for each tenant and in all, served by deficit round robin.

Shreedhar & Varghese, "Efficient Fair Queuing using Deficit Round Robin" (1996), with a text as the packet. Not
thread-safe: the batcher holds its lock around every call.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from idiolect_adapters.runtime.features import FeatureCache, Features, Pair, Stacked

QUANTUM = 10  # work that a tenant gains with each turn; no text is more
CHARS_PER_WORK, MOST_CHARS = 128, 1024  # longer texts are cut by the model, so they cost no more

Refusal = Literal["share", "full"]
Missing = tuple[int, Pair, Stacked | None]  # (row of the request, the text, what it is read under)
_Key = tuple[int, str, str, str, str]  # (cache, tenant, prompt digest, text digest, the stack's key)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most texts, and most requests, that may wait. A tenant may always have one request waiting, however large, if
    there is room, and so may all together. What these numbers mean in seconds depends on the machine: see `join`."""

    tenant_texts: int = 2_000
    texts: int = 8_000


@dataclass(eq=False, slots=True)
class Ask:
    """One request that waits. `rows_NW` is filled as its texts are computed."""

    tenant: str
    person: str | None
    rows_NW: Features
    expires: float  # of the batcher's clock
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    since: int = 0  # the cache's moment
    error: BaseException | None = None
    places: dict[Waiting, list[int]] = field(default_factory=dict)  # what it still waits for, and where that belongs


@dataclass(eq=False, slots=True)
class Waiting:
    """One text under one stack of LoRAs (None: the bare model), and who waits for it."""

    cache: FeatureCache
    tenant: str
    pair: Pair
    stack: Stacked | None
    work: int
    asks: list[Ask] = field(default_factory=list)


class FairQueue:
    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._texts: dict[_Key, Waiting] = {}  # also those that are being computed
        self._queues: OrderedDict[str, OrderedDict[_Key, Waiting]] = OrderedDict()  # by tenant, whose turn it is first
        self._credit: dict[str, int] = {}
        self._work: Counter[str] = Counter()  # by tenant; what of `work` is theirs
        self._asks: Counter[str] = Counter()  # by tenant; those that only wait for texts of others take no other room
        self._cut_short: str | None = None
        self.texts = self.work = self.shared = 0
        self.refused_share = self.refused_full = 0

    @property
    def tenants(self) -> int:
        return len(self._queues)

    def join(
        self, ask: Ask, cache: FeatureCache, missing: Sequence[Missing], most_ahead: float = math.inf
    ) -> Refusal | None:
        """All of `missing` or nothing. Texts that wait already take no room.

        `most_ahead`: the work that may come before the first of `missing`. A tenant with nothing in the queue waits for
        a turn of each other one, and is not asked.
        """
        keys = [_key(cache, ask.tenant, pair, stack) for _, pair, stack in missing]
        new = len({key for key in keys if key not in self._texts})
        refused = self._refused(ask.tenant, new, most_ahead)
        if refused is not None:
            return refused
        self._asks[ask.tenant] += 1
        for key, (index, pair, stack) in zip(keys, missing, strict=True):
            text = self._texts.get(key)
            if text is None:
                text = self._add(key, Waiting(cache, ask.tenant, pair, stack, _work(pair)))
            elif text not in ask.places:
                self.shared += 1
            if text not in ask.places:
                text.asks.append(ask)
            ask.places.setdefault(text, []).append(index)
        return None

    def _refused(self, tenant: str, new: int, most_ahead: float) -> Refusal | None:
        own, bounds = len(self._queues.get(tenant, ())), self._bounds
        late = new and self._ahead(tenant, most_ahead)
        if late or (own and own + new > bounds.tenant_texts) or self._asks[tenant] >= bounds.tenant_texts:
            self.refused_share += 1
            return "share"
        if (self.texts and self.texts + new > bounds.texts) or self._asks.total() >= bounds.texts:
            self.refused_full += 1
            return "full"
        return None

    def _ahead(self, tenant: str, most: float) -> bool:
        """Whether more work than `most` is done before what the tenant sends now: all of their own, and as much of each
        other tenant, who take turns with them. Counted only where it may be so: it looks at every tenant that waits."""
        own = self._work[tenant]
        if min(self.work, own * len(self._work)) <= most:
            return False
        return sum(min(own, work) for work in self._work.values()) > most

    def _add(self, key: _Key, text: Waiting) -> Waiting:
        self._texts[key] = text
        self._queues.setdefault(text.tenant, OrderedDict())[key] = text
        self.texts += 1
        self.work += text.work
        self._work[text.tenant] += text.work
        return text

    def leave(self, ask: Ask) -> None:
        """What nobody else waits for is not computed, unless it is under way. Again, or once complete: nothing."""
        if not ask.places:
            return
        for text in ask.places:
            text.asks.remove(ask)
            if not text.asks:
                self._drop(text)
        ask.places.clear()
        self._gone(ask)

    def _gone(self, ask: Ask) -> None:
        self._asks[ask.tenant] -= 1
        if not self._asks[ask.tenant]:
            del self._asks[ask.tenant]

    def _drop(self, text: Waiting) -> None:
        key = _key(text.cache, text.tenant, text.pair, text.stack)
        queue = self._queues.get(text.tenant)
        if queue is not None and queue.get(key) is text:
            del self._texts[key]
            self._out(key, text, queue)

    def _out(self, key: _Key, text: Waiting, queue: OrderedDict[_Key, Waiting]) -> None:
        del queue[key]
        self.texts -= 1
        self.work -= text.work
        self._work[text.tenant] -= text.work
        if not queue:
            del self._queues[text.tenant]
            del self._work[text.tenant]
            self._credit.pop(text.tenant, None)  # who has nothing to send saves nothing up

    def take(self, budget: int, now: float) -> list[Waiting]:
        """About `budget` of work, at least one text if any waits. Expired requests leave first."""
        taken: list[Waiting] = []
        left = budget
        while self._queues and left > 0:
            tenant = next(iter(self._queues))
            for text in self._turn(tenant, left, now):
                taken.append(text)
                left -= text.work
        return taken

    def _turn(self, tenant: str, budget: int, now: float) -> Iterator[Waiting]:
        """A turn that the budget cuts short goes on with the next forward."""
        queue = self._queues[tenant]
        self._credit[tenant] = self._credit.get(tenant, 0) + (0 if tenant == self._cut_short else QUANTUM)
        self._cut_short = tenant
        while queue and budget > 0:
            key, text = next(iter(queue.items()))
            for ask in [ask for ask in text.asks if ask.expires <= now]:
                self.leave(ask)
            if not text.asks:
                continue
            if text.work > self._credit[tenant]:
                self._queues.move_to_end(tenant)
                self._cut_short = None
                return
            self._credit[tenant] -= text.work
            budget -= text.work
            self._out(key, text, queue)
            yield text
        if not queue:
            self._cut_short = None

    def landed(self, text: Waiting, row: Features | BaseException) -> list[Ask]:
        """Who now has all that they waited for, or has failed."""
        self._texts.pop(_key(text.cache, text.tenant, text.pair, text.stack), None)
        asks = list(text.asks)
        for ask in asks:
            if isinstance(row, BaseException):
                ask.error = row
                self.leave(ask)
            else:
                ask.rows_NW[ask.places.pop(text)] = row
                if not ask.places:
                    self._gone(ask)
        text.asks.clear()
        return [ask for ask in asks if not ask.places]

    def clear(self) -> list[Ask]:
        """Empty it; who waited."""
        texts = [text for queue in self._queues.values() for text in queue.values()]
        asks = list(dict.fromkeys(ask for text in texts for ask in text.asks))
        for ask in asks:
            self.leave(ask)
        return asks


def _key(cache: FeatureCache, tenant: str, pair: Pair, stack: Stacked | None) -> _Key:
    return (id(cache), tenant, pair[0].digest, pair[1].digest, "" if stack is None else stack.key)


def _work(pair: Pair) -> int:
    """Grows with the length: texts of one forward are computed by length."""
    return 1 + min(len(pair[0].text) + len(pair[1].text), MOST_CHARS) // CHARS_PER_WORK
