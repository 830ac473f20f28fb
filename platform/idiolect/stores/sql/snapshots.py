"""All rows of all tables, as one moment saw them, out of one database and into another of either kind.

Values are JSON's, with bytes as base64: what a table holds is the same on SQLite and Postgres, so a backup of the one
is restored into the other.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from alembic import command
from sqlalchemy import Connection, LargeBinary, MetaData, Table, delete, func, inspect, select, text

from idiolect.errors import ConfigurationError
from idiolect.recovery import LoggedChange, Recovered
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import CHUNK, take_time
from idiolect.stores.sql.key_binding import bind
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.recovering import recover
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.upgrading import VERSION_TABLE, alembic_config, known_revisions, revision_of

Row = Sequence[Any]
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`counters`: the last number that each self-numbering table has given. `rows` reads a table's, once."""

    revision: str
    columns: Mapping[str, Sequence[str]]
    counters: Mapping[str, int]
    rows: Callable[[str], Iterable[Row]]


class Snapshots(Part):
    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Consistent, while others write."""
        with self._database.reading(ALL_TENANTS) as connection:
            tables = {table.name: table for table in schema.metadata.sorted_tables}
            yield Snapshot(
                revision_of(connection) or "",
                {name: table.columns.keys() for name, table in tables.items()},
                _counters(connection),
                lambda name: _rows(connection, tables[name]),
            )

    def load(self, snapshot: Snapshot, changes: Iterable[LoggedChange], *, without_keys: bool = False) -> Recovered:
        """Into this database, which must be empty, with the `changes` that came after it made again: in one
        transaction, so that nobody ever sees the one without the other.

        Raises ConfigurationError if other keys opened the snapshot than these, unless it is to come `without_keys`."""
        by_tenant: dict[str, list[LoggedChange]] = defaultdict(list)
        for change in changes:
            by_tenant[change.entry.tenant].append(change)
        where = self._database.where
        keys = self._database.keys
        recovered = self._database.write(
            ALL_TENANTS, lambda connection: _load(connection, keys, snapshot, by_tenant, where, without_keys)
        )
        self._database.learn_sizes()
        return recovered


def _load(
    connection: Connection,
    keys: Callable[[], SubjectKeys],
    snapshot: Snapshot,
    changes: Mapping[str, Sequence[LoggedChange]],
    where: str,
    without_keys: bool,
) -> Recovered:
    take_time(connection)
    # Written by whoever opens the database; the snapshot has its own.
    connection.execute(delete(schema.agreements))
    connection.execute(delete(schema.key_store))
    for table in schema.metadata.sorted_tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise ConfigurationError(
                f"the database {where} is not empty: it has a row in {table.name}.", mend="Restore into an empty one."
            )
    tables = _tables_as_of(connection, snapshot.revision)
    for name, table in tables.items():
        _insert(connection, table, snapshot.columns[name], snapshot.rows(name))
        _set_counter(connection, table, snapshot.counters.get(name, 0))
    command.upgrade(alembic_config(connection), "head")
    bind(connection, keys(), instead=without_keys)
    return recover(connection, keys, changes)


def _tables_as_of(connection: Connection, revision: str) -> Mapping[str, Table]:
    """The schema is taken back to that of the snapshot; parents come before their children."""
    if revision not in known_revisions():
        raise ConfigurationError(
            f"the backup was made by a newer Idiolect (schema {revision[:40]!r}).", mend="Restore it with that version."
        )
    command.downgrade(alembic_config(connection), revision)
    found = MetaData()
    found.reflect(connection, only=[name for name in inspect(connection).get_table_names() if _is_ours(name)])
    return {table.name: table for table in found.sorted_tables}


def _is_ours(name: str) -> bool:
    return name != VERSION_TABLE and not name.startswith("sqlite_")


def _insert(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[Row]) -> None:
    binary = {column.name for column in table.columns if isinstance(column.type, LargeBinary)}
    pending = iter(rows)
    while chunk := list(islice(pending, CHUNK)):
        connection.execute(table.insert(), [_decoded(columns, row, binary) for row in chunk])


def _decoded(columns: Sequence[str], row: Row, binary: set[str]) -> dict[str, Any]:
    return {
        name: base64.b64decode(value, validate=True) if name in binary and value is not None else value
        for name, value in zip(columns, row, strict=True)
    }


def _rows(connection: Connection, table: Table) -> Iterator[Row]:
    streamed = connection.execution_options(stream_results=True).execute(select(table)).yield_per(_PAGE)
    for row in streamed:
        yield [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in row]


def _counters(connection: Connection) -> dict[str, int]:
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text("SELECT name, seq FROM sqlite_sequence"))
        return {row.name: row.seq for row in rows if row.name in schema.metadata.tables}
    found = {}
    for table in schema.metadata.sorted_tables:
        sequence = _sequence(connection, table)
        if sequence is not None:
            last = connection.execute(text(f"SELECT last_value, is_called FROM {sequence}")).one()  # noqa: S608  a catalogue's
            found[table.name] = last.last_value if last.is_called else 0
    return found


def _sequence(connection: Connection, table: Table) -> str | None:
    """Of a table that numbers its own rows on Postgres."""
    keys = [column.name for column in table.primary_key.columns]
    if len(keys) != 1:
        return None
    query = text("SELECT pg_get_serial_sequence(:table, :key)")
    name: str | None = connection.scalar(query, {"table": table.name, "key": keys[0]})
    return name


def _set_counter(connection: Connection, table: Table, counter: int) -> None:
    """Never under a number that a row has, whatever the snapshot says."""
    if connection.dialect.name == "sqlite":
        if counter:
            connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
            values = {"name": table.name, "seq": counter}
            connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"), values)
        return
    sequence = _sequence(connection, table)
    if sequence is None:
        return
    (key,) = table.primary_key.columns
    newest = max(counter, connection.scalar(select(func.max(key))) or 0)
    if newest:
        connection.execute(text("SELECT setval(:sequence, :newest)"), {"sequence": sequence, "newest": newest})
