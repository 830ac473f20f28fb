"""Bringing a database to the newest schema, once, whoever starts first."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from idiolect.errors import ConfigurationError
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import Database, take_time
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT

# A name of our own: the database may be shared with another program that uses Alembic.
VERSION_TABLE = "idiolect_version"
_LOCK = 0x1D10_1EC7  # any number, the same in every process


def alembic_config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(database: Database) -> None:
    """In one transaction. Raises ConfigurationError for a database of a newer Idiolect, or of another program."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    known = known_revisions()
    with database.reading(NO_TENANT) as connection:
        if revision_of(connection) == head:
            return
    database.write(ALL_TENANTS, lambda connection: _upgrade(connection, known, database.where))


def known_revisions() -> set[str]:
    return {revision.revision for revision in ScriptDirectory.from_config(alembic_config()).walk_revisions()}


def _upgrade(connection: Connection, known: set[str], where: str) -> None:
    if connection.dialect.name != "sqlite":
        take_time(connection)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    revision = revision_of(connection)
    if revision is not None and revision not in known:
        raise ConfigurationError(
            f"the database {where} was written by a newer Idiolect (schema {revision}).",
            mend="Install that version, or use another database.",
        )
    if revision is None:
        _check_free(connection, where)
    command.upgrade(alembic_config(connection), "head")


def revision_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    query = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608  a constant
    return cast("str | None", connection.scalar(query))


def _check_free(connection: Connection, where: str) -> None:
    taken = sorted(set(inspect(connection).get_table_names()) & set(schema.metadata.tables))
    if taken:
        raise ConfigurationError(
            f"the database {where} belongs to another program: it has a table {taken[0]!r}.",
            mend="Use an empty database.",
        )
