"""What stands beside the slabs of a bank: rows that found no slot, LoRAs of inner layers, and versions that were
refused.

Not thread-safe: the bank holds its lock around every call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from idiolect.errors import CorruptArtifactError, IdiolectError, NotFoundError
from idiolect_adapters.runtime.slab import Digest, Held
from idiolect_adapters.runtime.verified import VerifiedLora

Kept = TypeVar("Kept", Held, VerifiedLora)

ENTRY_OVERHEAD_BYTES = 700  # two digests, an array's head, and a place in two dictionaries
REFUSED_SECONDS = 5.0
MAX_REFUSED = 10_000


class HostCache(Generic[Kept]):
    """Verified rows, or LoRAs, by key, least recently used first, within a bound in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes_used = self.hits = self.evictions = 0
        self._rows: OrderedDict[Digest, Kept] = OrderedDict()
        self._by_owner: dict[Digest, tuple[Digest, ...]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def peek(self, key: Digest) -> Kept | None:
        return self._rows.get(key)

    def get(self, key: Digest) -> Kept | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            self.hits += 1
        return row

    def add(self, key: Digest, row: Kept) -> None:
        if key in self._rows or _size(row) > self.max_bytes:
            return
        self._rows[key] = row
        self._by_owner[row.owner] = (*self._by_owner.get(row.owner, ()), key)
        self.bytes_used += _size(row)
        while self.bytes_used > self.max_bytes:
            self.discard(next(iter(self._rows)))
            self.evictions += 1

    def discard(self, key: Digest) -> None:
        row = self._rows.pop(key, None)
        if row is None:
            return
        self.bytes_used -= _size(row)
        left = tuple(other for other in self._by_owner.pop(row.owner) if other != key)
        if left:
            self._by_owner[row.owner] = left

    def discard_owner(self, owner: Digest) -> int:
        """How many went."""
        gone = self._by_owner.get(owner, ())
        for key in gone:
            self.discard(key)
        return len(gone)

    def check_integrity(self) -> None:
        if self.bytes_used != sum(map(_size, self._rows.values())) or self.bytes_used > self.max_bytes:
            raise IdiolectError("the adapter bank's host cache does not balance.", mend="Restart this process.")


def _size(row: Held | VerifiedLora) -> int:
    return ENTRY_OVERHEAD_BYTES + (row.row_K.nbytes if isinstance(row, Held) else row.lora.bytes)


class RefusedVersions:
    """For a few seconds the same refusal, without asking the registry again: a bad version of a busy person would
    otherwise be read and verified with every request."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.count = 0
        self._monotonic = monotonic
        self._until: OrderedDict[tuple[Digest, Digest], tuple[float, type[IdiolectError], str, str, str]] = (
            OrderedDict()
        )

    def add(self, key: tuple[Digest, Digest], error: CorruptArtifactError | NotFoundError) -> None:
        """Its words, not the error itself, which holds the frames that it came through."""
        self.count += 1
        until = self._monotonic() + REFUSED_SECONDS
        self._until[key] = (until, type(error), error.message, error.mend, error.code)
        if len(self._until) > MAX_REFUSED:
            self._until.popitem(last=False)

    def check(self, key: tuple[Digest, Digest]) -> None:
        """Raises the refusal of `key` again, if it is still young."""
        found = self._until.get(key)
        if found is None:
            return
        until, kind, message, mend, code = found
        if self._monotonic() >= until:
            del self._until[key]
            return
        self.count += 1
        raise kind(message, mend=mend, code=code)
