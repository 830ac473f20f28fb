"""A mark of each tenant, which is another one after every write that takes a published version out of service.

Whoever remembers what was resolved compares it, instead of looking at versions and releases again. The database itself
changes it, so that no write can forget to. It is drawn, not counted: a database that was restored from an older copy
must not come to a number once more.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

# What `resolve` asks of a live version, beside its owner's pointer. A withdrawn key may have signed for every tenant.
_OF_TENANT = {"versions": "withheld", "releases": "revoked_at"}
_OF_ALL = "withdrawn_keys"

_SQLITE_MARK = "UPDATE tenants SET served_mark = lower(hex(randomblob(16)))"
# Once for a statement, however many rows it changed. A transaction of all tenants' has named none: it marks them all.
_POSTGRES_MARK = """CREATE FUNCTION idiolect_mark_served() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE mine text := NULLIF(current_setting('idiolect.tenant', true), '');
BEGIN
    UPDATE tenants SET served_mark = gen_random_uuid()::text WHERE mine IS NULL OR name = mine;
    RETURN NULL;
END $$"""


def _sqlite() -> list[str]:
    made = [
        f"""CREATE TRIGGER {table}_mark_served AFTER UPDATE OF {column} ON {table}
        WHEN OLD.{column} IS NOT NEW.{column} BEGIN {_SQLITE_MARK} WHERE name = NEW.tenant; END"""
        for table, column in _OF_TENANT.items()
    ]
    for happens in ("INSERT", "DELETE"):
        made.append(
            f"CREATE TRIGGER {_OF_ALL}_mark_served_{happens.lower()} AFTER {happens} ON {_OF_ALL} "
            f"BEGIN {_SQLITE_MARK}; END"
        )
    return made


def _postgres() -> list[str]:
    events = {table: f"UPDATE OF {column}" for table, column in _OF_TENANT.items()} | {_OF_ALL: "INSERT OR DELETE"}
    return [_POSTGRES_MARK] + [
        f"CREATE TRIGGER {table}_mark_served AFTER {event} ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION idiolect_mark_served()"
        for table, event in events.items()
    ]


def upgrade() -> None:
    op.add_column("tenants", sa.Column("served_mark", sa.Text, nullable=False, server_default=""))
    for statement in _sqlite() if op.get_bind().dialect.name == "sqlite" else _postgres():
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for trigger in (
            *(f"{table}_mark_served" for table in _OF_TENANT),
            *(f"{_OF_ALL}_mark_served_{happens}" for happens in ("insert", "delete")),
        ):
            op.execute(f"DROP TRIGGER {trigger}")
    else:
        op.execute("DROP FUNCTION idiolect_mark_served() CASCADE")  # its triggers go with it
    op.drop_column("tenants", "served_mark")
