"""The audit log: one append-only chain of entries per tenant, and one (tenant "") for the installation.

Each entry holds the hash of the one before it, so nobody can edit, remove, insert or reorder entries without every
later hash changing. Whoever can write to the database can still rebuild a whole chain, or cut off its end together with
the stored head. Against that, keep the head (`Head.anchor`, one line) somewhere else and verify against it.

One entry is one administrative change, however many people it reaches: a release of a million versions is one entry.
Entries hold no text that a person wrote and no plain user id: people are pseudonyms, so erasure leaves the log alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from idiolect.canonical import canonical_json
from idiolect.errors import CorruptArtifactError, InvalidInputError
from idiolect.ids import sha256_hex

INSTALLATION = ""
GENESIS = "0" * 64  # what the first entry of a chain names as the hash before it

Fault = Literal["edited", "missing", "reordered", "rewritten", "truncated"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ANCHOR = re.compile(r"(\d{1,15}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """What happened, before it has a place in the chain. `object` names what was changed: `release <id>`."""

    actor: str
    action: str  # "release.publish", "pointer.rollback"; stable
    object: str
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain; `seq` 0 for one without entries."""

    seq: int = 0
    hash: str = GENESIS

    @property
    def anchor(self) -> str:
        """One line to keep elsewhere: it pins down every entry up to this one."""
        return f"{self.seq}:{self.hash}"

    @staticmethod
    def parse(anchor: str) -> Head:
        found = _ANCHOR.fullmatch(anchor.strip())
        if found is None:
            raise InvalidInputError(
                f"{anchor[:80]!r} is not the head of an audit log.",
                mend="Use what `idiolect audit verify` printed: a number, a colon and 64 hex characters.",
            )
        return Head(int(found[1]), found[2])


@dataclass(frozen=True, slots=True)
class AuditEntry:
    tenant: str
    seq: int  # 1, 2, 3...
    at_us: int  # microseconds since 1970, UTC, by the clock of whoever made the change
    actor: str
    action: str
    object: str
    reason: str
    details: str  # canonical JSON
    previous: str
    hash: str

    @property
    def head(self) -> Head:
        return Head(self.seq, self.hash)

    @property
    def at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.at_us)

    def computed_hash(self) -> str:
        """sha256 over the canonical JSON of everything but the hash itself."""
        return sha256_hex(
            canonical_json(
                {
                    "format": "idiolect-audit/1",
                    "tenant": self.tenant,
                    "seq": self.seq,
                    "at_us": self.at_us,
                    "actor": self.actor,
                    "action": self.action,
                    "object": self.object,
                    "reason": self.reason,
                    "details": self.details,
                    "previous": self.previous,
                }
            )
        )


def entry_after(head: Head, tenant: str, event: AuditEvent, at_us: int) -> AuditEntry:
    """The entry that follows `head`. Raises CorruptArtifactError for details that JSON can't say exactly."""
    details = canonical_json(event.details).decode()
    draft = AuditEntry(
        tenant, head.seq + 1, at_us, event.actor, event.action, event.object, event.reason, details, head.hash, ""
    )
    return replace(draft, hash=draft.computed_hash())


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a chain does not hold. `seq` is the entry that is wrong or absent."""

    seq: int
    fault: Fault
    explanation: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`head` is the last entry that holds."""

    entries: int
    head: Head
    broken: Break | None


def verify(entries: Iterable[AuditEntry], stored_head: Head, expected: Head | None = None) -> Verdict:
    """Walk a whole chain, in stored order, in bounded memory.

    `stored_head` is what the store says the end is; `expected` an anchor that was kept elsewhere, of now or of earlier.
    Entries beyond `stored_head` are not looked at: they came after it was read.
    """
    last, broken = Head(), None
    met = expected is None or expected.seq == 0
    for entry in _until(entries, stored_head.seq):
        broken = _broken(entry, last)
        if broken is not None:
            break
        last = entry.head
        if expected is not None and entry.seq == expected.seq:
            met = entry.hash == expected.hash
            if not met:
                broken = Break(entry.seq, "rewritten", "it is not the entry whose hash was kept elsewhere")
                break
    return Verdict(last.seq, last, broken or _end(last, stored_head, expected, met))


def _until(entries: Iterable[AuditEntry], seq: int) -> Iterator[AuditEntry]:
    return (entry for entry in entries if entry.seq <= seq)


def _broken(entry: AuditEntry, last: Head) -> Break | None:
    wanted = last.seq + 1
    if entry.seq > wanted:
        return Break(wanted, "missing", f"the next stored entry is {entry.seq}")
    if entry.seq < wanted:
        return Break(entry.seq, "reordered", f"it stands after entry {last.seq}")
    linked = entry.previous == last.hash
    if not _holds(entry):
        if linked:
            return Break(entry.seq, "edited", "its content does not match its hash")
        return Break(entry.seq, "reordered", "neither its content nor its link to the entry before it fits this place")
    if not linked:
        return Break(entry.seq, "rewritten", "it does not name the hash of the entry before it")
    return None


def _holds(entry: AuditEntry) -> bool:
    try:
        return entry.computed_hash() == entry.hash
    except CorruptArtifactError:
        return False


def _end(last: Head, stored: Head, expected: Head | None, met: bool) -> Break | None:
    if last.seq < stored.seq:
        return Break(last.seq + 1, "truncated", f"the store says that entry {stored.seq} is the last")
    if last.hash != stored.hash:
        return Break(last.seq, "rewritten", "it is not the entry that the store remembers as the last")
    if expected is not None and not met:
        return Break(last.seq + 1, "truncated", f"entry {expected.seq} was there when its hash was kept")
    return None
