"""What kind of thing an item was an answer to: nothing was said of those that are there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("items", sa.Column("task", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("items", "task")
