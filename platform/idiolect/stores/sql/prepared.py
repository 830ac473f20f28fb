"""Point reads and small writes on SQLite, without what a general Core execution costs.

SQLAlchemy spends 150 microseconds around a look-up that SQLite answers in ten. Here a statement is compiled once and
handed to the driver from then on. What runs it looks like a `Connection` to whoever only executes and reads rows, so
the same code serves Postgres through SQLAlchemy.
"""

from __future__ import annotations

from collections import deque, namedtuple
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from sqlalchemy import Dialect, Engine, LargeBinary, Select
from sqlalchemy.types import TypeEngine

Parameters = Mapping[str, Any]
MAX_STATEMENTS = 256  # all are constants of modules; a bound keeps a mistake from becoming a leak
MAX_ROWS = 64  # of one INSERT


class Compilable(Protocol):
    def compile(self, *, dialect: Dialect) -> Any: ...


class Rows(list[Any]):
    """The rows of a result, all read. Named as SQLAlchemy names them."""

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
        self.sql = str(compiled)
        fixed = compiled.params
        order: Sequence[str] = compiled.positiontup or ()
        self._slots = [
            (name, bind.required, fixed[name], _binder(bind.type, dialect))
            for name, bind in ((name, compiled.binds[name]) for name in order)
        ]
        self._tuple = f"({', '.join('?' * len(order))})"
        columns = statement.selected_columns if isinstance(statement, Select) else statement.exported_columns
        self._row = _row_maker(columns, dialect) if len(columns) else None

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

    def rows(self, found: Sequence[Sequence[Any]]) -> Rows:
        return Rows() if self._row is None else Rows(map(self._row, found))


def _row_maker(columns: Any, dialect: Dialect) -> Any:
    kind: Any = namedtuple("Row", list(columns.keys()))  # type: ignore[misc]  # its fields are known only now
    processors = [_processor(column.type, dialect) for column in columns]
    needed = [(place, process) for place, process in enumerate(processors) if process is not None]
    return partial(_processed, kind._make, needed) if needed else kind._make


def _binder(kind: TypeEngine[Any], dialect: Dialect) -> Any:
    """None where the driver takes what the column's type says: bytes, which SQLAlchemy would wrap."""
    return None if isinstance(kind, LargeBinary) else kind.dialect_impl(dialect).bind_processor(dialect)


def _processor(kind: TypeEngine[Any], dialect: Dialect) -> Any:
    """None where the driver gives what the column's type says: for bytes, SQLAlchemy would only copy them."""
    return None if isinstance(kind, LargeBinary) else kind.dialect_impl(dialect).result_processor(dialect, None)


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

    def execute(self, statement: Compilable, parameters: Parameters | Sequence[Parameters] | None = None) -> Rows:
        """A list of parameters inserts all of them."""
        prepared = self._prepared(statement)
        if isinstance(parameters, Sequence):
            for sql, values in prepared.inserts(parameters):
                self.raw.execute(sql, values)
            return Rows()
        return prepared.rows(self.raw.execute(prepared.sql, prepared.values(parameters or {})).fetchall())

    def exec_driver_sql(self, statement: str, parameters: Sequence[Any]) -> Any:
        """Gives the driver's cursor."""
        return self.raw.execute(statement, parameters)

    def scalar(self, statement: Compilable, parameters: Parameters | None = None) -> Any:
        row = self.execute(statement, parameters).first()
        return None if row is None else row[0]

    def commit(self) -> None:
        self.raw.execute("COMMIT")

    def discard(self) -> None:
        with suppress(Exception):
            self.raw.rollback()
        self.raw.close()

    def _prepared(self, statement: Compilable) -> Prepared:
        prepared = self._known.get(statement)
        if prepared is None:
            prepared = Prepared(statement, self.dialect)
            if len(self._known) < MAX_STATEMENTS:
                self._known[statement] = prepared
        return prepared


class Transaction:
    """A context manager written out, because one made of a generator costs as much as a short statement.

    Without a `begin` every statement is one by itself.
    """

    __slots__ = ("_begin", "_connection", "_pool")

    def __init__(self, pool: PreparedPool, begin: str) -> None:
        self._pool = pool
        self._begin = begin
        self._connection: PreparedConnection | None = None

    def __enter__(self) -> PreparedConnection:
        connection = self._connection = self._pool.take()
        if self._begin:
            try:
                connection.raw.execute(self._begin)
            except BaseException:
                connection.discard()
                raise
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        connection = self._connection
        assert connection is not None
        try:
            if error is None and self._begin:
                connection.commit()
        except BaseException:
            connection.discard()
            raise
        if error is None:
            self._pool.give_back(connection)
        else:
            connection.discard()


class PreparedPool:
    """Connections of their own, kept open between uses. Made like the engine's, so they have its settings.

    After an error a connection is closed rather than kept: nobody knows what state it is in.
    """

    def __init__(self, engine: Engine, *pragmas: str) -> None:
        self._engine = engine
        self._pragmas = pragmas
        self._idle: deque[PreparedConnection] = deque()
        self._known: dict[Any, Prepared] = {}

    def transaction(self, begin: str) -> Transaction:
        return Transaction(self, begin)

    def take(self) -> PreparedConnection:
        with suppress(IndexError):
            return self._idle.pop()
        pooled = self._engine.raw_connection()
        raw: Any = pooled.driver_connection
        pooled.detach()
        for pragma in self._pragmas:
            raw.execute(f"PRAGMA {pragma}").fetchall()
        return PreparedConnection(raw, self._engine.dialect, self._known)

    def give_back(self, connection: PreparedConnection) -> None:
        self._idle.append(connection)

    def close(self) -> None:
        """Whoever comes later opens a new connection."""
        while self._idle:
            self._idle.pop().raw.close()
