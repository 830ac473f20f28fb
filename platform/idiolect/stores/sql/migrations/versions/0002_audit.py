"""The audit log, versions that are withheld, and signing keys that were withdrawn.

The database itself refuses to change or delete an entry. On SQLite a REPLACE deletes without asking the trigger for
deletes, so an entry that exists can't be inserted again either.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SQLITE = (
    """CREATE TRIGGER audit_entries_never_change BEFORE UPDATE ON audit_entries
    BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END""",
    """CREATE TRIGGER audit_entries_never_go BEFORE DELETE ON audit_entries
    BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END""",
    """CREATE TRIGGER audit_entries_are_never_replaced BEFORE INSERT ON audit_entries
    WHEN EXISTS (SELECT 1 FROM audit_entries WHERE tenant = NEW.tenant AND seq = NEW.seq)
    BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END""",
)
_POSTGRES = (
    """CREATE FUNCTION idiolect_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'audit entries are append-only'; END $$""",
    """CREATE TRIGGER audit_entries_never_change BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION idiolect_append_only()""",
    """CREATE TRIGGER audit_entries_never_go BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION idiolect_append_only()""",
)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _whole(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        _text("tenant"),
        _whole("seq"),
        _whole("at"),
        _text("actor"),
        _text("action"),
        _text("object"),
        _text("reason"),
        _text("details"),
        _bytes("previous"),
        _bytes("hash"),
        sa.PrimaryKeyConstraint("tenant", "seq", name="pk_audit_entries"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "audit_heads",
        _text("tenant"),
        _whole("seq"),
        _bytes("hash"),
        sa.PrimaryKeyConstraint("tenant", name="pk_audit_heads"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "withdrawn_keys",
        _text("key_id"),
        _whole("at"),
        _text("reason"),
        _text("actor"),
        sa.PrimaryKeyConstraint("key_id", name="pk_withdrawn_keys"),
    )
    op.add_column("versions", _text("withheld", nullable=True))
    op.add_column("versions", _text("withheld_reason", nullable=True))
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRES:
        op.execute(statement)


def downgrade() -> None:
    """The audit log is lost: verify it and keep a copy first."""
    op.drop_column("versions", "withheld_reason")
    op.drop_column("versions", "withheld")
    op.drop_table("withdrawn_keys")
    op.drop_table("audit_heads")
    op.drop_table("audit_entries")  # its triggers go with it
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION idiolect_append_only()")
