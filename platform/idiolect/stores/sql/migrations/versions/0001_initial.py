"""The first schema.

A migration never imports `schema`: it must keep meaning what it meant when it was written. A test compares the two.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_FEEDBACK_ONLY: dict[str, Any] = {
    "sqlite_where": sa.text("dataset IS NULL"),
    "postgresql_where": sa.text("dataset IS NULL"),
}


def _row_id(name: str) -> sa.Column[int]:
    return sa.Column(name, _ROW_ID, autoincrement=True, nullable=False)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _whole(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


def upgrade() -> None:
    op.create_table(
        "comparisons",
        _row_id("id"),
        _text("tenant"),
        _whole("dataset", nullable=True),
        _text("subject"),
        _whole("generation"),
        _whole("chosen"),
        _whole("rejected"),
        _number("weight"),
        _text("source"),
        _flag("shared"),
        _whole("occurred_at", nullable=True),
        _whole("received_at"),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        sqlite_autoincrement=True,
    )
    op.create_index("comparisons_by_chosen", "comparisons", ["chosen"], **_FEEDBACK_ONLY)
    op.create_index("comparisons_by_dataset", "comparisons", ["tenant", "dataset"])
    op.create_index("comparisons_by_rejected", "comparisons", ["rejected"], **_FEEDBACK_ONLY)
    op.create_index("comparisons_by_subject", "comparisons", ["tenant", "subject", "received_at"])
    op.create_table(
        "dataset_items",
        sa.Column("dataset", _ROW_ID, autoincrement=False, nullable=False),
        sa.Column("item", _ROW_ID, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("dataset", "item", name="pk_dataset_items"),
        sqlite_with_rowid=False,
    )
    op.create_index("dataset_items_by_item", "dataset_items", ["item"])
    op.create_table(
        "datasets",
        _row_id("id"),
        _text("tenant"),
        _text("name"),
        _text("digest"),
        _flag("public"),
        _flag("opt_in"),
        _text("counts"),
        _whole("imported_at"),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
        sa.UniqueConstraint("tenant", "name", name="uq_datasets_tenant_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "evaluation_pairs",
        _row_id("id"),
        _text("tenant"),
        _whole("dataset"),
        _text("part"),
        _text("subject"),
        _whole("chosen"),
        _whole("rejected"),
        _number("weight"),
        sa.PrimaryKeyConstraint("id", name="pk_evaluation_pairs"),
    )
    op.create_index("evaluation_pairs_by_dataset", "evaluation_pairs", ["tenant", "dataset"])
    op.create_index("evaluation_pairs_by_subject", "evaluation_pairs", ["tenant", "subject"])
    op.create_table(
        "global_pointer",
        _row_id("id"),
        _text("digest"),
        _whole("at"),
        _text("reason"),
        _text("actor"),
        sa.PrimaryKeyConstraint("id", name="pk_global_pointer"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "inference_texts",
        _text("tenant"),
        _bytes("digest"),
        _text("inference"),
        sa.PrimaryKeyConstraint("tenant", "digest", "inference", name="pk_inference_texts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "inferences",
        _text("tenant"),
        _text("id"),
        _text("subject", nullable=True),
        _text("domain", nullable=True),
        _bytes("query"),
        _bytes("documents"),
        _text("shown"),
        _whole("created_at"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_inferences"),
    )
    op.create_index("inferences_by_subject", "inferences", ["tenant", "subject"])
    op.create_table(
        "items",
        _row_id("id"),
        _text("tenant"),
        _bytes("key"),
        _text("domain"),
        _bytes("prompt"),
        _bytes("text"),
        _text("language"),
        sa.PrimaryKeyConstraint("id", name="pk_items"),
        sa.UniqueConstraint("tenant", "key", name="uq_items_tenant_key"),
    )
    op.create_index("items_by_domain", "items", ["tenant", "domain"])
    op.create_index("items_by_prompt", "items", ["tenant", "prompt"])
    op.create_index("items_by_text", "items", ["tenant", "text"])
    op.create_table(
        "ledger_accounts",
        _text("tenant"),
        _text("unit"),
        _text("subject"),
        _number("spent_rho"),
        _whole("runs"),
        sa.PrimaryKeyConstraint("tenant", "unit", "subject", name="pk_ledger_accounts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_charges",
        _text("tenant"),
        _text("subject"),
        _text("run"),
        sa.PrimaryKeyConstraint("tenant", "subject", "run", name="pk_ledger_charges"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_runs",
        _text("tenant"),
        _text("id"),
        _text("unit"),
        _text("purpose"),
        _number("noise_multiplier"),
        _whole("steps"),
        _whole("accounts"),
        _whole("reserved_at"),
        _whole("settled_at", nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_ledger_runs"),
    )
    op.create_index("ledger_runs_by_time", "ledger_runs", ["tenant", "reserved_at", "id"])
    op.create_table(
        "pointer_history",
        _row_id("id"),
        _text("tenant"),
        _text("subject"),
        _text("domain"),
        _text("name"),
        _text("old_version", nullable=True),
        _text("version", nullable=True),
        _whole("at"),
        _text("reason"),
        _text("actor"),
        sa.PrimaryKeyConstraint("id", name="pk_pointer_history"),
    )
    op.create_index("pointer_history_by_owner", "pointer_history", ["tenant", "subject", "domain"])
    op.create_table(
        "pointers",
        _text("tenant"),
        _text("subject"),
        _text("domain"),
        _text("name"),
        _text("version"),
        _whole("revision"),
        sa.PrimaryKeyConstraint("tenant", "subject", "domain", "name", name="pk_pointers"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ratings",
        _row_id("id"),
        _text("tenant"),
        _whole("dataset"),
        _text("subject"),
        _whole("item"),
        _number("value"),
        _whole("occurred_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_ratings"),
    )
    op.create_index("ratings_by_dataset", "ratings", ["tenant", "dataset"])
    op.create_index("ratings_by_subject", "ratings", ["tenant", "subject"])
    op.create_table(
        "releases",
        _text("tenant"),
        _text("id"),
        _text("scope"),
        _text("global_digest"),
        _text("run"),
        _text("template"),
        _bytes("content"),
        _whole("versions"),
        _text("fenced"),
        _whole("published_at"),
        _text("reason"),
        _text("actor"),
        _whole("revoked_at", nullable=True),
        _text("revoke_reason", nullable=True),
        _text("revoke_actor", nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_releases"),
    )
    op.create_index("releases_by_run", "releases", ["tenant", "run"])
    op.create_index("releases_by_time", "releases", ["tenant", "published_at", "id"])
    op.create_table(
        "resets",
        _text("tenant"),
        _text("id"),
        _text("subject"),
        _text("record"),
        _whole("completed_at"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_resets"),
    )
    op.create_table(
        "signals",
        _text("tenant"),
        _text("id"),
        _text("subject"),
        _text("inference"),
        _text("kind"),
        _text("value"),
        _whole("occurred_at"),
        _whole("received_at"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_signals"),
    )
    op.create_index("signals_by_subject", "signals", ["tenant", "subject"])
    op.create_table(
        "subjects",
        _text("tenant"),
        _text("subject"),
        _flag("opted_in"),
        _flag("paused"),
        _number("strength"),
        _whole("generation"),
        _whole("revision"),
        _text("policy_version", nullable=True),
        _whole("updated_at"),
        _whole("trained_until", nullable=True),
        sa.PrimaryKeyConstraint("tenant", "subject", name="pk_subjects"),
        sqlite_with_rowid=False,
    )
    op.create_table("tenants", _text("name"), _whole("created_at"), sa.PrimaryKeyConstraint("name", name="pk_tenants"))
    op.create_table(
        "texts",
        _text("tenant"),
        _bytes("digest"),
        _bytes("body"),
        sa.PrimaryKeyConstraint("tenant", "digest", name="pk_texts"),
    )
    op.create_table(
        "tombstones",
        _text("tenant"),
        _text("subject"),
        _whole("generation"),
        _whole("at"),
        _whole("upto"),
        sa.PrimaryKeyConstraint("tenant", "subject", name="pk_tombstones"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "training_queue",
        _text("tenant"),
        _text("subject"),
        _whole("new_comparisons"),
        sa.PrimaryKeyConstraint("tenant", "subject", name="pk_training_queue"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_keys",
        _text("id"),
        _text("tenant"),
        _text("scopes"),
        _bytes("secret_hash"),
        _whole("created_at"),
        _whole("revoked_at", nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_api_keys_tenants"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("secret_hash", name="uq_api_keys_secret_hash"),
    )
    op.create_table(
        "versions",
        _row_id("seq"),
        _text("tenant"),
        _text("id"),
        _text("release"),
        _text("subject"),
        _text("domain"),
        _whole("generation"),
        _text("parent", nullable=True),
        _bytes("weights"),
        _bytes("weights_sha256"),
        _text("evaluation", nullable=True),
        _text("key_id"),
        _bytes("signature"),
        sa.ForeignKeyConstraint(["tenant", "release"], ["releases.tenant", "releases.id"], name="fk_versions_releases"),
        sa.PrimaryKeyConstraint("seq", name="pk_versions"),
        sa.UniqueConstraint("tenant", "id", name="uq_versions_tenant_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("versions_by_owner", "versions", ["tenant", "subject", "domain", "seq"])
