"""What a tenant may use at most."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from idiolect.stores.sql.tenant_wall import raising

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "quotas",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("most", sa.BigInteger, nullable=False),
        sa.Column("day", sa.BigInteger, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_quotas"),
        sqlite_with_rowid=False,
    )
    opted_in = sa.text("opted_in")
    op.create_index("subjects_opted_in", "subjects", ["tenant"], sqlite_where=opted_in, postgresql_where=opted_in)
    if op.get_bind().dialect.name != "sqlite":
        for statement in raising("quotas"):
            op.execute(statement)


def downgrade() -> None:
    """What tenants were given is lost: they are unbounded again."""
    op.drop_index("subjects_opted_in", "subjects")
    op.drop_table("quotas")
