"""What the rest of Idiolect asks of a store. One contract suite (`tests/contracts`) runs against every implementation.

Every method is one transaction: it happens whole or not at all. Reads that decide what is served come from the same
place that resets write to, so there is nothing to go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from idiolect.consent import ConsentChange, SubjectState
from idiolect.errors import IdiolectError
from idiolect.privacy.events import GaussianEvent, Unit
from idiolect.privacy.ledger import Account, Charge, LedgerRun, Reservation
from idiolect.quotas import Quota
from idiolect.registry.manifest import ReleaseTemplate, Version
from idiolect.registry.resolution import ReleaseSummary, Resolution, Standing
from idiolect.resets.plan import ResetPlan
from idiolect.resets.receipt import ResetRecord
from idiolect.signals.comparison import PreferenceDataset
from idiolect.signals.data import EvaluationData, PersonalSnapshot, SharedData
from idiolect.signals.events import DerivedComparison, Inference
from idiolect.stores.key_ports import SealingStore
from idiolect.stores.people_ports import IdempotencyStore, PersonStore
from idiolect.stores.purge_ports import PurgeStore
from idiolect.stores.registry_ports import AdminStore
from idiolect.stores.retention_ports import RetentionStore
from idiolect.stores.rollout_ports import RolloutStore
from idiolect.tenancy import ApiKey, Caller, Scope
from idiolect.upstreams import Upstream

Progress = Callable[[int, int], None]  # (done, total)


def no_progress(_done: int, _total: int) -> None:
    """For callers who watch nothing."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    public: bool  # declared public: may train the global model without privacy
    opt_in: bool  # people with adaptation comparisons have agreed to personalization


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """`unchanged`: exactly this content was there already, and nothing was written."""

    unchanged: bool
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    tenant: str
    name: str
    digest: str
    public: bool
    counts: Mapping[str, int]
    imported_at: datetime


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """`fenced`: people who were reset or opted out since the snapshot; their versions were thrown away."""

    published: int
    fenced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredVersion:
    template: ReleaseTemplate
    version: Version
    revoked: bool
    withheld: str | None = None  # why it is not served: "quarantined: ...", "rolled_back: ..." or its key was withdrawn


@dataclass(frozen=True, slots=True)
class FeedbackSignal:
    """A signal with the comparisons that the rules derived from it, ready to be stored together."""

    id: str
    inference: Inference
    kind: str
    value: Any  # as the caller sent it
    occurred_at: datetime
    comparisons: Sequence[DerivedComparison]


@dataclass(frozen=True, slots=True)
class ShownInference:
    """`texts`: those of the query and the documents, in any order."""

    tenant: str
    inference: Inference
    texts: Sequence[str]
    generation: int | None = None  # of its person when it was ranked; if not known, times are compared


# "outdated": its person was reset after it was shown, so it was dropped and must not leave. An error: refused.
RecordOutcome = Literal["recorded", "outdated"] | IdiolectError


class TenantStore(Protocol):
    def create_tenant(self, tenant: str, now: datetime) -> None:
        """Idempotent."""
        ...

    def tenant_exists(self, tenant: str) -> bool: ...

    def create_key(
        self, tenant: str, scopes: Iterable[Scope], secret_hash: bytes, now: datetime, *, actor: str = "operator"
    ) -> ApiKey:
        """Raises NotFoundError for an unknown tenant."""
        ...

    def revoke_key(self, key_id: str, now: datetime, *, actor: str = "operator") -> None: ...

    def rotate_key(self, key_id: str, secret_hash: bytes, now: datetime, *, actor: str = "operator") -> ApiKey:
        """A new key with the tenant and scopes of this one, which is revoked in the same moment. Raises NotFoundError
        for an unknown key, ConflictError for a revoked one."""
        ...

    def key_holds(self, tenant: str, key_id: str) -> bool:
        """Whether this is a key of this tenant that was not revoked."""
        ...

    def authenticate(self, secret_hash: bytes) -> Caller | None:
        """None for an unknown or revoked key."""
        ...


class AgreementStore(Protocol):
    def agree(self, master_check: str, signing: str, trusted: Collection[str]) -> None:
        """Raises ConfigurationError unless the others of this installation have the same master key (as its check
        says) and trust the key id `signing`. The first one decides; later only who trusts the key before replaces it.
        """
        ...


class QuotaStore(Protocol):
    """Checked by what they bound: `change_subject`, `add_feedback` and `reserve` raise QuotaExceededError, and have
    then changed nothing."""

    def set_quota(self, tenant: str, name: str, most: int | None, now: datetime, *, actor: str = "operator") -> None:
        """None removes it. Raises NotFoundError for an unknown tenant, InvalidInputError for what is no quota."""
        ...

    def quotas(self, tenant: str, now: datetime) -> Sequence[Quota]:
        """Those that are set, in order of name."""
        ...


class UpstreamStore(Protocol):
    def set_upstream(self, tenant: str, upstream: Upstream) -> None:
        """Replaces the one before. Raises NotFoundError for an unknown tenant."""
        ...

    def upstream(self, tenant: str) -> Upstream | None: ...

    def remove_upstream(self, tenant: str) -> None:
        """Idempotent."""
        ...


class SubjectStore(Protocol):
    def subject(self, tenant: str, subject: str) -> SubjectState:
        """The state of a person; of an unknown one, the default state with `known=False`."""
        ...

    def subject_each(self, people: Sequence[tuple[str, str]]) -> Sequence[SubjectState]:
        """As `subject` for each (tenant, subject), in one snapshot."""
        ...

    def change_subject(
        self,
        tenant: str,
        subject: str,
        change: ConsentChange,
        now: datetime,
        *,
        if_revision: int | None = None,
        actor: str = "subject",
    ) -> SubjectState:
        """Apply `consent.apply_change`. Raises PreconditionError if `if_revision` is not the current revision.

        Withdrawing consent also erases the person's adapters (see `apply_reset`).
        """
        ...

    def subjects(self, tenant: str, *, after: str = "", limit: int = 100) -> Sequence[SubjectState]:
        """In order of pseudonym, after `after`."""
        ...


class SignalStore(Protocol):
    def import_dataset(
        self,
        tenant: str,
        dataset: PreferenceDataset,
        options: ImportOptions,
        now: datetime,
        progress: Progress = no_progress,
    ) -> ImportOutcome:
        """Store a data set (people already pseudonyms) whole or not at all, replacing an earlier one of that name.

        People with a tombstone are left out, and counted as `people_reset`.
        """
        ...

    def datasets(self, tenant: str) -> Sequence[DatasetInfo]: ...

    def record_inference(self, tenant: str, inference: Inference, texts: Sequence[str]) -> None:
        """Remember what was shown, with the texts of its query and documents."""
        ...

    def record_inferences(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome]:
        """As `record_inference` for each, in one transaction. One that is refused leaves the others as they are."""
        ...

    def record_at_once(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome] | None:
        """As `record_inferences`, but None, and nothing recorded, if that would have to wait: for another writer, for a
        new key of a person to be on the disk, or for a server. Some groups have to go the other way: see
        `Database.write_at_once`."""
        ...

    def inference(self, tenant: str, inference_id: str) -> Inference | None: ...

    def add_feedback(self, tenant: str, subject: str, signal: FeedbackSignal, now: datetime) -> bool:
        """Store the signal and its comparisons under the person's current generation, and queue the person for
        training. False if a signal of this id was there already (then nothing changed).

        Raises ConsentError if the person has not opted in: feedback of someone who did not agree is not kept.
        """
        ...

    def shared_data(self, tenant: str, *, domain: str | None = None, public_only: bool = False) -> SharedData:
        """Everything that global (`public_only`) or domain training may read: people of public data sets, and people
        who opted in; nobody with a tombstone newer than the data, and no evaluation pairs."""
        ...

    def domains(self, tenant: str) -> Sequence[str]:
        """Every domain that the tenant has items in, in order of name."""
        ...

    def contexts(self, tenant: str, domain: str) -> Sequence[tuple[str, str]]:
        """Every (task, language) that the domain has items of, in order; the task is empty where nobody said."""
        ...

    def contributors(self, tenant: str, domain: str) -> Sequence[str]:
        """The people whose data a training of this domain would read: whom to charge before reading any of it."""
        ...

    def trainable(self, tenant: str) -> Sequence[str]:
        """People whom `personal_snapshot` would find: opted in, not paused, with comparisons of this generation."""
        ...

    def personal_snapshot(
        self, tenant: str, *, subjects: Sequence[str] | None = None, max_comparisons: int = 50
    ) -> PersonalSnapshot:
        """Comparisons (the newest `max_comparisons` each) of opted-in people who are not paused; all if `subjects`
        is None.
        """
        ...

    def evaluation_data(self, tenant: str, dataset: str) -> EvaluationData: ...

    def training_queue(self, *, min_new: int) -> Sequence[tuple[str, str]]:
        """(tenant, subject) of people with at least `min_new` comparisons since their last training."""
        ...

    def mark_trained(self, tenant: str, subjects: Sequence[str], upto: datetime) -> None:
        """Comparisons received until `upto` no longer count as new."""
        ...


class LedgerStore(Protocol):
    def reserve(
        self,
        tenant: str,
        unit: Unit,
        purpose: str,
        event: GaussianEvent,
        subjects: Sequence[str],
        budget_rho: float,
        now: datetime,
        *,
        window: timedelta | None = None,
    ) -> Reservation:
        """Charge every account that stays within `budget_rho`; the others are refused and not charged.

        With a `window` only charges that are younger count. The run is stamped with the ledger's time, which is never
        before that of an earlier run, so that a clock that goes back makes no charge look older than it is.

        Serialised: two trainers can't both spend the same rest of a budget. The charge is final.
        """
        ...

    def settle(self, tenant: str, run: str, now: datetime) -> None:
        """Idempotent. Raises NotFoundError for an unknown run."""
        ...

    def account(self, tenant: str, unit: Unit, subject: str, *, since: datetime | None = None) -> Account:
        """What was charged: ever, or at `since` and later."""
        ...

    def runs(self, tenant: str, *, unit: Unit | None = None, limit: int = 100) -> Sequence[LedgerRun]:
        """Newest first."""
        ...

    def charges(self, tenant: str, subject: str, *, unit: Unit | None = None, limit: int = 100) -> Sequence[Charge]:
        """What each run cost this subject, newest first, with the release that came of it."""
        ...


class RegistryStore(Protocol):
    def set_global(self, digest: str, now: datetime, *, reason: str, actor: str) -> None:
        """Make `digest` the live global model of the installation."""
        ...

    def live_global(self) -> str | None: ...

    def publish(
        self,
        release: str,
        template: ReleaseTemplate,
        versions: Sequence[Version],
        now: datetime,
        *,
        reason: str,
        actor: str,
        staged: bool = False,
    ) -> PublishOutcome:
        """Store a release and move every version's live pointer (the old one becomes `previous`), with history.

        Fencing: a user version whose generation is no longer the person's, or whose person is not opted in, is dropped.
        Publishing the same release again changes nothing. `staged`: no pointer moves, and nothing falls back to it; a
        rollout or a promotion makes it live.
        """
        ...

    def resolve(self, tenant: str, subject: str | None, domain: str | None) -> Resolution:
        """What may be served. A version of a revoked release, of an older generation or bound to another global
        model is never returned: the newest other version that fits is, or None."""
        ...

    def resolve_each(self, asked: Sequence[tuple[str, str | None, str | None]]) -> Sequence[Resolution]:
        """As `resolve` for each (tenant, subject, domain), in one snapshot."""
        ...

    def standing_each(self, asked: Sequence[tuple[str, str | None, str | None]]) -> Sequence[Standing]:
        """What remembered resolutions of each (tenant, subject, domain) must agree with: a shorter look than theirs.

        Whatever was committed before the call is seen by all of it.
        """
        ...

    def version(self, tenant: str, version_id: str) -> StoredVersion | None: ...

    def versions(
        self,
        tenant: str,
        *,
        subject: str | None = None,
        domain: str | None = None,
        release: str | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[StoredVersion]:
        """In order of id, after `after`; of one person, domain or release if one is given (an empty one is none)."""
        ...

    def with_weights(self, stored: StoredVersion) -> StoredVersion:
        """As `stored`, whose weights `version` and `versions` leave empty where they lie in a blob. Raises
        CorruptArtifactError if they are damaged or gone (code `weights_missing`), UnavailableError."""
        ...

    def blobs_left(self, until: datetime) -> bool:
        """Whether blobs of versions that were erased or collected by then still wait to be deleted."""
        ...

    def named_blobs(self) -> Sequence[str]:
        """The digests of the blobs that versions of any tenant have their weights in."""
        ...

    def releases(self, tenant: str, *, limit: int = 100) -> Sequence[ReleaseSummary]:
        """Newest first."""
        ...

    def release(self, tenant: str, release: str) -> ReleaseSummary | None: ...

    def revoke_release(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> None:
        """One write. Raises NotFoundError for an unknown release; idempotent."""
        ...


class ResetStore(Protocol):
    def apply_reset(
        self, tenant: str, subject: str, reset_id: str, plan: ResetPlan, now: datetime, *, actor: str = "subject"
    ) -> ResetRecord:
        """Carry out `plan` in one transaction: once it returns, no resolve anywhere sees the old generation.

        A known `reset_id` returns its record again and changes nothing. `shared_releases` names the domain releases
        whose ledger run charged this person.
        """
        ...

    def reset(self, tenant: str, reset_id: str) -> ResetRecord | None: ...


class Store(
    AgreementStore,
    TenantStore,
    QuotaStore,
    UpstreamStore,
    SubjectStore,
    PersonStore,
    IdempotencyStore,
    SignalStore,
    LedgerStore,
    RegistryStore,
    ResetStore,
    PurgeStore,
    AdminStore,
    RolloutStore,
    RetentionStore,
    SealingStore,
    Protocol,
):
    """Everything, behind one connection pool."""

    @property
    def embedded(self) -> bool:
        """Point reads (resolve, subject, authenticate, inference) take microseconds and wait for nobody."""
        ...

    @property
    def tenants_walled(self) -> bool | None:
        """Whether the database itself keeps tenants apart, behind what every query says; None if it can't."""
        ...

    def check(self) -> None:
        """Raises UnavailableError if the store can't be read and written now."""
        ...

    def close(self) -> None: ...
