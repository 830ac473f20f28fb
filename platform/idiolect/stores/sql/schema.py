"""The tables. Every key starts with the tenant, so that no look-up can cross tenants.

Times are whole microseconds since 1970 in UTC (`times.py`): exact, sortable, and the same in every database. Digests of
texts are 32 raw bytes. Texts are stored as bytes, because neither NUL nor a lone surrogate fits Postgres' TEXT.

`comparisons.id` is a logical clock: it never repeats, and `tombstones.upto` points into it. An item is referred to by
`dataset_items` (for everything imported) or by a comparison without a data set (feedback); that makes "nothing refers
to it any more" two indexed look-ups.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
)

# SQLite numbers rows itself only for a column that is exactly INTEGER.
_ROW_ID = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)


def _key(*names: str) -> list[Column[str]]:
    return [Column(name, Text, primary_key=True) for name in names]


def _row_id() -> Column[int]:
    return Column("id", _ROW_ID, primary_key=True, autoincrement=True)


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _whole(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


def _count(name: str) -> Column[int]:
    """Where there are a million rows: half the room on Postgres. One change a second for sixty years fits."""
    return Column(name, Integer().with_variant(BigInteger(), "sqlite"), nullable=False)


def _number(name: str) -> Column[float]:
    return Column(name, Double, nullable=False)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def _bytes(name: str, *, nullable: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=nullable)


def _sealed() -> Column[bytes]:
    """What only the key of a person opens; where it is set, the columns that it stands for are empty."""
    return _bytes("sealed", nullable=True)


tenants = Table(
    "tenants",
    metadata,
    *_key("name"),
    _whole("created_at"),
    _whole("retention_days", nullable=True),
    # Another one after every write that withholds a version, revokes a release or withdraws a key: triggers of the
    # migration see to it.
    Column("served_mark", Text, nullable=False, server_default=""),
)

# One row: the key store that opens what is sealed here. `sealed_at`: since when nothing of a person is in the clear.
key_store = Table("key_store", metadata, *_key("id"), _whole("sealed_at", nullable=True))

api_keys = Table(
    "api_keys",
    metadata,
    *_key("id"),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    _text("scopes"),  # JSON list
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    _whole("created_at"),
    _whole("revoked_at", nullable=True),
)

# `sealed_key` opens only with the installation's master key, which is no part of the database.
upstreams = Table(
    "upstreams",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.name"), primary_key=True),
    _text("base_url"),
    _text("model", nullable=True),
    _bytes("sealed_key", nullable=True),
    _whole("updated_at"),
)

# What the operator lets a tenant use, and what was used; see `quotas`.
quotas = Table(
    "quotas",
    metadata,
    *_key("tenant", "name"),
    _whole("most"),
    _whole("day"),  # since 1970, which `used` is of
    _whole("used"),
    sqlite_with_rowid=False,
)

# What all servers of an installation must agree on; see `agreement`.
agreements = Table("agreements", metadata, *_key("name"), _text("value"))

# --- people -----------------------------------------------------------------------------------------------------------

subjects = Table(
    "subjects",
    metadata,
    *_key("tenant", "subject"),
    _flag("opted_in"),
    _flag("paused"),
    _number("strength"),
    _whole("generation"),
    _whole("revision"),
    _text("policy_version", nullable=True),
    _whole("updated_at"),
    _whole("trained_until", nullable=True),
    _text("domains", nullable=True),  # JSON list of what was decided for single domains; none: nothing was
    sqlite_with_rowid=False,
)

# Domains that people are out of: an index of `subjects.domains`, for queries about many people.
domain_refusals = Table("domain_refusals", metadata, *_key("tenant", "subject", "domain"), sqlite_with_rowid=False)

Index("subjects_opted_in", subjects.c.tenant, sqlite_where=subjects.c.opted_in, postgresql_where=subjects.c.opted_in)

tombstones = Table(
    "tombstones",
    metadata,
    *_key("tenant", "subject"),
    _whole("generation"),  # everything older is fenced
    _whole("at"),
    _whole("upto"),  # comparisons with an id up to this are never shared again
    # The place in the purge log: rises with every commit that fences anybody; see purges.
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Index("tombstones_by_seq", "seq"),
    sqlite_with_rowid=False,
)

# Server processes that follow the tombstones: `since` is where each began, `cursor` up to where it has purged.
replicas = Table("replicas", metadata, *_key("id"), _whole("since"), _whole("cursor"), _whole("seen_at"))

training_queue = Table(
    "training_queue",
    metadata,
    *_key("tenant", "subject"),
    _whole("new_comparisons"),
    sqlite_with_rowid=False,
)

resets = Table(
    "resets",
    metadata,
    *_key("tenant", "id"),
    _text("subject"),
    _text("record"),  # JSON, without the text of anything
    _whole("completed_at"),
)

# What was answered to requests that can be sent again. `owner`: the person of an end user's token, else empty.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    *_key("tenant", "owner", "key"),
    _bytes("fingerprint"),
    _whole("status", nullable=True),  # None: not answered yet
    _bytes("answer", nullable=True),
    _whole("claimed_at"),
    _whole("expires_at"),
    Index("idempotency_keys_by_expiry", "tenant", "expires_at"),
    sqlite_with_rowid=False,
)

# --- signals ----------------------------------------------------------------------------------------------------------

texts = Table(
    "texts",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),  # of a sealed text, the person's reference to it
    _bytes("body"),  # UTF-8, lone surrogates passed through; empty if sealed
    _sealed(),
)

items = Table(
    "items",
    metadata,
    _row_id(),
    _text("tenant"),
    _bytes("key"),  # sha256 of domain, prompt and text: see texts.item_key
    _text("domain"),
    _bytes("prompt"),
    _bytes("text"),
    _text("language"),
    Column("task", Text, nullable=False, server_default=""),
    UniqueConstraint("tenant", "key"),
    Index("items_by_prompt", "tenant", "prompt"),
    Index("items_by_text", "tenant", "text"),
    Index("items_by_domain", "tenant", "domain"),
)

datasets = Table(
    "datasets",
    metadata,
    _row_id(),
    _text("tenant"),
    _text("name"),
    _text("digest"),
    _flag("public"),
    _flag("opt_in"),
    _text("counts"),  # JSON
    _whole("imported_at"),
    UniqueConstraint("tenant", "name"),
    sqlite_autoincrement=True,
)

dataset_items = Table(
    "dataset_items",
    metadata,
    Column("dataset", _ROW_ID, primary_key=True, autoincrement=False),
    Column("item", _ROW_ID, primary_key=True, autoincrement=False),
    Column("position", Integer),  # in the data set; not known of those imported before there was such a column
    Index("dataset_items_by_item", "item"),
    sqlite_with_rowid=False,
)

ratings = Table(
    "ratings",
    metadata,
    _row_id(),
    _text("tenant"),
    _whole("dataset"),
    _text("subject"),
    _whole("item"),
    _number("value"),
    _whole("occurred_at", nullable=True),
    Index("ratings_by_subject", "tenant", "subject"),
    Index("ratings_by_dataset", "tenant", "dataset"),
)

comparisons = Table(
    "comparisons",
    metadata,
    _row_id(),
    _text("tenant"),
    _whole("dataset", nullable=True),  # None: feedback
    _text("subject"),
    _whole("generation"),
    _whole("chosen"),  # of a sealed row the smaller id of the two; which was chosen is in `sealed`
    _whole("rejected"),
    _number("weight"),
    _text("source"),
    _sealed(),  # weight, source and direction
    _flag("shared"),  # may train shared models; False for what trains only the person's own adapter
    _whole("occurred_at", nullable=True),
    _whole("received_at"),
    _whole("shown_at", nullable=True),  # of feedback: when its texts were served
    Index("comparisons_by_subject", "tenant", "subject", "received_at"),
    Index("comparisons_by_dataset", "tenant", "dataset"),
    Index("comparisons_by_showing", "tenant", "shown_at"),
    sqlite_autoincrement=True,
)
for _side in ("chosen", "rejected"):
    Index(
        f"comparisons_by_{_side}",
        comparisons.c[_side],
        sqlite_where=comparisons.c.dataset.is_(None),
        postgresql_where=comparisons.c.dataset.is_(None),
    )

# Held out: no query that training runs names this table.
evaluation_pairs = Table(
    "evaluation_pairs",
    metadata,
    _row_id(),
    _text("tenant"),
    _whole("dataset"),
    _text("part"),
    _text("subject"),
    _whole("chosen"),
    _whole("rejected"),
    _number("weight"),
    Index("evaluation_pairs_by_subject", "tenant", "subject"),
    Index("evaluation_pairs_by_dataset", "tenant", "dataset"),
)

inferences = Table(
    "inferences",
    metadata,
    *_key("tenant", "id"),
    _text("subject", nullable=True),
    _text("domain", nullable=True),
    _bytes("query"),
    _bytes("documents"),  # digests, 32 bytes each, in the order of the request
    _text("shown"),  # JSON list
    _sealed(),  # the true digests and `shown`; `query` and `documents` then are references
    _whole("created_at"),
    Index("inferences_by_subject", "tenant", "subject"),
    Index("inferences_by_time", "tenant", "created_at"),
)

# Only to answer "does any inference still need this text?".
inference_texts = Table(
    "inference_texts",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("inference", Text, primary_key=True),
    sqlite_with_rowid=False,
)

signals = Table(
    "signals",
    metadata,
    *_key("tenant", "id"),
    _text("subject"),
    _text("inference"),
    _text("kind"),
    _text("value"),  # JSON, as the caller sent it
    _sealed(),  # kind and value
    _whole("occurred_at"),
    _whole("received_at"),
    Index("signals_by_subject", "tenant", "subject"),
    Index("signals_by_inference", "tenant", "inference"),
)

# --- ledger -----------------------------------------------------------------------------------------------------------

ledger_runs = Table(
    "ledger_runs",
    metadata,
    *_key("tenant", "id"),
    _text("unit"),
    _text("purpose"),
    _number("noise_multiplier"),
    _whole("steps"),
    _whole("accounts"),
    _whole("reserved_at"),
    _whole("settled_at", nullable=True),
    Index("ledger_runs_by_time", "tenant", "reserved_at", "id"),
)

ledger_accounts = Table(
    "ledger_accounts",
    metadata,
    *_key("tenant", "unit", "subject"),
    _number("spent_rho"),
    _whole("runs"),
    sqlite_with_rowid=False,
)

ledger_charges = Table(
    "ledger_charges",
    metadata,
    *_key("tenant", "subject", "run"),
    sqlite_with_rowid=False,
)

# --- registry ---------------------------------------------------------------------------------------------------------

global_pointer = Table(
    "global_pointer",
    metadata,
    _row_id(),
    _text("digest"),
    _whole("at"),
    _text("reason"),
    _text("actor"),
    sqlite_autoincrement=True,
)

releases = Table(
    "releases",
    metadata,
    *_key("tenant", "id"),
    _text("scope"),
    _text("global_digest"),
    _text("run"),
    _text("template"),  # JSON
    _bytes("content"),  # sha256 of everything that was published: see publishing.content_digest
    _whole("versions"),
    _text("fenced"),  # JSON list
    _whole("published_at"),
    _text("reason"),
    _text("actor"),
    _whole("revoked_at", nullable=True),
    _text("revoke_reason", nullable=True),
    _text("revoke_actor", nullable=True),
    # Published, but made nobody's live version: for a rollout. Nothing falls back to it.
    Column("staged", Boolean, nullable=False, server_default=false()),
    # What the weights of all its people begin with, and what is sealed of them lacks: see weights.shared_head.
    _bytes("weights_head", nullable=True),
    # That signed every version whose own `key_id` is empty.
    _text("key_id", nullable=True),
    # The entry of `pointer_history` that stands for one of each of its versions: see `moves`. None: each has its own.
    _whole("moves", nullable=True),
    Index("releases_by_time", "tenant", "published_at", "id"),
    Index("releases_by_run", "tenant", "run"),
)

# `subject` is empty for a domain's adapter, `domain` for a person's: the two name the owner.
versions = Table(
    "versions",
    metadata,
    Column("seq", _ROW_ID, primary_key=True, autoincrement=True),  # the order of publishing
    _text("tenant"),
    _text("id"),
    _text("release"),
    _text("subject"),
    _text("domain"),
    _count("generation"),
    _text("parent", nullable=True),
    _bytes("weights"),
    _sealed(),  # a person's weights, but for the release's head; the digest is of the weights themselves
    _bytes("weights_sha256"),
    _text("evaluation", nullable=True),  # JSON
    _text("key_id"),  # empty: the release's
    _bytes("signature"),
    _text("withheld", nullable=True),  # why it is not served: `quarantined` or `rolled_back`; see registry.pointers
    _text("withheld_reason", nullable=True),
    # What was live when it was published, if not its parent; empty: nothing.
    _text("replaced", nullable=True),
    _bytes("blob", nullable=True),  # where the weights lie if they are too large for the row; `weights` is then empty
    UniqueConstraint("tenant", "id"),
    ForeignKeyConstraint(["tenant", "release"], ["releases.tenant", "releases.id"]),
    Index("versions_by_owner", "tenant", "subject", "domain"),
    sqlite_autoincrement=True,
)

Index(
    "versions_by_blob",
    versions.c.blob,
    sqlite_where=versions.c.blob.is_not(None),
    postgresql_where=versions.c.blob.is_not(None),
)

# Blobs whose versions were deleted, until they are too: see large_weights.
doomed_blobs = Table("doomed_blobs", metadata, Column("digest", LargeBinary, primary_key=True), _whole("at"))

# A row `live` also says what will be live once a release has arrived: see `arrivals`. From then on `version` is what is
# gone back to; empty: nothing.
pointers = Table(
    "pointers",
    metadata,
    *_key("tenant", "subject", "domain", "name"),  # name: live | previous
    _text("version"),
    _count("revision"),
    _text("coming", nullable=True),
    Column("arrival", Integer, nullable=True),
    sqlite_with_rowid=False,
)

# Releases of which only a part is there yet: for everybody else they do not exist. At most one of each tenant.
arrivals = Table(
    "arrivals",
    metadata,
    Column("number", _ROW_ID, primary_key=True, autoincrement=True),  # never given twice: pointers keep it
    _text("tenant"),
    _text("release"),
    _flag("given_up"),
    _whole("at"),  # when it was sent, or sent again
    _whole("batches"),  # that were written: whoever waits sees that it lives
    # What the newest was when it began: `seq` of versions and of tombstones, and `id` of the history of pointers.
    _whole("versions"),
    _whole("purges"),
    _whole("moves"),
    UniqueConstraint("tenant"),
    sqlite_autoincrement=True,
)

# Append-only. `version` is None where the pointer was erased by a reset. See `moves`.
pointer_history = Table(
    "pointer_history",
    metadata,
    _row_id(),
    _text("tenant"),
    _text("subject"),
    _text("domain"),
    _text("name"),  # live | previous, or `release` where `version` names one
    _text("old_version", nullable=True),
    _text("version", nullable=True),
    _whole("at"),
    _text("reason"),
    _text("actor"),
    _whole("place", nullable=True),  # in the order of entries, if that is not the id
    Index("pointer_history_by_owner", "tenant", "subject", "domain"),
)

# Signing keys whose signatures no longer count, whatever the key files say.
withdrawn_keys = Table("withdrawn_keys", metadata, *_key("key_id"), _whole("at"), _text("reason"), _text("actor"))

# --- audit ------------------------------------------------------------------------------------------------------------

# Append-only: triggers of the migration refuse everything but an INSERT. The tenant "" is the installation.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    _whole("at"),
    _text("actor"),
    _text("action"),
    _text("object"),
    _text("reason"),
    _text("details"),  # canonical JSON
    _bytes("previous"),
    _bytes("hash"),
    Index("audit_entries_by_object", "tenant", "object", "seq"),
    sqlite_with_rowid=False,
)

# The row that appending writers of a chain queue at.
audit_heads = Table("audit_heads", metadata, *_key("tenant"), _whole("seq"), _bytes("hash"), sqlite_with_rowid=False)

# --- rollouts ---------------------------------------------------------------------------------------------------------

# `release` holds the candidate's versions, for all owners that the slots name; none for a setting.
rollouts = Table(
    "rollouts",
    metadata,
    *_key("tenant", "id"),
    _text("kind"),
    _text("candidate"),
    _text("release", nullable=True),
    Column("strength", Double, nullable=True),
    _text("owners"),  # JSON
    _text("plan"),  # JSON
    _bytes("salt"),
    _text("state"),
    _whole("step"),
    _number("share"),
    _whole("fence"),  # whoever got a live version with a later `seq` than this has moved on, and takes no part
    _whole("revision"),
    _text("verdict"),
    _text("reason"),
    _text("actor"),
    _whole("created_at"),
    _whole("moved_at"),
    Index("rollouts_by_time", "tenant", "created_at", "id"),
)

# Of rollouts that are running or held, and nothing else: what `resolve` looks at.
rollout_slots = Table(
    "rollout_slots",
    metadata,
    *_key("tenant", "slot", "domain"),  # slot: user | domain | setting
    _text("rollout"),
    sqlite_with_rowid=False,
)

# One row per person who takes part, while it runs.
rollout_members = Table(
    "rollout_members",
    metadata,
    *_key("tenant", "subject", "rollout"),
    _whole("step"),
    _text("arm"),
    _whole("requests"),
    _whole("slow"),
    _whole("fallback"),
    _whole("failed"),
    _whole("answers"),
    _number("success"),
    _flag("complained"),
    Index("rollout_members_by_rollout", "tenant", "rollout"),
    sqlite_with_rowid=False,
)

# Sufficient statistics. The metric `enrolled` counts people who were served at all.
rollout_tallies = Table(
    "rollout_tallies",
    metadata,
    *_key("tenant", "rollout"),
    Column("step", BigInteger, primary_key=True),
    *_key("arm", "metric"),
    _whole("people"),
    _number("total"),
    Index("rollout_tallies_by_rollout", "rollout", "step"),
    sqlite_with_rowid=False,
)

# Of the installation, since a global model is everybody's: what the transactions of every tenant need of the rollout of
# one. At most one row; see `global_trials`.
global_trials = Table(
    "global_trials",
    metadata,
    *_key("rollout"),
    _text("candidate"),
    _text("base"),  # the model that was live when it began
    _bytes("salt"),
    _text("plan"),  # JSON
    _text("state"),
    _whole("step"),
    _number("share"),
    _whole("moved_at"),
)

# Global models that were trained and are live for nobody yet. `passage`: what writes adapters of `base` in their basis.
staged_models = Table(
    "staged_models",
    metadata,
    *_key("digest"),
    _text("base", nullable=True),
    _bytes("passage", nullable=True),  # JSON
    _whole("at"),
    _text("reason"),
    _text("actor"),
)

# Append-only.
rollout_history = Table(
    "rollout_history",
    metadata,
    _row_id(),
    _text("tenant"),
    _text("rollout"),
    _text("state"),
    _whole("step"),
    _text("verdict"),
    _whole("at"),
    _text("reason"),
    _text("actor"),
    Index("rollout_history_by_rollout", "tenant", "rollout"),
)
