"""What the weights of all people of a release begin with, stored once. What was sealed before keeps all of it.

On Postgres, no room is left in indices that a release fills from one end to the other: the next one fills them anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


_FILLED = ("pk_versions", "uq_versions_tenant_id", "versions_by_owner", "pk_pointers")


def upgrade() -> None:
    op.add_column("releases", sa.Column("weights_head", sa.LargeBinary, nullable=True))
    if op.get_bind().dialect.name != "sqlite":
        for index in _FILLED:
            op.execute(f"ALTER INDEX {index} SET (fillfactor = 100)")


def downgrade() -> None:
    """Only for an empty database, as a restore does: what is sealed without its head could not be read."""
    if op.get_bind().dialect.name != "sqlite":
        for index in _FILLED:
            op.execute(f"ALTER INDEX {index} RESET (fillfactor)")
    op.drop_column("releases", "weights_head")
