"""Room for what is sealed under a person's key, and for the retention of texts. What is there is sealed afterwards."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_SEALED = ("texts", "inferences", "signals", "comparisons", "versions")


def upgrade() -> None:
    for table in _SEALED:
        op.add_column(table, sa.Column("sealed", sa.LargeBinary, nullable=True))
    op.create_table(
        "key_store",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("sealed_at", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_key_store"),
    )
    op.add_column("tenants", sa.Column("retention_days", sa.BigInteger, nullable=True))
    op.add_column("comparisons", sa.Column("shown_at", sa.BigInteger, nullable=True))
    op.execute("UPDATE comparisons SET shown_at = received_at WHERE dataset IS NULL")
    op.create_index("comparisons_by_showing", "comparisons", ["tenant", "shown_at"])
    op.create_index("inferences_by_time", "inferences", ["tenant", "created_at"])
    op.create_index("signals_by_inference", "signals", ["tenant", "inference"])


def downgrade() -> None:
    """Only for an empty database, as a restore does: what is sealed would be lost."""
    op.drop_index("signals_by_inference", "signals")
    op.drop_index("inferences_by_time", "inferences")
    op.drop_index("comparisons_by_showing", "comparisons")
    op.drop_column("comparisons", "shown_at")
    op.drop_column("tenants", "retention_days")
    op.drop_table("key_store")
    for table in _SEALED:
        op.drop_column(table, "sealed")
