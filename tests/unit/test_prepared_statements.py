"""Prepared statements give what SQLAlchemy gives, row for row."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    create_engine,
    select,
)
from sqlalchemy.dialects import sqlite

from idiolect.stores.sql.prepared import MAX_ROWS, Prepared, PreparedConnection, PreparedPool

THINGS = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", Text),
    Column("raw", LargeBinary),
    Column("good", Boolean),
)
KEEP = sqlite.insert(THINGS).on_conflict_do_nothing()
NAMED = select(THINGS.c.id, THINGS.c.good, THINGS.c.raw).where(THINGS.c.name == bindparam("name")).order_by(THINGS.c.id)
FIRST = select(THINGS.c.name.label("called")).order_by(THINGS.c.id).limit(1)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    THINGS.metadata.create_all(made)
    yield made
    made.dispose()


def row(number: int, name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": number, "name": name, "raw": bytes([number % 256]), "good": number % 2 == 0, **fields}


@pytest.mark.parametrize("count", [1, 2, 7, MAX_ROWS - 1, MAX_ROWS, MAX_ROWS + 1, 3 * MAX_ROWS + 5])
def test_rows_go_in_and_come_out_as_sqlalchemy_has_them(engine: Engine, count: int) -> None:
    pool = PreparedPool(engine)
    rows = [row(number, raw=None if number == 3 else bytes([number % 256])) for number in range(count)]
    with pool.transaction("BEGIN IMMEDIATE") as connection:
        connection.execute(KEEP, rows)
        connection.execute(KEEP, rows[:2])
    with pool.transaction("BEGIN IMMEDIATE") as connection, engine.connect() as plain:
        found = connection.execute(NAMED, {"name": "a"})
        assert found == [tuple(one) for one in plain.execute(NAMED, {"name": "a"})]
        assert len(found) == count
        assert found.first().good is True
        assert connection.scalar(FIRST) == "a"
        assert connection.execute(FIRST).one().called == "a"
        assert connection.execute(NAMED, {"name": "nobody"}).one_or_none() is None
    pool.close()


@given(st.integers(0, 5 * MAX_ROWS))
def test_the_statements_of_an_insert_hold_every_row_once_and_in_order(count: int) -> None:
    prepared = Prepared(KEEP, sqlite.dialect())
    statements = list(prepared.inserts([row(number) for number in range(count)]))
    assert [values[index] for _, values in statements for index in range(0, len(values), 4)] == list(range(count))
    assert all(sql.count("?") == len(values) for sql, values in statements)


def test_a_failed_transaction_leaves_nothing_and_its_connection_is_not_used_again(engine: Engine) -> None:
    pool = PreparedPool(engine)
    with pool.transaction("BEGIN IMMEDIATE") as first:
        pass

    def insert_twice() -> None:
        with pool.transaction("BEGIN IMMEDIATE") as connection:
            connection.execute(KEEP, [row(1)])
            connection.raw.execute("INSERT INTO things (id) VALUES (1)")

    with pytest.raises(sqlite3.IntegrityError):
        insert_twice()
    with pool.transaction("BEGIN IMMEDIATE") as second:
        assert second.scalar(FIRST) is None
    assert second is not first
    with pytest.raises(sqlite3.ProgrammingError):
        first.raw.execute("SELECT 1")
    pool.close()


def test_a_missing_parameter_is_no_null(engine: Engine) -> None:
    pool = PreparedPool(engine)
    with pytest.raises(KeyError), pool.transaction("") as connection:
        connection.execute(NAMED, {})
    pool.close()


def test_threads_never_share_a_connection_and_a_closed_pool_opens_new_ones(engine: Engine) -> None:
    pool = PreparedPool(engine)
    meeting, seen = threading.Barrier(4), []

    def use() -> None:
        with pool.transaction("BEGIN") as connection:
            seen.append(connection)
            meeting.wait(10)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(connection) for connection in seen}) == 4
    pool.close()
    with pool.transaction("BEGIN") as later:
        assert later.scalar(FIRST) is None
    assert later not in seen
    pool.close()


def test_a_pool_is_closed_while_others_take_its_connections(engine: Engine) -> None:
    pool = PreparedPool(engine)

    class Meanwhile:
        """As it is closed, another thread takes the connection that is left."""

        def close(self) -> None:
            pool.take()

    for raw in (engine.raw_connection(), Meanwhile()):
        pool.give_back(PreparedConnection(raw, engine.dialect, {}))
    pool.close()
    with pool.transaction("") as connection:
        assert connection.scalar(FIRST) is None
    pool.close()
