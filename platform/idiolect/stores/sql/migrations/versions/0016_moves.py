"""A release's publishing is one entry of the history, instead of one for each of its people. Older entries stay."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_IN_ORDER = """
CREATE TABLE moves_in_order AS
SELECT coalesce(place, id) AS place, tenant, subject, domain, name, old_version, version, at, reason, actor
FROM pointer_history WHERE name <> 'release'
UNION ALL
SELECT r.moves, v.tenant, v.subject, v.domain, 'live', nullif(coalesce(v.replaced, v.parent), ''), v.id,
       r.published_at, r.reason, r.actor
FROM versions v JOIN releases r ON r.tenant = v.tenant AND r.id = v.release WHERE r.moves IS NOT NULL
"""
_BACK = """
INSERT INTO pointer_history (tenant, subject, domain, name, old_version, version, at, reason, actor)
SELECT tenant, subject, domain, name, old_version, version, at, reason, actor FROM moves_in_order ORDER BY place
"""


def upgrade() -> None:
    op.add_column("releases", sa.Column("moves", sa.BigInteger, nullable=True))
    op.add_column("versions", sa.Column("replaced", sa.Text, nullable=True))
    op.add_column("pointer_history", sa.Column("place", sa.BigInteger, nullable=True))


def downgrade() -> None:
    """Each entry becomes a row of its own again, in the same order."""
    op.execute(_IN_ORDER)
    op.execute("DELETE FROM pointer_history")
    op.execute(_BACK)
    op.drop_table("moves_in_order")
    op.drop_column("pointer_history", "place")
    op.drop_column("versions", "replaced")
    op.drop_column("releases", "moves")
