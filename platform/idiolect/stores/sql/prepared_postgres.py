"""Point reads and small writes on Postgres: `prepared`, on psycopg.

SQLAlchemy takes a quarter of a millisecond of processor time for a look-up, more than the server does. A transaction
begins and says whose rows it is about in one journey; psycopg prepares on the server what a connection often asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from sqlalchemy import Dialect, Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from idiolect.stores.sql.prepared import Prepared, PreparedConnection, PreparedPool, Transaction
from idiolect.stores.sql.tenant_wall import Behind, remember, said

_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN"
_HASTY_WRITE = "BEGIN; SET LOCAL synchronous_commit = off"
MAX_WALLS = 1_000  # tenants whose names a connection keeps quoted

_GONE = ("57P", "08")  # SQLSTATEs of a server that shuts down or ends a connection, and of one that is out of reach
_RESTS = (
    TransactionStatus.INTRANS,
    TransactionStatus.INERROR,
)  # it waits for the next statement, with an answer to all


class PostgresPaths:
    def __init__(self, engine: Engine) -> None:
        self._pool = PostgresPool(engine)

    def read(self, whom: Behind, _single: bool) -> Transaction:
        """Also a single statement needs a transaction, to say in it whose rows it is about."""
        return self._pool.transaction(_SNAPSHOT, whom)

    def write(self, whom: Behind, *, lasting: bool) -> Transaction:
        return self._pool.transaction(_WRITE if lasting else _HASTY_WRITE, whom)

    def close(self) -> None:
        self._pool.close()


class PostgresPool(PreparedPool):
    most_idle = 8  # a server has a hundred for everybody, unless it is told otherwise

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        # SQLAlchemy names parameters; rows of an INSERT can only be repeated where they stand in order.
        self._dialect: Dialect = type(engine.dialect)(paramstyle="format", dbapi=engine.dialect.dbapi)  # type: ignore[call-arg]

    def _connected(self) -> PoolProxiedConnection:
        try:
            return super()._connected()
        except psycopg.Error as error:  # of the first words to a new connection
            raise wrapped(error, lost=True) from error

    def _opened(self, raw: Any) -> PreparedConnection:
        try:
            raw.autocommit = True  # transactions are begun in words
        except psycopg.Error as error:
            raise wrapped(error, lost=True) from error
        return PostgresConnection(raw, self._dialect, self._known)


class PostgresConnection(PreparedConnection):
    """Its errors are SQLAlchemy's, so that they are understood as all others are."""

    def __init__(self, raw: Any, dialect: Dialect, known: dict[Any, Prepared]) -> None:
        super().__init__(raw, dialect, known)
        self._walls: dict[Behind, str] = {}

    def begin(self, words: str, _whom: Behind | None) -> None:
        assert _whom is not None
        self._say(f"{words}; {self._wall(_whom)}")
        remember(self, _whom)

    def _wall(self, whom: Behind) -> str:
        """Quoted by the driver, which takes longer than to look it up."""
        known = self._walls.get(whom)
        if known is None:
            tenant, reach = (self._quoted(one) for one in said(whom))
            known = f"SELECT set_config('idiolect.tenant', {tenant}, true), set_config('idiolect.reach', {reach}, true)"
            if len(self._walls) < MAX_WALLS:
                self._walls[whom] = known
        return known

    def exec_driver_sql(self, statement: str, values: Sequence[Any]) -> Any:
        return self._run(statement, values)

    def _quoted(self, text: str) -> str:
        try:
            return sql.quote(text, self.raw)
        except psycopg.Error as error:  # no text of Postgres holds a NUL
            raise self._wrapped(error) from error

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, DBAPIError) and error.connection_invalidated

    def undo(self) -> bool:
        """A connection that still waits for an answer is in nobody knows what state."""
        if self.raw.info.transaction_status not in _RESTS:
            return False
        with suppress(DBAPIError):
            self._say("ROLLBACK")
            return True
        return False

    def discard(self) -> None:
        """Without a word: whoever answers no longer would be waited for. The server undoes what was open."""
        self.raw.close()

    def _say(self, words: str) -> None:
        try:
            self.raw.execute(words, prepare=False)
        except psycopg.Error as error:
            raise self._wrapped(error) from error

    def _run(self, statement: str, values: Sequence[Any]) -> Any:
        try:
            return self.raw.execute(statement, values)
        except psycopg.Error as error:
            raise self._wrapped(error) from error

    def _wrapped(self, error: psycopg.Error) -> DBAPIError:
        # What the server said last may be read before it is noticed that nothing more will come.
        lost = bool(self.raw.closed) or (error.sqlstate or "").startswith(_GONE)
        return wrapped(error, lost=lost)


def wrapped(error: psycopg.Error, *, lost: bool) -> DBAPIError:
    """As SQLAlchemy has it. `lost`: its connection is of no more use."""
    made = DBAPIError.instance(None, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=lost)
    assert isinstance(made, DBAPIError)
    return made
