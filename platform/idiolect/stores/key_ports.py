"""What a store asks of the keys of people, and what is asked of a store about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import Protocol

from idiolect.subject_keys import Ending, SubjectKey

Wanted = tuple[str, str]  # (subject, scope)


class SubjectKeys(Protocol):
    """Nothing of it is cached, so that a key that was destroyed is gone in every process at once."""

    identity: str  # tells one key store from another
    where: str

    @property
    def embedded(self) -> bool:
        """Whether it is a file that this process reads itself, not a server."""
        ...

    def ensure(
        self, tenant: str, wanted: Iterable[Wanted], *, spread: bool = False, new: bool = False
    ) -> dict[Wanted, SubjectKey]:
        """The key of each, made now where there is none. On the disk before anything is sealed with it.

        `spread`: only a hint where to put them: those of the people between them will be asked for too.
        `new`: only a hint that there are most likely none, so that they need not be looked for first.
        """
        ...

    def find(self, tenant: str, wanted: Collection[Wanted]) -> dict[Wanted, SubjectKey]:
        """Of those that there are."""
        ...

    def by_id(self, tenant: str, ids: Collection[bytes]) -> dict[bytes, SubjectKey]:
        """Of those that were not destroyed."""
        ...

    def destroy(self, tenant: str, subject: str, ending: Ending) -> int:
        """How many. For good once it returns; harmless to repeat."""
        ...

    def scrub(self) -> None:
        """Overwrite what was destroyed, as far as the database can."""
        ...

    def close(self) -> None: ...


class SealingStore(Protocol):
    def is_all_sealed(self) -> bool:
        """Whether nothing that was stored of a person before there were keys is left in the clear."""
        ...

    def seal_existing(self, now: datetime, *, goes_on: Callable[[], bool]) -> int:
        """How many rows were sealed now. In bounded batches: what is cut off goes on with the next call."""
        ...
