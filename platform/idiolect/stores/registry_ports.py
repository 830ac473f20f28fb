"""What admins ask of a store: the audit log, pointers, quarantine, lineage, collecting garbage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Protocol

from idiolect.audit import AuditEntry, AuditEvent, Head
from idiolect.registry.garbage import Garbage
from idiolect.registry.lineage import Contribution, VersionLineage
from idiolect.registry.pointers import Adapter, Pointer, PointerMove
from idiolect.registry.swaps import OnSwap
from idiolect.stores.people_ports import ClaimedKey


class AuditStore(Protocol):
    """Every administrative change appends its entry by itself; the tenant "" is the installation's chain."""

    def record_audit(self, tenant: str, event: AuditEvent, now: datetime) -> None:
        """Only for changes that are made outside the store."""
        ...

    def audit_chains(self) -> Sequence[str]: ...

    def audit_head(self, tenant: str) -> Head: ...

    def audit_entries(self, tenant: str, *, before: int | None = None, limit: int = 100) -> Sequence[AuditEntry]:
        """Newest first, of those with a number under `before`."""
        ...

    def audited(self, tenant: str, action: str, objects: Sequence[str]) -> set[str]:
        """Those of `objects` that this was ever done to."""
        ...

    def audit_walk(self, tenant: str) -> Iterator[AuditEntry]:
        """Oldest first, a page at a time."""
        ...


class PointerStore(Protocol):
    def pointers(self, tenant: str, adapter: Adapter) -> Sequence[Pointer]:
        """`live` first; always at least `live`, with revision 0 if there is none."""
        ...

    def adapters(self, tenant: str, *, after: str = "", limit: int = 100) -> Sequence[tuple[Adapter, Pointer]]:
        """Adapters that have a live pointer, domains first, in order of id; those after the id `after`."""
        ...

    def promote(
        self, tenant: str, version_id: str, now: datetime, *, reason: str, actor: str, if_match: str | None = None
    ) -> Pointer:
        """Make a version live; what was live becomes `previous`. Promoting what is live changes nothing.

        Raises NotFoundError, PreconditionError if `if_match` is not the live pointer's etag, ConflictError if the
        version may not be live (see `pointers.refusal`).
        """
        ...

    def promote_release(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> int:
        """Make every version of a release live that may be; how many pointers moved.

        Raises NotFoundError, and ConflictError for a release that is revoked or bound to another global model."""
        ...

    def rollback(
        self,
        tenant: str,
        adapter: Adapter,
        now: datetime,
        *,
        reason: str,
        actor: str,
        if_match: str | None = None,
        once: ClaimedKey | None = None,
    ) -> Pointer:
        """Back to `previous`. What was live is withheld until it is promoted again, and `previous` becomes the newest
        older version that may be served. Raises NotFoundError, PreconditionError, ConflictError as `promote` does.

        Twice goes back twice. Not under one key: the second time nothing moves, whatever `if_match` is."""
        ...

    def pointer_history(
        self, tenant: str, adapter: Adapter, *, before: int | None = None, limit: int = 100
    ) -> Sequence[PointerMove]:
        """Newest first, of those with an id under `before`."""
        ...


class QuarantineStore(Protocol):
    def quarantine(self, tenant: str, version_id: str, reason: str, now: datetime, *, actor: str) -> bool:
        """No resolve returns the version from now on. False if it is gone or was quarantined before."""
        ...

    def withdraw_signing_key(self, key_id: str, now: datetime, *, reason: str, actor: str) -> int:
        """One write: versions that this key signed are no longer resolved. How many those are; idempotent."""
        ...

    def withdrawn_signing_keys(self) -> Sequence[str]: ...


class LineageStore(Protocol):
    def contributions(self, tenant: str, subject: str) -> Sequence[Contribution]:
        """Every version that learned from this person, oldest first: their own, and those of charged runs."""
        ...

    def version_lineage(self, tenant: str, version_id: str) -> VersionLineage | None:
        """Back from a version to its run, data window and parents."""
        ...


class GarbageStore(Protocol):
    def garbage(self, tenant: str, older_than: datetime) -> Garbage:
        """What `collect` would delete now."""
        ...

    def collect(self, tenant: str, older_than: datetime, now: datetime, *, actor: str) -> Garbage:
        """Delete it, a batch at a time, while others write."""
        ...

    def referenced_models(self) -> Sequence[str]:
        """Digests of global models that are or were live, are staged, or that a release of any tenant is bound to."""
        ...


class SwapStore(Protocol):
    on_swap: OnSwap | None  # told, after the commit, of what this process makes live or takes away


class AdminStore(SwapStore, AuditStore, PointerStore, QuarantineStore, LineageStore, GarbageStore, Protocol):
    """All of it."""
