"""Rollouts of a global model: the one that runs, and models that wait for one. Both are the installation's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "global_trials",
        _text("rollout"),
        _text("candidate"),
        _text("base"),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        _text("plan"),
        _text("state"),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("moved_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("rollout", name="pk_global_trials"),
    )
    op.create_table(
        "staged_models",
        _text("digest"),
        _text("base", nullable=True),
        sa.Column("passage", sa.LargeBinary, nullable=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        _text("reason"),
        _text("actor"),
        sa.PrimaryKeyConstraint("digest", name="pk_staged_models"),
    )
    op.create_index("rollout_tallies_by_rollout", "rollout_tallies", ["rollout", "step"])


def downgrade() -> None:
    """A rollout that runs ends: everybody is on the live model again."""
    op.drop_index("rollout_tallies_by_rollout", "rollout_tallies")
    op.drop_table("staged_models")
    op.drop_table("global_trials")
