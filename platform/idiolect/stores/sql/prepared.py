"""Point reads and small writes, without what a general Core execution costs.

SQLAlchemy spends 150 microseconds around a look-up that SQLite answers in ten. Here a statement is compiled once and
handed to the driver from then on. What runs it looks like a `Connection` to whoever only executes and reads rows.
This is SQLite; `prepared_postgres` says what is different there.
"""

from __future__ import annotations

import re
from collections import deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection, Dialect, Engine, LargeBinary, PoolProxiedConnection, Select
from sqlalchemy.sql.base import ColumnCollection
from sqlalchemy.types import TypeEngine

if TYPE_CHECKING:
    from idiolect.stores.sql.tenant_wall import Behind

Parameters = Mapping[str, Any]
MAX_STATEMENTS = 256  # constants of modules, and the last few that were made for one use, which gain nothing by this
MAX_ROWS = 64  # of one INSERT

_VALUES = re.compile(r"\bVALUES (\([^()]*\))")  # of an INSERT: one row


class Compilable(Protocol):
    def compile(self, *, dialect: Dialect) -> Any: ...


class Rows(list[Any]):
    """The rows of a result, all read. Named as SQLAlchemy names them. `rowcount`: how many a statement changed."""

    rowcount = -1

    def one(self) -> Any:
        (row,) = self
        return row

    def one_or_none(self) -> Any:
        return self.one() if self else None

    def first(self) -> Any:
        return self[0] if self else None

    def all(self) -> Rows:
        return self


class Prepared:
    """One Core statement as the driver takes it. Parameters go in and rows come out through the columns' own types."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        required = {name: None for name, bind in compiled.binds.items() if bind.required}
        fixed = compiled.construct_expanded_state(required)  # with the values of an `in_` one by one
        self.sql = fixed.statement
        # The driver takes what the type of such a column says, which SQLAlchemy would wrap.
        raw = {name for name, bind in compiled.binds.items() if isinstance(bind.type, LargeBinary)}
        self._slots = [
            (name, name in required, fixed.parameters[name], None if name in raw else fixed.processors.get(name))
            for name in fixed.positiontup
        ]
        found = _VALUES.search(self.sql)
        self._tuple = "" if found is None else found[1]
        columns = statement.selected_columns if isinstance(statement, Select) else _returned(statement)
        self._columns = columns if len(columns) else None
        self.finds_rows = self._columns is not None
        self._dialect = dialect
        self._row: Any = None

    def values(self, parameters: Parameters) -> list[Any]:
        """In the driver's order. Raises KeyError for a parameter that is missing."""
        return [
            (parameters[name] if given else fixed) if bind is None else bind(parameters[name] if given else fixed)
            for name, given, fixed, bind in self._slots
        ]

    def inserts(self, parameters: Sequence[Parameters]) -> Iterator[tuple[str, list[Any]]]:
        """Few statements of many rows each. The driver gives up the interpreter's lock around every statement, and
        beside a busy thread it gets it back only milliseconds later. Sizes are powers of two, so that texts repeat."""
        start, size = 0, MAX_ROWS
        while start < len(parameters):
            while size > len(parameters) - start:
                size //= 2
            values = [value for one in parameters[start : start + size] for value in self.values(one)]
            yield self.sql.replace(self._tuple, ", ".join([self._tuple] * size), 1), values
            start += size

    def rows(self, done: Any) -> Rows:
        """What the driver's cursor found; for what is no SELECT, how many rows it changed."""
        if self._columns is None:
            changed = Rows()
            changed.rowcount = done.rowcount
            return changed
        if self._row is None:
            self._row = _row_maker(self._columns, self._dialect, [column[1] for column in done.description])
        return Rows(map(self._row, done.fetchall()))


def _row_maker(columns: ColumnCollection[str, Any], dialect: Dialect, codes: Sequence[Any]) -> Any:
    """`codes`: what the driver calls the types of what it gives, which decides what is left to do."""
    kind: Any = namedtuple("Row", list(columns.keys()), rename=True)  # type: ignore[misc]  # its fields are known only now
    processors = [_processor(column.type, dialect, code) for column, code in zip(columns, codes, strict=True)]
    needed = [(place, process) for place, process in enumerate(processors) if process is not None]
    return partial(_processed, kind._make, needed) if needed else kind._make


def _returned(statement: Any) -> Any:
    """What it says to return; nothing for plain SQL."""
    return getattr(statement, "exported_columns", ())


def _processor(kind: TypeEngine[Any], dialect: Dialect, code: Any) -> Any:
    """None where the driver gives what the column's type says: for bytes, SQLAlchemy would only copy them."""
    return None if isinstance(kind, LargeBinary) else kind.dialect_impl(dialect).result_processor(dialect, code)


def _processed(make: Any, needed: Sequence[tuple[int, Any]], values: Sequence[Any]) -> Any:
    row = list(values)
    for place, process in needed:
        row[place] = process(row[place])
    return make(row)


class PreparedConnection:
    """The part of a `Connection` that point reads and small writes use, straight on the driver."""

    def __init__(self, raw: Any, dialect: Dialect, known: dict[Any, Prepared]) -> None:
        self.raw = raw
        self.dialect = dialect
        self.info: dict[str, Any] = {}
        self._known = known
        self._begun = False

    def execute(self, statement: Compilable, parameters: Parameters | Sequence[Parameters] | None = None) -> Rows:
        """A list of parameters inserts all of them."""
        prepared = self._prepared(statement)
        if isinstance(parameters, Sequence):
            for sql, values in prepared.inserts(parameters):
                self._run(sql, values)
            return Rows()
        return prepared.rows(self._run(prepared.sql, prepared.values(parameters or {})))

    def ahead(self, statement: Compilable, parameters: Parameters) -> Callable[[], Rows]:
        """As the function of this name."""
        rows = self.execute(statement, parameters)
        return lambda: rows

    def exec_driver_sql(self, statement: str, parameters: Sequence[Any]) -> Any:
        """Gives the driver's cursor."""
        return self.raw.execute(statement, parameters)

    def scalar(self, statement: Compilable, parameters: Parameters | None = None) -> Any:
        row = self.execute(statement, parameters).first()
        return None if row is None else row[0]

    def scalars(self, statement: Compilable, parameters: Parameters | None = None) -> Rows:
        return Rows(row[0] for row in self.execute(statement, parameters))

    def begin(self, words: str, _whom: Behind | None) -> None:
        """Whom the transaction is about matters where there is a wall between tenants. No words: no transaction."""
        self._begun = bool(words)
        if words:
            self._say(words)

    def send(self) -> None:
        """Have everything done that was asked for: where it waits for its journey, it may still fail."""

    def commit(self) -> None:
        if self._begun:
            self._say("COMMIT")

    def undo(self) -> bool:
        """Roll back, and tell whether it may be used again. Here nobody knows what state it is in."""
        return False

    def discard(self) -> None:
        with suppress(Exception):
            self.raw.rollback()
        self.raw.close()

    def _say(self, words: str) -> None:
        self.raw.execute(words)

    def _run(self, sql: str, values: Sequence[Any]) -> Any:
        return self.raw.execute(sql, values)

    def _prepared(self, statement: Compilable) -> Prepared:
        prepared = self._known.get(statement)
        if prepared is None:
            prepared = Prepared(statement, self.dialect)
            if len(self._known) >= MAX_STATEMENTS:
                with suppress(KeyError, RuntimeError, StopIteration):  # another thread was faster
                    del self._known[next(iter(self._known))]
            self._known[statement] = prepared
        return prepared


def ahead(connection: Connection, statement: Any, parameters: Parameters) -> Callable[[], Any]:
    """Ask now, and call what this gives for what was found. What is asked in between makes one journey with it."""
    if isinstance(connection, PreparedConnection):
        return connection.ahead(statement, parameters)
    found = connection.execute(statement, parameters)
    return lambda: found


def together(connection: Connection, asked: Sequence[tuple[Any, Parameters]]) -> list[Any]:
    """What each of these statements finds, none of which needs to know what another one found."""
    found = [ahead(connection, *one) for one in asked]
    return [one() for one in found]


class Transaction:
    """A context manager written out, because one made of a generator costs as much as a short statement.

    Without `words` to begin with every statement is one by itself.
    """

    __slots__ = ("_connection", "_pool", "_whom", "_words")

    def __init__(self, pool: PreparedPool, words: str, whom: Behind | None = None) -> None:
        self._pool = pool
        self._words = words
        self._whom = whom
        self._connection: PreparedConnection | None = None

    def __enter__(self) -> PreparedConnection:
        connection = self._connection = self._pool.begun(self._words, self._whom)
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        connection = self._connection
        assert connection is not None
        if error is not None:
            self._undo(connection)
            return
        try:
            connection.commit()
        except BaseException:
            self._undo(connection)
            raise
        self._pool.give_back(connection)

    def _undo(self, connection: PreparedConnection) -> None:
        if connection.undo():
            self._pool.give_back(connection)
        else:
            connection.discard()


class PreparedPool:
    """Connections of their own, kept open between uses. Made like the engine's, so they have its settings.

    After an error a connection is closed unless it is known to be as it was.
    """

    most_idle = 40  # as many as the engine's own pool has at most

    def __init__(self, engine: Engine, *pragmas: str) -> None:
        self._engine = engine
        self._pragmas = pragmas
        self._idle: deque[PreparedConnection] = deque()
        self._known: dict[Any, Prepared] = {}

    def transaction(self, words: str, whom: Behind | None = None) -> Transaction:
        return Transaction(self, words, whom)

    def take(self) -> PreparedConnection:
        with suppress(IndexError):
            return self._idle.pop()
        return self._opened(self._made())

    def begun(self, words: str, whom: Behind | None) -> PreparedConnection:
        connection = self.take()
        try:
            connection.begin(words, whom)
        except BaseException:
            connection.discard()
            raise
        return connection

    def give_back(self, connection: PreparedConnection) -> None:
        if len(self._idle) < self.most_idle:
            self._idle.append(connection)
        else:
            connection.discard()

    def close(self) -> None:
        """Whoever comes later opens a new connection."""
        with suppress(IndexError):  # none is left, also where others take them meanwhile
            while True:
                self._idle.pop().raw.close()

    def _made(self) -> Any:
        """The driver's."""
        pooled = self._connected()
        raw: Any = pooled.driver_connection
        pooled.detach()
        return raw

    def _connected(self) -> PoolProxiedConnection:
        return self._engine.raw_connection()

    def _opened(self, raw: Any) -> PreparedConnection:
        for pragma in self._pragmas:
            raw.execute(f"PRAGMA {pragma}").fetchall()
        return PreparedConnection(raw, self._engine.dialect, self._known)
