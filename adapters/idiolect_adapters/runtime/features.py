"""What the global model says about a text, computed once and kept in bounded memory.

A text's features are `[global score, user directions A f, domain directions C f]`. Every adapter here is a few numbers
that multiply them, so a warm rerank needs no model at all.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError, IdiolectError
from idiolect.ids import text_digests

Features = NDArray[np.float64]


class Projector(Protocol):
    """The global model, seen from serving. Reward heads are linear, so its directions are all that adapters need."""

    @property
    def digest(self) -> str: ...

    @property
    def user_rank(self) -> int: ...

    @property
    def domain_rank(self) -> int: ...

    @property
    def user_basis_digest(self) -> str: ...

    @property
    def domain_basis_digest(self) -> str: ...

    @property
    def temperature(self) -> float: ...

    def project(self, pairs: Sequence[tuple[str, str]]) -> Features:
        """[N, 1 + user_rank + domain_rank] per (prompt, text). The same text gives the same bits, whatever else is in
        the batch: without that, a reset could not be bit-for-bit."""
        ...


class Text(NamedTuple):
    """A text with its identity, so that it is hashed once per request."""

    text: str
    digest: str


Pair = tuple[Text, Text]  # (prompt, text)


class Stacked(Protocol):
    """LoRAs of inner layers that a text is read under; see loras.py."""

    @property
    def key(self) -> str:
        """The same only for what gives the same features."""
        ...


class Wanted(NamedTuple):
    """A text that somebody waits for. `person`: the only one who does, if there is only one. No `stack`: the bare
    model's features. `since`: the cache's `moment` when it was asked for; now, if not given."""

    partition: str
    pair: Pair
    person: str | None
    stack: Stacked | None = None
    since: int | None = None


# As Projector.project, each row under a stack of its own, or none.
ProjectStacked = Callable[[Sequence[tuple[str, str]], Sequence[Any]], Features]

_Key = tuple[str, str, str, str]  # (partition, prompt digest, text digest, the stack's key; empty: the bare model)

MAX_PURGED = 10_000  # people whose purges are remembered, for what was asked for before them and is computed after

_SHARED = 0  # instead of a person: more than one asked for it, or somebody who is not named
_GONE = -1


class _Flight(NamedTuple):
    future: Future[Features]
    purges: int  # how many purges there had been when it started; _GONE if its person was purged since
    person: int


def digested(text: str) -> Text:
    (one,) = all_digested((text,))
    return one


def all_digested(texts: Sequence[str]) -> list[Text]:
    return list(map(Text, texts, text_digests(texts)))


# The key tuple, its digests, a slot number and the hash table: 311 bytes measured at ten texts per prompt, 420 at one.
ENTRY_OVERHEAD_BYTES = 500


@dataclass(frozen=True, slots=True)
class FeatureStats:
    entries: int
    capacity: int
    max_bytes: int
    hits: int
    misses: int
    evictions: int


class FeatureCache:
    """LRU over one slab, for one model: the model's digest identifies the cache, so no key can outlive its model.

    `partition` is the tenant: a hit is faster than a miss, so shared entries would tell one tenant what another sent.
    Thread-safe. A text that two threads ask for at the same time is computed once.
    """

    def __init__(self, projector: Projector, *, max_bytes: int, project_stacked: ProjectStacked | None = None) -> None:
        """Without `project_stacked` there are the bare model's features only."""
        self.projector = projector
        self._project_stacked = project_stacked
        self.width = 1 + projector.user_rank + projector.domain_rank
        self.max_bytes = max_bytes
        self.capacity = max_bytes // (self.width * 8 + ENTRY_OVERHEAD_BYTES)
        self._slab = np.empty((self.capacity, self.width))  # pages are only taken when written
        self._bytes = self._slab.view(np.uint8).reshape(-1).data
        self._person_S = np.zeros(self.capacity, dtype=np.int64)  # the only one who ever asked for it, or _SHARED
        self._person = self._person_S.data  # single ones are read faster so
        self._keys: list[_Key | None] = []  # by slot
        self._slots: OrderedDict[_Key, int] = OrderedDict()
        self._free: list[int] = []
        self._touched = 0  # slots from here on were never used
        self._flights: dict[_Key, _Flight] = {}
        self._purges = 0
        self._moment = self._forgotten = 0  # purges of people so far, and of those the last that is not remembered
        self._purged: OrderedDict[int, int] = OrderedDict()  # by person, at which moment
        self._lock = threading.Lock()
        self._hits = self._misses = self._evictions = 0

    @property
    def moment(self) -> int:
        """What is asked for now, and computed after its person was purged, is not kept if it says so."""
        return self._moment

    def cached(
        self, partition: str, pairs: Sequence[Pair], person: str | None = None, stack: Stacked | None = None
    ) -> Features | None:
        """The features [N, W] if all are there, else None. Computes nothing and never waits for who does."""
        keys = _keys(partition, pairs, stack)
        asker = _asker(partition, person)
        with self._lock:
            slots = [self._slots.get(key, -1) for key in keys]
            if -1 in slots:
                return None
            used, only = self._slots.move_to_end, self._person
            for key, slot in zip(keys, slots, strict=True):
                used(key)
                if only[slot] != asker:
                    only[slot] = _SHARED
            self._hits += len(keys)
            return self._rows(slots)

    def _rows(self, slots: Sequence[int]) -> Features:
        """A copy, read-only. numpy's gathering gives up the interpreter each time, here while the lock is held: whoever
        waits for either is then woken for nothing, which takes longer than to copy."""
        size = self.width * self._slab.itemsize
        rows = b"".join([self._bytes[slot * size : (slot + 1) * size] for slot in slots])
        return np.frombuffer(rows).reshape(-1, self.width)

    def found(
        self, partition: str, pairs: Sequence[Pair], person: str | None = None, stack: Stacked | None = None
    ) -> tuple[Features, list[int]]:
        """(features [N, W], which of them are missing and hold nothing yet). Computes nothing, waits for nobody."""
        keys, asker = _keys(partition, pairs, stack), _asker(partition, person)
        features_NW = np.empty((len(keys), self.width))
        missing = []
        with self._lock:
            for index, key in enumerate(keys):
                slot = self._slots.get(key)
                if slot is None:
                    missing.append(index)
                else:
                    features_NW[index] = self._slab[slot]
                    self._used(key, slot, asker)
        return features_NW, missing

    def project(
        self, partition: str, pairs: Sequence[Pair], person: str | None = None, stack: Stacked | None = None
    ) -> Features:
        """The features [N, W]; what is missing is computed in one call. Raises what the projector raises.

        `person` is for whom: what only one person asks for goes when they are purged.
        """
        return self.project_each([Wanted(partition, pair, person, stack) for pair in pairs])

    def project_each(self, wants: Sequence[Wanted]) -> Features:
        """As `project`, for several tenants and people in one call."""
        keys = [_key(want) for want in wants]
        by_key = dict(zip(keys, wants, strict=True))
        askers: dict[_Key, int] = {}
        for key, want in zip(keys, wants, strict=True):
            asker = _asker(want.partition, want.person)
            askers[key] = asker if askers.get(key, asker) == asker else _SHARED
        found: dict[_Key, Features] = {}
        while len(found) < len(by_key):
            mine, theirs = self._claim({key: who for key, who in askers.items() if key not in found}, by_key, found)
            if mine:
                found.update(self._compute({key: by_key[key] for key in mine}))
            for key, future in theirs.items():
                # Whoever computed this failed, perhaps because of another text: ask again, now for ourselves.
                if future.exception() is None:
                    found[key] = future.result()
        return np.stack([found[key] for key in keys]) if keys else np.empty((0, self.width))

    def _claim(
        self, askers: Mapping[_Key, int], wants: Mapping[_Key, Wanted], found: dict[_Key, Features]
    ) -> tuple[list[_Key], dict[_Key, Future[Features]]]:
        """Put what is cached in `found`; of the rest, what we must compute and what others already do."""
        mine: list[_Key] = []
        theirs: dict[_Key, Future[Features]] = {}
        with self._lock:
            for key, asker in askers.items():
                slot = self._slots.get(key)
                flight = self._flights.get(key)
                if slot is not None:
                    found[key] = self._slab[slot].copy()
                    self._used(key, slot, asker)
                elif flight is not None:
                    theirs[key] = flight.future
                    if flight.person != asker:
                        self._flights[key] = flight._replace(person=_SHARED)
                else:
                    gone = asker != _SHARED and self._purged_since(asker, wants[key].since)
                    self._flights[key] = _Flight(Future(), _GONE if gone else self._purges, asker)
                    mine.append(key)
                    self._misses += 1
        return mine, theirs

    def _purged_since(self, person: int, asked: int | None) -> bool:
        return asked is not None and self._purged.get(person, self._forgotten) > asked

    def _used(self, key: _Key, slot: int, asker: int) -> None:
        """Under the lock."""
        self._slots.move_to_end(key)
        self._hits += 1
        if self._person_S[slot] != asker:
            self._person_S[slot] = _SHARED

    def _compute(self, wants: Mapping[_Key, Wanted]) -> dict[_Key, Features]:
        try:
            features_NW = self._checked(list(wants.values()))
        except BaseException as error:
            self._land(dict.fromkeys(wants), error)
            raise
        rows = dict(zip(wants, features_NW, strict=True))
        self._land(rows, None)
        return rows

    def _projected(self, wants: Sequence[Wanted]) -> Features:
        pairs = [(want.pair[0].text, want.pair[1].text) for want in wants]
        if self._project_stacked is None or all(want.stack is None for want in wants):
            return self.projector.project(pairs)
        return self._project_stacked(pairs, [want.stack for want in wants])

    def _checked(self, wants: Sequence[Wanted]) -> Features:
        features_NW = np.asarray(self._projected(wants), dtype=np.float64)
        if features_NW.shape != (len(wants), self.width):
            raise CorruptArtifactError(
                f"the model returned features of shape {features_NW.shape}, expected {(len(wants), self.width)}.",
                mend="Train the global model again.",
            )
        if not np.isfinite(features_NW).all():
            raise CorruptArtifactError(
                "the model returned features that are not finite.", mend="Train the global model again."
            )
        return features_NW

    def _land(self, rows: Mapping[_Key, Features | None], error: BaseException | None) -> None:
        """End the flights of `rows`. What was asked for before a purge answers those who wait, but is not kept."""
        for key, row in rows.items():
            with self._lock:
                flight = self._flights.pop(key)
                if row is not None and flight.purges == self._purges:
                    self._insert(key, row, flight.person)
            if row is None:
                flight.future.set_exception(error or RuntimeError("no features"))
            else:
                flight.future.set_result(row)

    def _insert(self, key: _Key, row: Features, person: int) -> None:
        if not self.capacity:
            return
        if self._free:
            slot = self._free.pop()
        elif self._touched < self.capacity:
            slot, self._touched = self._touched, self._touched + 1
            self._keys.append(key)
        else:
            _, slot = self._slots.popitem(last=False)
            self._evictions += 1
        self._slab[slot] = row
        self._person_S[slot] = person
        self._keys[slot] = key
        self._slots[key] = slot

    def purge(self, partition: str) -> int:
        """Forget everything of one tenant; the number of entries that went."""
        with self._lock:
            self._purges += 1
            gone = [key for key in self._slots if key[0] == partition]
            for key in gone:
                self._drop(key)
        return len(gone)

    def purge_person(self, partition: str, person: str) -> int:
        """Forget what nobody but this person ever asked for; the number of entries that went. What others asked for as
        well says nothing of them, and computing it again for everybody is what a reset must not cost."""
        asker = _asker(partition, person)
        with self._lock:
            self._moment += 1
            self._purged[asker] = self._moment
            self._purged.move_to_end(asker)
            if len(self._purged) > MAX_PURGED:
                _, self._forgotten = self._purged.popitem(last=False)
            for key, flight in self._flights.items():
                if flight.person == asker:
                    self._flights[key] = flight._replace(purges=_GONE)
            held = [self._keys[slot] for slot in np.flatnonzero(self._person_S[: self._touched] == asker)]
            gone = [key for key in held if key is not None]
            for key in gone:
                self._drop(key)
        return len(gone)

    def _drop(self, key: _Key) -> None:
        slot = self._slots.pop(key)
        self._slab[slot] = 0.0
        self._person_S[slot] = _SHARED
        self._keys[slot] = None
        self._free.append(slot)

    def stats(self) -> FeatureStats:
        with self._lock:
            return FeatureStats(
                len(self._slots), self.capacity, self.max_bytes, self._hits, self._misses, self._evictions
            )

    def check_integrity(self) -> None:
        """Raises if the books don't balance: every used slot belongs to exactly one entry or to the free list."""
        with self._lock:
            used = list(self._slots.values())
            slots = sorted(used + self._free)
            if slots != list(range(self._touched)) or self._touched > self.capacity:
                raise IdiolectError("the feature cache's slots don't balance.", mend="Restart this process.")
            if used and not np.isfinite(self._slab[used]).all():
                raise IdiolectError("the feature cache holds damaged rows.", mend="Restart this process.")


def _asker(partition: str, person: str | None) -> int:
    """Two people who share a number would only be purged together."""
    return _SHARED if person is None else hash((partition, person))


def _key(want: Wanted) -> _Key:
    stack = "" if want.stack is None else want.stack.key
    return (want.partition, want.pair[0].digest, want.pair[1].digest, stack)


def _keys(partition: str, pairs: Sequence[Pair], stack: Stacked | None) -> list[_Key]:
    under = "" if stack is None else stack.key
    return [(partition, prompt.digest, text.digest, under) for prompt, text in pairs]
