"""Rows of one rank in one block of memory, with the books of who has which slot.

A million people fit in 300 MB, because the books are arrays too: keys and owners are digests of 16 bytes, and nothing
is a Python object for each slot but its key and its number.

Not thread-safe: the bank holds its lock around every call.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import IdiolectError
from idiolect.registry.manifest import AdapterScope
from idiolect_adapters.runtime.admission import FrequencySketch
from idiolect_adapters.runtime.recency import Recency

Row = NDArray[np.float32]
Digest = bytes  # of an Owner or a Key
DIGEST_BYTES = 16


class Owner(NamedTuple):
    """Whose adapter it is: `name` is a pseudonym (user scope) or a domain."""

    tenant: str
    scope: AdapterScope
    name: str

    @property
    def digest(self) -> Digest:
        return _digest(f"{self.tenant}\0{self.scope}\0{self.name}")


class Key(NamedTuple):
    """The identity of weights: never a name, never a slot."""

    weights_sha256: str
    generation: int
    version: str

    @property
    def digest(self) -> Digest:
        return _digest(f"{self.weights_sha256}\0{self.generation}\0{self.version}")


def _digest(text: str) -> Digest:
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


# A key with its place in a dictionary, a slot number, an owner, and what the sketch and the lists need.
ENTRY_OVERHEAD_BYTES = 300
_PINNED, _FOUND = 1, 2


class Held(NamedTuple):
    """`weights = row * scale`. Kept apart, because their product is not exact in float32."""

    owner: Digest
    row_K: Row
    scale: float


class Slab:
    """`capacity` rows [K] of float32 and a factor each. Memory is taken page by page, as slots are first used."""

    def __init__(self, capacity: int, rank: int) -> None:
        self.capacity = capacity
        self.rank = rank
        self.rows_S_K = np.zeros((capacity, rank), dtype=np.float32)
        self.scale_S = np.zeros(capacity)
        self.evictions = self.turned_away = self.pinned = 0
        self._slots: dict[Digest, int] = {}
        self._keys: list[Digest | None] = []  # by slot
        self._owner_S_2 = np.zeros((capacity, 2), dtype=np.uint64)
        self._owner_bytes = self._owner_S_2.data.cast("B")
        self._leases = np.zeros(capacity, dtype=np.int32).data  # readers of the row in place
        self._flags = np.zeros(capacity, dtype=np.uint8).data
        self._recency = Recency(capacity)
        self._draining: set[int] = set()  # unloaded, and still read
        self._free: list[int] = []
        self._sketch = FrequencySketch(capacity)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def draining(self) -> int:
        return len(self._draining)

    @property
    def bytes_used(self) -> int:
        """Also of slots that wait for their readers."""
        return (len(self._slots) + len(self._draining)) * (ENTRY_OVERHEAD_BYTES + 4 * self.rank + 8)

    def peek(self, key: Digest) -> int | None:
        return self._slots.get(key)

    def use(self, key: Digest) -> int | None:
        """Find, and count as used."""
        self._sketch.add(key)
        slot = self._slots.get(key)
        if slot is not None:
            self._recency.touch(slot)
        return slot

    def owner(self, slot: int) -> Digest:
        return bytes(self._owner_bytes[DIGEST_BYTES * slot : DIGEST_BYTES * (slot + 1)])

    def held(self, slot: int) -> Held:
        """A copy."""
        return Held(self.owner(slot), self.rows_S_K[slot].copy(), float(self.scale_S[slot]))

    def insert(self, key: Digest, held: Held, *, must: bool = False) -> list[tuple[Digest, Held]] | None:
        """What went for it, or None if it was not let in. `must`: whatever the sketch says."""
        if key in self._slots:
            return []
        gone: list[tuple[Digest, Held]] = []
        slot = self._vacant()
        if slot is None:
            victim = self._victim()
            if victim is None or not (must or self._sketch.estimate(key) >= self._sketch.estimate(victim)):
                self.turned_away += 1
                return None
            gone.append((victim, self._evict(victim)))
            slot = self._vacant()
            assert slot is not None  # the victim had no readers
        self.rows_S_K[slot] = held.row_K
        self.scale_S[slot] = held.scale
        self._slots[key] = slot
        self._keys[slot] = key
        self._owner_bytes[DIGEST_BYTES * slot : DIGEST_BYTES * (slot + 1)] = held.owner
        self._flags[slot] = _FOUND
        self._recency.add(slot)
        return gone

    def _evict(self, key: Digest) -> Held:
        evicted = self.held(self._slots[key])
        self.unload(key)
        self.evictions += 1
        return evicted

    def _vacant(self) -> int | None:
        if self._free:
            return self._free.pop()
        if len(self._keys) == self.capacity:
            return None
        self._keys.append(None)
        return len(self._keys) - 1

    def _victim(self) -> Digest | None:
        """The least recently used that is neither pinned nor read in place; those count as used just now."""
        for _ in range(len(self._slots)):
            slot = self._recency.oldest()
            assert slot is not None
            if not self._flags[slot] & _PINNED and not self._leases[slot]:
                return self._keys[slot]
            self._recency.touch(slot)
        return None

    def set_pinned(self, key: Digest, pinned: bool) -> bool:
        slot = self._slots.get(key)
        if slot is None:
            return False
        self.pinned += pinned - bool(self._flags[slot] & _PINNED)
        self._flags[slot] = _FOUND | (_PINNED if pinned else 0)
        return True

    def unload(self, key: Digest) -> bool:
        """Nobody finds it from now on; its memory is zeroed as soon as nobody reads it."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return False
        self.pinned -= bool(self._flags[slot] & _PINNED)
        self._flags[slot] = 0
        self._keys[slot] = None
        self._recency.remove(slot)
        if self._leases[slot]:
            self._draining.add(slot)
        else:
            self._free_up(slot)
        return True

    def unload_owner(self, owner: Digest) -> int:
        """Looks at every slot, which takes a millisecond for a million: resets are rare, memory is not."""
        first, second = np.frombuffer(owner, dtype=np.uint64)
        touched_T_2 = self._owner_S_2[: len(self._keys)]
        slots = np.flatnonzero(touched_T_2[:, 0] == first)
        keys = [self._keys[slot] for slot in slots if touched_T_2[slot, 1] == second]
        return sum(self.unload(key) for key in keys if key is not None)

    def lease(self, slot: int) -> None:
        self._leases[slot] += 1

    def unlease(self, slot: int) -> None:
        self._leases[slot] -= 1
        if not self._leases[slot] and slot in self._draining:
            self._draining.remove(slot)
            self._free_up(slot)

    def _free_up(self, slot: int) -> None:
        self.rows_S_K[slot] = 0.0
        self.scale_S[slot] = 0.0
        self._owner_S_2[slot] = 0
        self._free.append(slot)

    def check_integrity(self) -> None:
        """Raises unless every slot that was ever used is found, draining or free, exactly once, and free ones are 0."""
        touched, used = len(self._keys), list(self._slots.values())
        if sorted([*used, *self._draining, *self._free]) != list(range(touched)):
            raise _unbalanced("slots")
        if any(self._keys[slot] != key for key, slot in self._slots.items()):
            raise _unbalanced("keys")
        if sorted(self._recency.in_order()) != sorted(used):
            raise _unbalanced("order of use")
        flags_T = np.asarray(self._flags)[:touched]
        if np.count_nonzero(flags_T & _FOUND) != len(used) or np.count_nonzero(flags_T & _PINNED) != self.pinned:
            raise _unbalanced("pins")
        leases_T = np.asarray(self._leases)[:touched]
        if (leases_T < 0).any() or leases_T[self._free].any():
            raise _unbalanced("leases")
        if not (np.isfinite(self.rows_S_K[used]).all() and np.isfinite(self.scale_S[used]).all()):
            raise _damaged()
        if self.rows_S_K[self._free].any() or self.scale_S[self._free].any() or self._owner_S_2[self._free].any():
            raise _damaged()


def _unbalanced(what: str) -> IdiolectError:
    return IdiolectError(f"the adapter bank's {what} don't balance.", mend="Restart this process.")


def _damaged() -> IdiolectError:
    return IdiolectError("the adapter bank holds damaged weights.", mend="Restart this process.")
