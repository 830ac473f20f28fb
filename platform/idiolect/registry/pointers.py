"""Which version of an adapter is live: words, names and the rules of moving a pointer. Pure.

An adapter belongs to one owner, a person or a domain. Its pointers are `live`, which is served, and `previous`, which
`rollback` goes back to. A pointer moves by compare-and-swap on its `etag`, which names its revision and its version: a
state that was left never comes back under the same etag, not even after a reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from idiolect.consent import SubjectState
from idiolect.errors import ConflictError, InvalidInputError
from idiolect.registry.manifest import GLOBAL_OWNER, AdapterScope

LIVE, PREVIOUS = "live", "previous"

# Why a version is not served, by its own fault or by decision. A promotion ends `rolled_back`; nothing ends
# `quarantined`, since what failed verification once is not trusted again.
Withheld = Literal["quarantined", "rolled_back"]
QUARANTINED: Withheld = "quarantined"
ROLLED_BACK: Withheld = "rolled_back"


@dataclass(frozen=True, slots=True)
class Adapter:
    """One owner. `name` is a pseudonym (user scope) or a domain."""

    scope: AdapterScope
    name: str

    @property
    def id(self) -> str:
        return f"{self.scope}:{self.name}"

    @property
    def subject(self) -> str:
        return self.name if self.scope == "user" else ""

    @property
    def domain(self) -> str:
        return self.name if self.scope == "domain" else ""

    @staticmethod
    def of(subject: str, domain: str) -> Adapter:
        return Adapter("user", subject) if subject else Adapter("domain", domain)

    @staticmethod
    def parse(adapter_id: str) -> Adapter:
        scope, colon, name = adapter_id.partition(":")
        if not colon or not name or scope not in ("user", "domain"):
            raise InvalidInputError(
                f"{adapter_id[:80]!r} is not an adapter's id.",
                mend="Use user:<pseudonym> or domain:<name>, as the list of adapters shows it.",
            )
        return Adapter("user" if scope == "user" else "domain", name)


@dataclass(frozen=True, slots=True)
class Pointer:
    """`revision` 0 and no version: nothing was ever published for this owner, or it was erased."""

    name: str
    version: str | None
    revision: int

    @property
    def etag(self) -> str:
        return f"{self.revision}.{self.version or ''}"


@dataclass(frozen=True, slots=True)
class PointerMove:
    """One line of the history. `version` is None where a reset erased the pointer."""

    id: int
    name: str
    old_version: str | None
    version: str | None
    at: datetime
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """What decides whether a version may be live, read in the transaction that would make it so."""

    version: str
    adapter: Adapter
    generation: int
    revoked: bool
    withheld: str | None
    withheld_reason: str | None
    key_withdrawn: bool
    global_digest: str


def refusal(candidate: Candidate, state: SubjectState | None, tombstone: int, live_global: str | None) -> str | None:
    """Why the candidate may not become live, or None. `tombstone` is the generation of one, -1 without.

    Tombstones come first: whoever was reset or left is never brought back, by whatever name the version is asked for.
    """
    if candidate.adapter.name == GLOBAL_OWNER:
        return "it is of the global model, and lives with that alone"
    if candidate.adapter.scope == "user":
        if state is None or not state.opted_in:
            return "its person has not opted in"
        if state.generation != candidate.generation or tombstone > candidate.generation:
            return "it is older than a reset of its person"
    if candidate.revoked:
        return "its release was revoked"
    if candidate.withheld == QUARANTINED:
        return f"it is quarantined ({candidate.withheld_reason})"
    if candidate.key_withdrawn:
        return "the key that signed it was withdrawn"
    if candidate.global_digest != live_global:
        return "it is bound to another global model than the live one"
    return None


def check_promotable(
    candidate: Candidate, state: SubjectState | None, tombstone: int, live_global: str | None, what: str
) -> None:
    """Raises ConflictError, code `not_promotable`, saying why."""
    why = refusal(candidate, state, tombstone, live_global)
    if why is not None:
        raise ConflictError(
            f"version {candidate.version} can't {what}: {why}.",
            mend="Promote another version, or train again.",
            code="not_promotable",
        )
