"""The order in which a data set lists its items, which an evaluation of position bias needs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dataset_items", sa.Column("position", sa.Integer, nullable=True))


def downgrade() -> None:
    op.drop_column("dataset_items", "position")
