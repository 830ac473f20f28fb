"""Many rows of one table in few statements.

SQLite takes an executemany at full speed. On Postgres that is one statement for each row, which costs ten times as much
as one statement that unfolds arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, text

from idiolect.stores.sql.engine import chunks, insert


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, counter: str = "") -> None:
    """All of `rows` name the same columns. With `counter`, a row whose key is there replaces it, and adds one to that
    column. No two of `rows` may have the same key then."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        _one_by_one(connection, table, rows, counter)
        return
    statement = _unfolding(connection, table, list(rows[0]), counter)
    for chunk in chunks(rows):
        connection.execute(text(statement), {name: [row[name] for row in chunk] for name in rows[0]})


def _one_by_one(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], counter: str) -> None:
    statement = insert(connection, table)
    if counter:
        keys = [column.name for column in table.primary_key.columns]
        taken = {name: statement.excluded[name] for name in rows[0] if name not in (*keys, counter)}
        counted = {counter: table.c[counter] + 1}
        statement = statement.on_conflict_do_update(index_elements=keys, set_=taken | counted)
    connection.execute(statement, list(rows))


def _unfolding(connection: Connection, table: Table, names: Sequence[str], counter: str) -> str:
    """Names are those of the schema, never a caller's."""
    arrays = ", ".join(f"CAST(:{name} AS {table.c[name].type.compile(connection.dialect)}[])" for name in names)
    statement = f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({arrays})"  # noqa: S608
    if not counter:
        return statement
    keys = [column.name for column in table.primary_key.columns]
    taken = [f"{name} = excluded.{name}" for name in names if name not in (*keys, counter)]
    counted = f"{counter} = {table.name}.{counter} + 1"
    return f"{statement} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join([*taken, counted])}"
