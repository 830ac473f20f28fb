"""Which key signed a release is said once; the index of owners no longer repeats the order, which the rows have.

On Postgres a version's generation and a pointer's revision take four bytes. What was published before keeps its key.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_COUNTS = (("versions", "generation"), ("pointers", "revision"))
_OWN_AGAIN = """
UPDATE versions SET key_id = (SELECT r.key_id FROM releases r WHERE r.tenant = versions.tenant AND r.id = release)
WHERE key_id = ''
"""


def upgrade() -> None:
    op.add_column("releases", sa.Column("key_id", sa.Text, nullable=True))
    _change(sa.Integer, "tenant", "subject", "domain")


def downgrade() -> None:
    op.execute(_OWN_AGAIN)
    op.drop_column("releases", "key_id")
    _change(sa.BigInteger, "tenant", "subject", "domain", "seq")


def _change(counts: type[sa.Integer], *owner: str) -> None:
    op.drop_index("versions_by_owner", "versions")
    op.create_index("versions_by_owner", "versions", list(owner))
    if op.get_bind().dialect.name != "sqlite":
        op.execute("ALTER INDEX versions_by_owner SET (fillfactor = 100)")
        for table, column in _COUNTS:
            op.alter_column(table, column, type_=counts())  # which builds the indices anew
