"""Weights that are too large for a row: which blob holds them, and blobs that are to be deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("blob", sa.LargeBinary, nullable=True))
    named = sa.text("blob IS NOT NULL")
    op.create_index("versions_by_blob", "versions", ["blob"], sqlite_where=named, postgresql_where=named)
    op.create_table(
        "doomed_blobs",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_doomed_blobs"),
    )


def downgrade() -> None:
    """Versions with weights in blobs are not served by what came before."""
    op.drop_table("doomed_blobs")
    op.drop_index("versions_by_blob", "versions")
    op.drop_column("versions", "blob")
