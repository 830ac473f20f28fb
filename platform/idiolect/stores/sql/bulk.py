"""Many rows of one table in few statements.

SQLite: many rows to a statement, straight to the driver, which gives up the interpreter's lock once for each statement;
so whoever prepares the next rows in another thread goes on meanwhile. On Postgres an executemany is one statement for
each row, which costs ten times as much as one statement that unfolds arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, TextClause, text
from sqlalchemy.dialects import postgresql

from idiolect.stores.sql.engine import CHUNK

T = TypeVar("T")
Columns = Mapping[str, Sequence[Any]]  # as the driver takes them, all of one length

_MOST_PARAMETERS = 32_766  # of one statement in SQLite
_MOST_ROWS = 1_000
_POSTGRES = postgresql.dialect()  # type: ignore[no-untyped-call]


def insert_columns(
    connection: Connection,
    table: Table,
    columns: Columns,
    *,
    instead: Mapping[str, str] | None = None,
    unless_taken: bool = False,
    spread: bool = False,
) -> Callable[[], int]:
    """Call what it gives for how many rows were inserted or changed: that is known once it travelled.

    With `instead`, columns of a row whose key is there are set to these expressions. No two rows may have the same key
    then. With `unless_taken`, a row is left out where one of its keys is there.
    `spread`: they are of more rows that come in two passes (see `in_two_passes`).
    """
    # Names and expressions are our own, never a caller's.
    statement = f"INSERT INTO {table.name} ({', '.join(columns)}) %s {_on_conflict(table, instead, unless_taken)}"
    if connection.dialect.name == "sqlite":
        done = _listed(connection, statement, columns)
    else:
        done = _unfolded(connection, _unfolding(table, tuple(columns), statement), columns, spread)
    return lambda: sum(one.rowcount for one in done)


def _on_conflict(table: Table, instead: Mapping[str, str] | None, unless_taken: bool) -> str:
    if unless_taken:
        return "ON CONFLICT DO NOTHING"
    if instead is None:
        return ""
    keys = ", ".join(column.name for column in table.primary_key.columns)
    return f"ON CONFLICT ({keys}) DO UPDATE SET {', '.join(f'{name} = {value}' for name, value in instead.items())}"


def _listed(connection: Connection, statement: str, columns: Columns) -> list[Any]:
    width = len(columns)
    size = min(_MOST_ROWS, _MOST_PARAMETERS // width)
    values = list(chain.from_iterable(zip(*columns.values(), strict=True)))
    one = f"({', '.join('?' * width)})"
    done = []
    for start in range(0, len(values), size * width):
        some = tuple(values[start : start + size * width])
        listed = statement % f"VALUES {', '.join([one] * (len(some) // width))}"
        done.append(connection.exec_driver_sql(listed, some))
    return done


@lru_cache(maxsize=64)
def _unfolding(table: Table, names: Sequence[str], statement: str) -> TextClause:
    kinds = {name: table.c[name].type.compile(_POSTGRES) for name in names}
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in kinds.items())
    return text(statement % f"SELECT * FROM unnest({arrays})")  # noqa: S608  as above


def _unfolded(connection: Connection, unfolding: TextClause, columns: Columns, spread: bool) -> list[Any]:
    count = len(next(iter(columns.values())))
    done = []
    for start in range(0, count, CHUNK):
        places = range(start, min(start + CHUNK, count))
        ordered = places if spread else in_two_passes(places)
        some = {name: [values[place] for place in ordered] for name, values in columns.items()}
        done.append(connection.execute(unfolding, some))
    return done


def in_two_passes(rows: Sequence[T]) -> list[T]:
    """Twenty of every 39 first, then those between them. Rows come in the order of an index, among others that are
    there. In one pass each full page of it would be halved, and its left half never be filled; the second pass fills
    that to 98%. See deploy/decisions/0030-full-pages.md."""
    places = sorted(range(len(rows)), key=lambda place: place % 39 % 2)
    return [rows[place] for place in places]
