"""Releases that arrive in batches, and pointers that say what they move to when all of one is there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from idiolect.stores.sql.tenant_wall import raising

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# What is there of a release that never arrived goes; what has arrived becomes the pointers' own.
_BACK = (
    "DELETE FROM pointers WHERE arrival IN (SELECT number FROM arrivals) AND version = ''",
    "UPDATE pointers SET coming = NULL, arrival = NULL WHERE arrival IN (SELECT number FROM arrivals)",
    "INSERT INTO doomed_blobs (digest, at) SELECT DISTINCT blob, 0 FROM versions WHERE blob IS NOT NULL "
    "AND (tenant, release) IN (SELECT tenant, release FROM arrivals) ON CONFLICT DO NOTHING",
    "DELETE FROM versions WHERE (tenant, release) IN (SELECT tenant, release FROM arrivals)",
    "DELETE FROM releases WHERE (tenant, id) IN (SELECT tenant, release FROM arrivals)",
    "INSERT INTO pointers (tenant, subject, domain, name, version, revision) "
    "SELECT tenant, subject, domain, 'previous', version, 1 FROM pointers WHERE coming IS NOT NULL AND version <> '' "
    "ON CONFLICT (tenant, subject, domain, name) "
    "DO UPDATE SET version = excluded.version, revision = pointers.revision + 1",
    "UPDATE pointers SET version = coming, revision = revision + 1 WHERE coming IS NOT NULL",
)


def upgrade() -> None:
    op.add_column("pointers", sa.Column("coming", sa.Text, nullable=True))
    op.add_column("pointers", sa.Column("arrival", sa.Integer, nullable=True))
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "arrivals",
        sa.Column("number", number, primary_key=True, autoincrement=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("release", sa.Text, nullable=False),
        sa.Column("given_up", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("at", "batches", "versions", "purges", "moves")),
        sa.PrimaryKeyConstraint("number", name="pk_arrivals"),
        sa.UniqueConstraint("tenant", name="uq_arrivals_tenant"),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name != "sqlite":
        for statement in raising("arrivals"):
            op.execute(statement)


def downgrade() -> None:
    for statement in _BACK:
        op.execute(statement)
    op.drop_table("arrivals")
    op.drop_column("pointers", "arrival")
    op.drop_column("pointers", "coming")
