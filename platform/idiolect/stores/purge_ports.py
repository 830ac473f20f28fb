"""What processes that cache ask of a store: whom to forget, and how far the others have come."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from idiolect.resets.purges import Purge, Replica


class PurgeStore(Protocol):
    def purge_head(self) -> int:
        """The place of the newest purge of all tenants; 0 if there is none."""
        ...

    def purges(self, after: int, *, limit: int = 1000) -> Sequence[Purge]:
        """In order of place, those after `after`; of each person only the newest. None is ever found later than one
        with a higher place."""
        ...

    def follow(self, replica: str, since: int, cursor: int, now: datetime) -> None:
        """Say that this process lives and has purged up to `cursor`. Also forgets those who were silent for very long;
        one that comes back after that is simply there again."""
        ...

    def leave(self, replica: str) -> None:
        """This process ends in order, and its memory with it. Idempotent."""
        ...

    def sweep_blobs(self) -> int:
        """Delete the blobs of versions that were erased or collected; how many are left for later. Resets and
        collecting do so by themselves, but the place where blobs lie may have been out of reach. Raises nothing."""
        ...

    def replicas(self, now: datetime) -> Sequence[Replica]: ...
