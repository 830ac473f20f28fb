"""Tombstones in the order of their commits, and who follows them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Tombstones of before are 0: no server that runs from now on holds anything so old.
    op.add_column("tombstones", sa.Column("seq", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("tombstones_by_seq", "tombstones", ["seq"])
    op.create_table(
        "replicas",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_replicas"),
    )


def downgrade() -> None:
    op.drop_table("replicas")
    op.drop_index("tombstones_by_seq", "tombstones")
    op.drop_column("tombstones", "seq")
