"""What the API answers operators about adapters, releases, the audit log and the privacy ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from idiolect.client.results import Result


class AdapterSummary(Result):
    """`id` is the version's; `adapter` is whose it is, and what `pointers`, `promote` and `rollback` take."""

    id: str
    adapter: str
    release: str
    scope: str
    subject: str | None
    domain: str | None
    generation: int
    revoked: bool
    withheld: str | None  # why it is not served although published
    weights_sha256: str
    created_at: datetime
    kind: str
    epsilon: float | None  # None: nothing is claimed, it was trained elsewhere
    unit: str | None


class AdapterPage(Result):
    """`next_page_token` is None on the last page."""

    adapters: tuple[AdapterSummary, ...]
    next_page_token: str | None


class Adapter(Result):
    id: str
    revoked: bool
    withheld: str | None
    manifest: dict[str, Any]
    key_id: str
    signature: str


class Pointer(Result):
    name: str
    version: str | None
    revision: int


class Pointers(Result):
    """What is live, and what a rollback goes back to. As `based_on` it makes a change refuse to overtake another."""

    adapter: str
    pointers: tuple[Pointer, ...]

    @property
    def live(self) -> Pointer:
        return self.pointers[0]

    @property
    def previous(self) -> Pointer | None:
        return next((pointer for pointer in self.pointers if pointer.name == "previous"), None)


class PointerMove(Result):
    name: str
    old_version: str | None
    version: str | None  # None: a reset erased the pointer
    at: datetime
    reason: str
    actor: str


class PointerHistory(Result):
    """Newest first. `next_page_token` is None on the last page."""

    moves: tuple[PointerMove, ...]
    next_page_token: str | None


class Lineage(Result):
    version: str
    release: str
    adapter: str
    run: str
    purpose: str | None
    accounts: int | None  # how many people the run charged
    data_window: str
    global_digest: str
    parents: tuple[str, ...]  # nearest first


class Contribution(Result):
    """`via`: `own`, or `ledger`: the training charged the person before it read anything."""

    version: str
    release: str
    scope: str
    domain: str | None
    run: str
    published_at: datetime
    revoked: bool
    via: str


class Contributions(Result):
    """Every version that may hold what the person said."""

    versions: tuple[Contribution, ...]


class AuditEntry(Result):
    """`hash` covers the entry and `previous`, the hash of the one before."""

    seq: int
    at: datetime
    actor: str
    action: str
    object: str
    reason: str
    details: dict[str, Any]
    previous: str
    hash: str


class AuditPage(Result):
    """Newest first. `head` is `seq:hash` of the newest entry: kept elsewhere, it pins down the log up to here."""

    entries: tuple[AuditEntry, ...]
    head: str
    next_page_token: str | None


class Release(Result):
    id: str
    scope: str
    created_at: datetime
    versions: int
    revoked: bool
    epsilon: float | None
    unit: str | None


class Releases(Result):
    releases: tuple[Release, ...]


class ReleaseCard(Result):
    """The model card, in Markdown."""

    text: str

    @classmethod
    def read(cls, content: bytes) -> Self:
        return cls(text=content.decode("utf-8", "replace"))


class Promotion(Result):
    id: str
    moved: int  # adapters that serve another version than before


class Revocation(Result):
    id: str
    revoked: bool


class ImportedRelease(Result):
    """`versions` were stored, live for nobody; `fenced` (people who were reset or left since) and `quarantined` were
    left out. `known`: it was here already, and nothing changed."""

    release: str
    global_digest: str
    versions: int
    fenced: int
    quarantined: int
    known: bool


class Change(Result):
    name: str
    a: str
    b: str


class WeightsChange(Result):
    norm_a: float
    norm_b: float
    distance: float
    cosine: float | None


class Probe(Result):
    """A public text, and what each of the two versions adds to its global score."""

    prompt: str
    text: str
    a: float
    b: float


class Difference(Result):
    """`fields` of the manifests, where they differ. Of two releases `weights` are medians over `pairs` adapters."""

    fields: tuple[Change, ...]
    weights: WeightsChange | None
    pairs: int | None
    probes: tuple[Probe, ...]


class Garbage(Result):
    """What nothing can reach: deleted if `applied`, else counted."""

    applied: bool
    releases: int
    versions: int
    bytes: int


class LedgerRun(Result):
    id: str
    unit: str
    purpose: str
    state: str
    accounts: int
    epsilon: float
    delta: float
    rho: float
    noise_multiplier: float
    steps: int
    reserved_at: datetime
    settled_at: datetime | None


class Ledger(Result):
    runs: tuple[LedgerRun, ...]
