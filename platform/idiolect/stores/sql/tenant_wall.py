"""The second wall between tenants, on Postgres: row-level security behind what every query says anyway.

A transaction says whose rows it is about before it reads any; the database then shows it no others and lets it write no
others, also where a query forgot its tenant. A transaction that said nothing sees nothing. The wall is forced, so it
binds the tables' owner too; it can't bind a superuser, nor a role with BYPASSRLS (`idiolect doctor` tells).

It guards against our own mistakes. Whoever can send any SQL as this user can say any tenant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Protocol, TypeAlias

from sqlalchemy import Connection, text


class Reach(Enum):
    ALL_TENANTS = "all"  # the installation's own work: migrations, backups, queues of every tenant, keys that log in
    NO_TENANT = ""  # only what belongs to no tenant, such as the live global model


ALL_TENANTS, NO_TENANT = Reach.ALL_TENANTS, Reach.NO_TENANT
Behind: TypeAlias = str | Reach  # a tenant's name, or one of the above


class HasInfo(Protocol):
    @property
    def info(self) -> dict[Any, Any]: ...


SAY = "SELECT set_config('idiolect.tenant', %s, true), set_config('idiolect.reach', %s, true)"
_KEY = "idiolect_behind"
_SAYS_ITSELF = "idiolect_says_itself"
_BINDS = "SELECT NOT (rolsuper OR rolbypassrls) FROM pg_roles WHERE rolname = current_user"

# A setting that another transaction of the connection made reads as '' afterwards, which is also the audit chain of the
# installation: hence NULLIF.
TENANT = "NULLIF(current_setting('idiolect.tenant', true), '')"
_EVERYTHING = "current_setting('idiolect.reach', true) = 'all'"


def stand_behind(connection: Connection, whom: Behind) -> None:
    """Until the transaction ends, or this is called again."""
    if connection.dialect.name == "sqlite":
        return
    if not connection.info.get(_SAYS_ITSELF):
        connection.exec_driver_sql(SAY, said(whom))
    remember(connection, whom)


def said(whom: Behind) -> tuple[str, str]:
    """The settings that a transaction makes: tenant and reach."""
    return ("", whom.value) if isinstance(whom, Reach) else (whom, "")


def remember(connection: HasInfo, whom: Behind) -> None:
    """That the transaction has said so."""
    connection.info[_KEY] = whom


def behind(connection: HasInfo) -> Behind:
    """Whom its next statement is about."""
    whom: Behind = connection.info[_KEY]
    return whom


def says_itself(connection: HasInfo) -> None:
    """From now on this connection tells the server by itself, before its next statement, whom that is about."""
    connection.info[_SAYS_ITSELF] = True


@contextmanager
def beyond_the_wall(connection: Connection) -> Iterator[None]:
    """For a statement of a tenant's transaction that has to look at all tenants. After an error nothing is restored,
    since it ends the transaction."""
    if connection.dialect.name == "sqlite":
        yield
        return
    before = behind(connection)
    stand_behind(connection, ALL_TENANTS)
    yield
    stand_behind(connection, before)


def is_bound(connection: Connection) -> bool:
    """Whether this user is one that the wall can bind."""
    return bool(connection.scalar(text(_BINDS)))


def raising(table: str, mine: str = f"tenant = {TENANT}") -> Sequence[str]:
    """What a migration executes on Postgres to put a new `table` behind the wall. `mine`: which rows are the tenant's.

    Migrations that have run depend on it: to change it, add another function and a migration.
    """
    return (
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY of_the_tenant ON {table} USING ({mine})",
        f"CREATE POLICY of_the_installation ON {table} USING ({_EVERYTHING})",
    )


def razing(table: str) -> Sequence[str]:
    return (
        f"DROP POLICY of_the_installation ON {table}",
        f"DROP POLICY of_the_tenant ON {table}",
        f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
    )
