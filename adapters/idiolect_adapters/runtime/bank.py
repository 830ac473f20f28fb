"""Verified adapter weights in memory.

An entry is found only under its digest, generation and version id, never under a name or a slot, so it can't be stale:
whoever resolves a newer version asks for another key.

Three tiers: rows in slabs, which are what is served; a host cache of verified rows that found no slot; the registry,
which is asked by at most `max_loads` threads at once, and by one for each version. LoRAs of inner layers, which are
large and few, lie on a shelf of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError, IdiolectError, NotFoundError
from idiolect.registry.manifest import HEAD_LORA, AdapterScope
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.signing import Signer
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.runtime.bank_tiers import HostCache, RefusedVersions
from idiolect_adapters.runtime.features import Projector
from idiolect_adapters.runtime.remembered import Remembered
from idiolect_adapters.runtime.slab import Digest, Held, Key, Owner, Row, Slab
from idiolect_adapters.runtime.verified import HEAD_B, VerifiedLora, verified

if TYPE_CHECKING:  # it imports torch
    from idiolect_adapters.runtime.loras import Lora, LoraEngine

__all__ = ["HEAD_B", "HEAD_LORA", "AdapterBank", "BankStats", "Leased", "Owner", "Weights"]

Weights = NDArray[np.float64]  # [rank], alpha / rank included, read-only
LoadVersion = Callable[[str, str], StoredVersion | None]  # (tenant, version id)

MAX_ADAPTERS = 1_000_000  # 300 MB when all slots are taken; memory is used as they are
MAX_DOMAINS = 4096
HOST_BYTES = 16 << 20
LORA_BYTES = 512 << 20
MAX_LOADS = 4
LOADS_AHEAD = 1  # beside those; more would not load faster, since verifying holds the interpreter
BREAK_SECONDS = 0.0005  # after each of these
STAYS_AWAY = 3  # times as long as it had to wait for the interpreter the last time
AWAY_AT_MOST = 0.1  # seconds: a process that was stopped for a minute is not busy, so its loads go on at once
MAX_PREFETCHES = 10_000  # waiting; more are dropped, since whoever needs them loads them


@dataclass(slots=True)
class _Flight:
    owner: Owner
    future: Future[Held | VerifiedLora]
    purged: bool = False  # meanwhile: what comes in answers those who wait, and is not kept


@dataclass(frozen=True, slots=True)
class Leased:
    """A row that is read in place: `slab.rows_S_K[slot] * slab.scale_S[slot]`."""

    slab: Slab
    slot: int


@dataclass(frozen=True, slots=True)
class BankStats:
    """Counts since the start: `hits`, `loads`, `refused`, `evictions`, `turned_away`, `prefetches_dropped` and what is
    named so of other tiers. The rest is of now."""

    entries: int
    max_adapters: int
    hits: int
    loads: int
    refused: int  # also those that the negative cache refused without a load
    evictions: int
    turned_away: int  # came for a slot less often than whoever has one
    pinned: int
    draining: int
    bytes: int
    host_entries: int
    host_hits: int
    host_bytes: int
    loras: int
    lora_hits: int
    lora_bytes: int
    prefetches_waiting: int
    prefetches_dropped: int
    loading: int  # from the registry, or waiting for their turn
    host_evictions: int
    lora_evictions: int
    resident_loras: int  # inner layers of LoRAs, in the batched runtime
    resident_shapes: int
    resident_bytes: int


class AdapterBank:
    """The head adapters of one global model. Thread-safe; its lock is never held while the registry is asked."""

    def __init__(
        self,
        projector: Projector,
        load: LoadVersion,
        signer: Signer,
        *,
        max_adapters: int = MAX_ADAPTERS,
        host_bytes: int = HOST_BYTES,
        max_loads: int = MAX_LOADS,
        engine: LoraEngine | None = None,
        lora_bytes: int = LORA_BYTES,
        remembers: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`remembers`: of how many owners that were used last it is known by name what is in memory of them."""
        self.projector = projector
        self.max_adapters = max_adapters
        self._load = load
        self._signer = signer
        self._slabs: dict[AdapterScope, Slab] = {
            "user": Slab(max_adapters, projector.user_rank),
            "domain": Slab(min(max_adapters, MAX_DOMAINS), projector.domain_rank),
        }
        self._host: HostCache[Held] = HostCache(host_bytes)
        self.engine = engine
        self._shelf: HostCache[VerifiedLora] = HostCache(lora_bytes)
        self._refused = RefusedVersions(monotonic)
        self._remembered = Remembered(remembers)
        self._flights: dict[tuple[Digest, Digest], _Flight] = {}
        self._lock = threading.Lock()
        self._loading = threading.BoundedSemaphore(max_loads)
        self._ahead = ThreadPoolExecutor(LOADS_AHEAD, thread_name_prefix="idiolect-prefetch")
        self._prefetching = self._prefetches_dropped = 0
        self._waited = 0.0  # for the interpreter, after the last load ahead of need
        self._hits = self._loads = 0

    def weights(self, owner: Owner, wanted: ResolvedVersion) -> Weights:
        """As `part`, where only a head adapter will do. Raises CorruptArtifactError (code `not_a_head`) for others."""
        found = self.part(owner, wanted)
        if isinstance(found, np.ndarray):
            return found
        raise CorruptArtifactError(f"version {wanted.id} is a LoRA of inner layers.", code="not_a_head")

    def part(self, owner: Owner, wanted: ResolvedVersion) -> Weights | Lora:
        """The weights [rank] of `wanted`, which a resolve has just named for `owner`: a copy, so never torn. Or its
        LoRA, which stays whole as long as somebody holds it.

        Raises CorruptArtifactError if the version does not check out or belongs to someone else, NotFoundError if it
        has been erased, and what the loader raises.
        """
        found = self.resident(owner, wanted)
        if found is not None:
            return found
        loaded = self._fetch(owner, wanted, self._loading)
        return loaded.lora if isinstance(loaded, VerifiedLora) else _weights(loaded.row_K, loaded.scale)

    def resident(self, owner: Owner, wanted: ResolvedVersion) -> Weights | Lora | None:
        """As `part`, of what lies in a slot or on the shelf; None for everything else, which would have to be loaded.

        Raises CorruptArtifactError if it belongs to someone else.
        """
        slab, key = self._slabs[owner.scope], _key(wanted)
        with self._lock:
            slot = self._found(key, owner, wanted)
            if slot is not None:
                return _weights(slab.rows_S_K[slot], float(slab.scale_S[slot]))
            shelved = self._shelf.get(key)
            if shelved is None:
                return None
            _check_owner(shelved.owner, owner, wanted)
            self._remembered.note(owner, wanted)
        return shelved.lora

    def holds(self, owner: Owner, wanted: ResolvedVersion) -> bool:
        with self._lock:
            key, slab = _key(wanted), self._slabs[owner.scope]
            slot = slab.peek(key)
            if slot is not None:
                return slab.owner(slot) == owner.digest
            shelved = self._shelf.peek(key)
            return shelved is not None and shelved.owner == owner.digest

    def knows(self, tenant: str) -> bool:
        """Whether anybody of it is remembered."""
        with self._lock:
            return self._remembered.knows(tenant)

    def used_last(self, tenant: str) -> list[tuple[Owner, ResolvedVersion]]:
        """Whose adapters of a tenant are in memory, and which, as far as they are remembered; the last used first."""
        with self._lock:
            return self._remembered.of(tenant)

    def used_by(self, owner: Owner) -> ResolvedVersion | None:
        """As `used_last`, of one."""
        with self._lock:
            return self._remembered.get(owner)

    @contextmanager
    def lease(self, owner: Owner, wanted: ResolvedVersion) -> Iterator[Leased | None]:
        """Read in place, for whoever gathers many rows at once. The slot stays as it is until the block is left, also
        through an unload or purge: those are found no more, and zeroed when the last reader has gone.

        None if it is not resident and has no room to be: then `weights` serves. Raises what `weights` raises.
        """
        slab = self._slabs[owner.scope]
        slot = self._leased(owner, wanted)
        if slot is None:
            self.weights(owner, wanted)
            slot = self._leased(owner, wanted)
        try:
            yield None if slot is None else Leased(slab, slot)
        finally:
            if slot is not None:
                with self._lock:
                    slab.unlease(slot)

    def pin(self, owner: Owner, wanted: ResolvedVersion) -> bool:
        """Load it and never evict it; a purge or an unload takes it all the same. At most half of the slots are pinned:
        False beyond that. Raises what `weights` raises."""
        loaded = self._fetch(owner, wanted, self._loading)
        slab = self._slabs[owner.scope]
        with self._lock:
            if slab.pinned >= slab.capacity // 2:
                return False
            self._keep(_key(wanted), owner, loaded, must=True)
            return slab.set_pinned(_key(wanted), True)

    def unpin(self, owner: Owner, wanted: ResolvedVersion) -> None:
        with self._lock:
            self._slabs[owner.scope].set_pinned(_key(wanted), False)

    def prefetch(self, owner: Owner, wanted: ResolvedVersion) -> bool:
        """Load it in the background, at the start of a session say. Says whether it is or will be looked at."""
        with self._lock:
            if self._prefetching >= MAX_PREFETCHES:
                self._prefetches_dropped += 1
                return False
            self._prefetching += 1
        self._ahead.submit(self._fetch_ahead, owner, wanted)
        return True

    def _fetch_ahead(self, owner: Owner, wanted: ResolvedVersion) -> None:
        try:
            self._fetch(owner, wanted, nullcontext())
        except IdiolectError:
            pass  # whoever asks for it is told
        finally:
            with self._lock:
                self._prefetching -= 1
            self._give_way()

    def _give_way(self) -> None:
        """Between two loads ahead of need: to whoever wants the interpreter. Who was kept waiting for it stays away for
        longer, so that serving hardly notices; on an idle server hundreds are loaded in a second. One sleep and not
        two: each time that somebody comes back, whoever computes is interrupted."""
        wanted = away_for(self._waited)
        began = time.monotonic()
        time.sleep(wanted)
        late = time.monotonic() - began - wanted
        self._waited = late if late > BREAK_SECONDS else 0.0  # so late a timer is by itself

    def install(self, owner: Owner, stored: StoredVersion) -> ResolvedVersion:
        """Verify a version that was just published and make it resident at once, before anybody asks for it.

        Raises CorruptArtifactError.
        """
        version = stored.version
        wanted = ResolvedVersion(version.id, version.release, version.weights_sha256, version.generation)
        checked = verified(stored, owner, wanted, self.projector, self._signer, self.engine)
        with self._lock:
            self._loads += 1
            self._keep(_key(wanted), owner, checked, must=True)
            self._remembered.note(owner, wanted)
        return wanted

    def unload(self, owner: Owner, wanted: ResolvedVersion) -> bool:
        """Out of every tier; whether it was in a slot. Whoever reads it reads on."""
        with self._lock:
            self._host.discard(_key(wanted))
            self._shelf.discard(_key(wanted))
            return self._slabs[owner.scope].unload(_key(wanted))

    def purge(self, tenant: str, subject: str) -> int:
        """Drop everything of one person at once, from every tier; the number of adapters that went out of slots, or
        off the shelf."""
        owner = Owner(tenant, "user", subject)
        with self._lock:
            for flight in self._flights.values():
                flight.purged |= flight.owner == owner
            self._host.discard_owner(owner.digest)
            self._remembered.forget(owner)
            gone = self._slabs["user"].unload_owner(owner.digest) + self._shelf.discard_owner(owner.digest)
        if self.engine is not None:
            self.engine.free_unused()
        return gone

    def _found(self, key: Digest, owner: Owner, wanted: ResolvedVersion) -> int | None:
        """Under the lock."""
        slab = self._slabs[owner.scope]
        slot = slab.use(key)
        if slot is not None:
            _check_owner(slab.owner(slot), owner, wanted)
            self._hits += 1
            self._remembered.note(owner, wanted)
        return slot

    def _leased(self, owner: Owner, wanted: ResolvedVersion) -> int | None:
        with self._lock:
            slot = self._found(_key(wanted), owner, wanted)
            if slot is not None:
                self._slabs[owner.scope].lease(slot)
            return slot

    def _fetch(self, owner: Owner, wanted: ResolvedVersion, turn: AbstractContextManager[Any]) -> Held | VerifiedLora:
        """From the host cache, a load that is under way, or the registry. `turn` is waited for before a load.

        Loads ahead of need have threads of their own, and take no turn from those that a request waits for.
        """
        key = _key(wanted)
        flown = (key, owner.digest)
        with self._lock:
            known = self._known(key, owner, wanted)
            if known is not None:
                return known
            self._refused.check(flown)
            flight = self._flights.get(flown)
            ours = flight is None
            if flight is None:
                flight = self._flights[flown] = _Flight(owner, Future())
        return self._fly(flown, flight, wanted, turn) if ours else flight.future.result()

    def _known(self, key: Digest, owner: Owner, wanted: ResolvedVersion) -> Held | VerifiedLora | None:
        for slab in self._slabs.values():
            slot = slab.peek(key)
            if slot is not None:
                _check_owner(slab.owner(slot), owner, wanted)
                return slab.held(slot)
        shelved = self._shelf.get(key)
        if shelved is not None:
            _check_owner(shelved.owner, owner, wanted)
            return shelved
        cached = self._host.get(key)
        if cached is not None:
            _check_owner(cached.owner, owner, wanted)
            self._keep(key, owner, cached)
        return cached

    def _fly(
        self, flown: tuple[Digest, Digest], flight: _Flight, wanted: ResolvedVersion, turn: AbstractContextManager[Any]
    ) -> Held | VerifiedLora:
        try:
            with turn:
                loaded = self._loaded(flight.owner, wanted)
        except BaseException as error:
            with self._lock:
                del self._flights[flown]
                if isinstance(error, CorruptArtifactError | NotFoundError):
                    self._refused.add(flown, error)
            flight.future.set_exception(error)
            raise
        with self._lock:
            del self._flights[flown]
            self._loads += 1
            if not flight.purged:
                self._keep(flown[0], flight.owner, loaded)
                self._remembered.note(flight.owner, wanted)
        flight.future.set_result(loaded)
        return loaded

    def _loaded(self, owner: Owner, wanted: ResolvedVersion) -> Held | VerifiedLora:
        stored = self._load(owner.tenant, wanted.id)
        if stored is None:
            raise NotFoundError(f"version {wanted.id} does not exist.")
        return verified(stored, owner, wanted, self.projector, self._signer, self.engine)

    def _keep(self, key: Digest, owner: Owner, loaded: Held | VerifiedLora, *, must: bool = False) -> None:
        """Under the lock. In a slot if it is let in, else in the host cache, where those also go that it pushed out."""
        if isinstance(loaded, VerifiedLora):
            self._shelf.add(key, loaded)
            return
        gone = self._slabs[owner.scope].insert(key, loaded, must=must)
        if gone is None:
            self._host.add(key, loaded)
            return
        self._host.discard(key)
        for evicted, held in gone:
            self._host.add(evicted, held)

    def stats(self) -> BankStats:
        # Not under the lock: a plan that is being made holds the runtime's.
        residents = None if self.engine is None else self.engine.residents
        with self._lock:
            slabs = self._slabs.values()
            return BankStats(
                entries=sum(map(len, slabs)),
                max_adapters=self.max_adapters,
                hits=self._hits,
                loads=self._loads,
                refused=self._refused.count,
                evictions=sum(slab.evictions for slab in slabs),
                turned_away=sum(slab.turned_away for slab in slabs),
                pinned=sum(slab.pinned for slab in slabs),
                draining=sum(slab.draining for slab in slabs),
                bytes=sum(slab.bytes_used for slab in slabs),
                host_entries=len(self._host),
                host_hits=self._host.hits,
                host_bytes=self._host.bytes_used,
                loras=len(self._shelf),
                lora_hits=self._shelf.hits,
                lora_bytes=self._shelf.bytes_used,
                prefetches_waiting=self._prefetching,
                prefetches_dropped=self._prefetches_dropped,
                loading=len(self._flights),
                host_evictions=self._host.evictions,
                lora_evictions=self._shelf.evictions,
                resident_loras=residents.members if residents else 0,
                resident_shapes=residents.families if residents else 0,
                resident_bytes=residents.bytes if residents else 0,
            )

    def check_integrity(self) -> None:
        """Raises if the books don't balance."""
        with self._lock:
            for slab in self._slabs.values():
                slab.check_integrity()
            self._host.check_integrity()
            self._shelf.check_integrity()
        if self.engine is not None:
            self.engine.check_integrity()

    def close(self) -> None:
        self._ahead.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._prefetching = 0  # those that are called off never say that they are done


def away_for(waited_s: float) -> float:
    """Seconds between two loads ahead of need, after a wait of `waited_s` for the interpreter."""
    return BREAK_SECONDS + min(STAYS_AWAY * waited_s, AWAY_AT_MOST)


def _key(wanted: ResolvedVersion) -> Digest:
    return Key(wanted.weights_sha256, wanted.generation, wanted.id).digest


def _weights(row_K: Row, scale: float) -> Weights:
    weights_K: Weights = row_K.astype(np.float64) * scale
    weights_K.setflags(write=False)
    return weights_K


def _check_owner(found: Digest, owner: Owner, wanted: ResolvedVersion) -> None:
    if found != owner.digest:
        raise CorruptArtifactError(
            f"version {wanted.id} belongs to another owner.", mend="Check the registry.", code="misplaced"
        )
