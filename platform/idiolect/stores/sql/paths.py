"""How constant statements reach the database: the transactions of `prepared` on each kind of it."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Engine

from idiolect.stores.sql.prepared import PreparedPool, Transaction
from idiolect.stores.sql.tenant_wall import Behind


class Paths(Protocol):
    def read(self, whom: Behind, single: bool) -> Transaction:
        """`single`: for one statement."""
        ...

    def write(self, whom: Behind, *, lasting: bool) -> Transaction: ...

    def lasting_statements(self, whom: Behind) -> Transaction:
        """Each of which is a transaction of its own."""
        ...

    def close(self) -> None: ...


class SqlitePaths:
    """How much a commit waits for is a setting of a connection, so there is a pool for each."""

    def __init__(self, engine: Engine) -> None:
        self._points = PreparedPool(engine)
        # What one statement changes is noted down in case it fails halfway: over 64 KB, which eight rows reach that lie
        # in different places of an index, in a new file each time, unless it is said that memory will do.
        self._hasty = PreparedPool(engine, "synchronous=NORMAL", "temp_store=MEMORY")
        self._lasting = PreparedPool(engine, "synchronous=FULL")
        # They wait for no writer, and leave it to others to move the log into the file, which waits for the disk.
        self._impatient = PreparedPool(
            engine, "synchronous=NORMAL", "temp_store=MEMORY", "busy_timeout=0", "wal_autocheckpoint=0"
        )

    def read(self, _whom: Behind, single: bool) -> Transaction:
        return self._points.transaction("" if single else "BEGIN")

    def write(self, _whom: Behind, *, lasting: bool) -> Transaction:
        return (self._lasting if lasting else self._hasty).transaction("BEGIN IMMEDIATE")

    def lasting_statements(self, _whom: Behind) -> Transaction:
        return self._lasting.transaction("")

    def impatient(self) -> Transaction:
        return self._impatient.transaction("BEGIN IMMEDIATE")

    def close(self) -> None:
        for pool in (self._points, self._hasty, self._lasting, self._impatient):
            pool.close()


def postgres_paths(engine: Engine) -> Paths:
    """Only here is psycopg needed, which is an extra."""
    from idiolect.stores.sql.prepared_postgres import PostgresPaths

    return PostgresPaths(engine)
