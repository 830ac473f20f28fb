"""Rows of one rank in one block of memory, with the books of who has which slot.

Not thread-safe: the bank holds its lock around every call.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import IdiolectError
from idiolect.registry.manifest import AdapterScope
from idiolect_adapters.runtime.admission import FrequencySketch

Row = NDArray[np.float32]


class Owner(NamedTuple):
    """Whose adapter it is: `name` is a pseudonym (user scope) or a domain."""

    tenant: str
    scope: AdapterScope
    name: str


class Key(NamedTuple):
    """The identity of weights: never a name, never a slot."""

    weights_sha256: str
    generation: int
    version: str


# Key, owner, their strings, and a place in three dictionaries: 860 bytes measured for a person.
ENTRY_OVERHEAD_BYTES = 900


@dataclass(slots=True)
class Slot:
    """`leases`: readers of the row in place. While there are any the slot is not used again."""

    index: int
    owner: Owner
    leases: int = 0
    pinned: bool = False
    found: bool = True  # False once unloaded: it only waits for its readers


class Evicted(NamedTuple):
    key: Key
    owner: Owner
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
        self._slots: OrderedDict[Key, Slot] = OrderedDict()  # least recently used first
        self._by_owner: dict[Owner, tuple[Key, ...]] = {}
        self._draining: dict[int, Slot] = {}
        self._free: list[int] = []
        self._touched = 0  # slots from here on were never used
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

    def peek(self, key: Key) -> Slot | None:
        return self._slots.get(key)

    def use(self, key: Key) -> Slot | None:
        """Find, and count as used."""
        self._sketch.add(key)
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
        return slot

    def insert(self, key: Key, owner: Owner, row_K: Row, scale: float, *, must: bool = False) -> list[Evicted] | None:
        """What went for it, or None if it was not let in. `must`: whatever the sketch says."""
        if key in self._slots:
            return []
        gone: list[Evicted] = []
        index = self._vacant()
        if index is None:
            victim = self._victim()
            if victim is None or not (must or self._sketch.estimate(key) >= self._sketch.estimate(victim)):
                self.turned_away += 1
                return None
            gone.append(self._evict(victim))
            index = self._vacant()
            assert index is not None  # the victim had no readers
        self.rows_S_K[index] = row_K
        self.scale_S[index] = scale
        self._slots[key] = Slot(index, owner)
        self._by_owner[owner] = (*self._by_owner.get(owner, ()), key)
        return gone

    def _evict(self, key: Key) -> Evicted:
        slot = self._slots[key]
        evicted = Evicted(key, slot.owner, self.rows_S_K[slot.index].copy(), float(self.scale_S[slot.index]))
        self.unload(key)
        self.evictions += 1
        return evicted

    def _vacant(self) -> int | None:
        if self._free:
            return self._free.pop()
        if self._touched == self.capacity:
            return None
        self._touched += 1
        return self._touched - 1

    def _victim(self) -> Key | None:
        """The least recently used that is neither pinned nor read in place; those count as used just now."""
        for _ in range(len(self._slots)):
            key, slot = next(iter(self._slots.items()))
            if not slot.pinned and not slot.leases:
                return key
            self._slots.move_to_end(key)
        return None

    def set_pinned(self, key: Key, pinned: bool) -> bool:
        slot = self._slots.get(key)
        if slot is None:
            return False
        self.pinned += pinned - slot.pinned
        slot.pinned = pinned
        return True

    def unload(self, key: Key) -> bool:
        """Nobody finds it from now on; its memory is zeroed as soon as nobody reads it."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return False
        left = tuple(other for other in self._by_owner[slot.owner] if other != key)
        if left:
            self._by_owner[slot.owner] = left
        else:
            del self._by_owner[slot.owner]
        self.pinned -= slot.pinned
        slot.found = False
        if slot.leases:
            self._draining[slot.index] = slot
        else:
            self._free_up(slot.index)
        return True

    def unload_owner(self, owner: Owner) -> int:
        return sum(self.unload(key) for key in self._by_owner.get(owner, ()))

    def unlease(self, slot: Slot) -> None:
        slot.leases -= 1
        if not slot.found and not slot.leases:
            del self._draining[slot.index]
            self._free_up(slot.index)

    def _free_up(self, index: int) -> None:
        self.rows_S_K[index] = 0.0
        self.scale_S[index] = 0.0
        self._free.append(index)

    def check_integrity(self) -> None:
        """Raises unless every slot that was ever used is found, draining or free, exactly once, and free ones are 0."""
        used = [slot.index for slot in self._slots.values()]
        if sorted([*used, *self._draining, *self._free]) != list(range(self._touched)):
            raise _unbalanced("slots")
        if sorted(key for keys in self._by_owner.values() for key in keys) != sorted(self._slots):
            raise _unbalanced("owners")
        if self.pinned != sum(slot.pinned for slot in self._slots.values()):
            raise _unbalanced("pins")
        if any(slot.leases < 0 for slot in [*self._slots.values(), *self._draining.values()]):
            raise _unbalanced("leases")
        if not (np.isfinite(self.rows_S_K[used]).all() and np.isfinite(self.scale_S[used]).all()):
            raise _damaged()
        if self.rows_S_K[self._free].any() or self.scale_S[self._free].any():
            raise _damaged()


def _unbalanced(what: str) -> IdiolectError:
    return IdiolectError(f"the adapter bank's {what} don't balance.", mend="Restart this process.")


def _damaged() -> IdiolectError:
    return IdiolectError("the adapter bank holds damaged weights.", mend="Restart this process.")
