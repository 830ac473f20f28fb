"""Point reads and small writes on Postgres: `prepared`, on `pipeline`.

SQLAlchemy takes a quarter of a millisecond of processor time for a look-up, more than the server does. Here nothing
travels before its answer is needed. The first question takes along what begins the transaction and says whose rows it
is about; what only writes goes out with the next question, or with the commit. So an error may come up later in its
transaction than the statement that caused it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Dialect, Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from idiolect.stores.sql.pipeline import Asked, Pipeline
from idiolect.stores.sql.prepared import (
    Compilable,
    Parameters,
    Prepared,
    PreparedConnection,
    PreparedPool,
    Rows,
    Transaction,
)
from idiolect.stores.sql.tenant_wall import SAY, Behind, behind, remember, said, says_itself

_ALONE = ""  # each journey is a transaction of its own
_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# As `engine.STANDSTILL_SECONDS`, where nothing is computed in between; less than others wait for a lock.
_WRITE = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 5000"
_HASTY_WRITE = f"{_WRITE}; SET LOCAL synchronous_commit = off"
MOST_WAITING = 64  # statements until they travel, whether an answer is needed or not

_GONE = ("57P", "08")  # SQLSTATEs of a server that shuts down or ends a connection, and of one that is out of reach
_OPEN = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


class PostgresPaths:
    def __init__(self, engine: Engine) -> None:
        self._pool = PostgresPool(engine)

    def read(self, whom: Behind, single: bool) -> Transaction:
        return self._pool.transaction(_ALONE if single else _SNAPSHOT, whom)

    def write(self, whom: Behind, *, lasting: bool) -> Transaction:
        return self._pool.transaction(_WRITE if lasting else _HASTY_WRITE, whom)

    def lasting_statements(self, whom: Behind) -> Transaction:
        return self._pool.transaction(_ALONE, whom)

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
        return PostgresConnection(raw, self._dialect, self._known, self._another)

    def _another(self) -> Any:
        """In the place of one that was lost. The other idle ones are as old."""
        self.close()
        self._engine.dispose()
        return self._made()


class PostgresConnection(PreparedConnection):
    """Its errors are SQLAlchemy's, so that they are understood as all others are."""

    def __init__(self, raw: Any, dialect: Dialect, known: dict[Any, Prepared], another: Callable[[], Any]) -> None:
        super().__init__(raw, dialect, known)
        says_itself(self)
        self._another = another
        self._pipeline = _pipeline_over(raw)
        self._words = _ALONE
        self._waiting: list[Asked] = []
        self._said: Behind | None = None
        self._arrived = False  # whether the server has answered anything in this transaction

    def begin(self, words: str, whom: Behind | None) -> None:
        assert whom is not None
        remember(self, whom)
        self._words, self._said, self._arrived = words, None, False
        self._waiting = [self._asked(one) for one in words.split("; ")] if words else []

    def execute(self, statement: Compilable, parameters: Parameters | Sequence[Parameters] | None = None) -> Rows:
        prepared = self._prepared(statement)
        if isinstance(parameters, Sequence):
            for sql, values in prepared.inserts(parameters):
                self._ask(sql, values)
            return Rows()
        asked = self._ask(prepared.sql, prepared.values(parameters or {}))
        return self._found(prepared, asked) if prepared.finds_rows else _Changed(asked, self._travel)

    def ahead(self, statement: Compilable, parameters: Parameters) -> Callable[[], Rows]:
        prepared = self._prepared(statement)
        asked = self._ask(prepared.sql, prepared.values(parameters))
        return lambda: self._found(prepared, asked)

    def _found(self, prepared: Prepared, asked: Asked) -> Rows:
        if asked.answer is None:
            self._travel()
        return prepared.rows(asked.answer)

    def exec_driver_sql(self, statement: str, values: Sequence[Any]) -> Any:
        asked = self._ask(statement, values)
        self._travel()
        return asked.answer

    def send(self) -> None:
        self._travel()

    def commit(self) -> None:
        """What only read is not waited for. What wrote is not sent along with the transaction's first question: if its
        connection turns out to be lost, it must be known that nothing was committed."""
        if self._said is None and not self._arrived:  # nothing was asked
            self._waiting.clear()
            return
        if not self._arrived or not self._words:
            self._travel()
        if not self._words:
            return
        commit = self._asked("COMMIT")
        if self._words == _SNAPSHOT:
            self._guarded(lambda: self._pipeline.post(commit))
        else:
            self._waiting.append(commit)
            self._travel()

    def undo(self) -> bool:
        """A connection that still waits for an answer is in nobody knows what state."""
        self._waiting.clear()
        with suppress(psycopg.Error):
            self._pipeline.settle()
            if self.raw.info.transaction_status in _OPEN:
                self._pipeline.run([self._asked("ROLLBACK")])
            return bool(self.raw.info.transaction_status == TransactionStatus.IDLE)
        return False

    def discard(self) -> None:
        """Without a word: whoever answers no longer would be waited for. The server undoes what was open."""
        self.raw.close()

    def _ask(self, sql: str, values: Sequence[Any]) -> Asked:
        """On the next journey."""
        asked = self._asked(sql, values)
        whom = behind(self)
        if whom != self._said:
            self._waiting.append(self._asked(SAY, said(whom)))
            self._said = whom
        self._waiting.append(asked)
        if len(self._waiting) >= MOST_WAITING:
            self._travel()
        return asked

    def _asked(self, sql: str, values: Sequence[Any] = ()) -> Asked:
        try:
            return self._pipeline.asked(sql, values)
        except psycopg.Error as error:  # no text of Postgres holds a NUL
            raise self._wrapped(error) from error

    def _travel(self) -> None:
        """The first journey tells whether a connection still stands. Of a server that was started anew none does, so
        everything that was asked in it is asked again on a new one."""
        asked, self._waiting = self._waiting, []
        if not self._words:
            self._said = None
        if not asked:
            return
        try:
            self._guarded(lambda: self._pipeline.run(asked))
        except DBAPIError as error:
            if self._arrived or not error.connection_invalidated:
                raise
            self.raw.close()
            self.raw = self._another()
            self._pipeline = _pipeline_over(self.raw)
            self._guarded(lambda: self._pipeline.run(asked))
        self._arrived = True

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except psycopg.Error as error:
            raise self._wrapped(error) from error

    def _wrapped(self, error: psycopg.Error) -> DBAPIError:
        # What the server said last may be read before it is noticed that nothing more will come.
        lost = bool(self.raw.closed) or (error.sqlstate or "").startswith(_GONE)
        return wrapped(error, lost=lost)


class _Changed(Rows):
    """Of what only writes: how many rows, known once it travelled."""

    def __init__(self, asked: Asked, travel: Callable[[], None]) -> None:
        super().__init__()
        self._asked = asked
        self._travel = travel

    @property
    def rowcount(self) -> int:  # type: ignore[override]
        if self._asked.answer is None:
            self._travel()
        assert self._asked.answer is not None
        return self._asked.answer.rowcount


def _pipeline_over(raw: Any) -> Pipeline:
    try:
        raw.autocommit = True  # transactions are begun in words
    except psycopg.Error as error:
        raise wrapped(error, lost=True) from error
    return Pipeline(raw)


def wrapped(error: psycopg.Error, *, lost: bool) -> DBAPIError:
    """As SQLAlchemy has it. `lost`: its connection is of no more use."""
    made = DBAPIError.instance(None, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=lost)
    assert isinstance(made, DBAPIError)
    return made
