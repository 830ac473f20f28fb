"""Rollouts: what is tried on a share of people, what came of it, and releases that nobody is served yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _whole(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _number(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=nullable)


def upgrade() -> None:
    op.add_column("releases", sa.Column("staged", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "rollouts",
        _text("tenant"),
        _text("id"),
        _text("kind"),
        _text("candidate"),
        _text("release", nullable=True),
        _number("strength", nullable=True),
        _text("owners"),
        _text("plan"),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        _text("state"),
        _whole("step"),
        _number("share"),
        _whole("fence"),
        _whole("revision"),
        _text("verdict"),
        _text("reason"),
        _text("actor"),
        _whole("created_at"),
        _whole("moved_at"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_rollouts"),
    )
    op.create_index("rollouts_by_time", "rollouts", ["tenant", "created_at", "id"])
    op.create_table(
        "rollout_slots",
        _text("tenant"),
        _text("slot"),
        _text("domain"),
        _text("rollout"),
        sa.PrimaryKeyConstraint("tenant", "slot", "domain", name="pk_rollout_slots"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollout_members",
        _text("tenant"),
        _text("subject"),
        _text("rollout"),
        _whole("step"),
        _text("arm"),
        _whole("requests"),
        _whole("slow"),
        _whole("fallback"),
        _whole("failed"),
        _whole("answers"),
        _number("success"),
        sa.Column("complained", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "subject", "rollout", name="pk_rollout_members"),
        sqlite_with_rowid=False,
    )
    op.create_index("rollout_members_by_rollout", "rollout_members", ["tenant", "rollout"])
    op.create_table(
        "rollout_tallies",
        _text("tenant"),
        _text("rollout"),
        _whole("step"),
        _text("arm"),
        _text("metric"),
        _whole("people"),
        _number("total"),
        sa.PrimaryKeyConstraint("tenant", "rollout", "step", "arm", "metric", name="pk_rollout_tallies"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollout_history",
        sa.Column("id", _ROW_ID, autoincrement=True, nullable=False),
        _text("tenant"),
        _text("rollout"),
        _text("state"),
        _whole("step"),
        _text("verdict"),
        _whole("at"),
        _text("reason"),
        _text("actor"),
        sa.PrimaryKeyConstraint("id", name="pk_rollout_history"),
    )
    op.create_index("rollout_history_by_rollout", "rollout_history", ["tenant", "rollout"])


def downgrade() -> None:
    """Releases that were staged become ordinary ones that nobody's pointer names."""
    for name in ("rollout_history", "rollout_tallies", "rollout_members", "rollout_slots", "rollouts"):
        op.drop_table(name)
    op.drop_column("releases", "staged")
