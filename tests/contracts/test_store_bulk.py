"""Many rows in few statements, on SQLite and Postgres alike."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from idiolect.stores.sql import SqlStore, arriving, bulk, schema
from idiolect.stores.sql.bulk import insert_columns
from idiolect.stores.sql.engine import among
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect_services.bench.registry_crowd import gather
from people_keys import open_with_keys

_P = schema.pointers.c


def columns(count: int, version: str = "v", first: int = 0) -> dict[str, list[Any]]:
    return {
        "tenant": ["acme"] * count,
        "subject": [f"p{number:05}" for number in range(first, first + count)],
        "domain": [""] * count,
        "name": ["live"] * count,
        "version": [f"{version}{number}" for number in range(first, first + count)],
        "revision": [1] * count,
    }


def insert(store: SqlStore, of: dict[str, list[Any]], **how: Any) -> int:
    return store._database.write(
        ALL_TENANTS, lambda connection: insert_columns(connection, schema.pointers, of, **how)()
    )


def stored(store: SqlStore) -> list[tuple[str, str, int]]:
    with store._database.reading(ALL_TENANTS) as connection:
        query = select(_P.subject, _P.version, _P.revision).order_by(_P.subject)
        return [tuple(row) for row in connection.execute(query)]


@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 5_001])
def test_every_row_arrives_whatever_their_number(store: SqlStore, count: int) -> None:
    assert insert(store, columns(count)) == count
    assert stored(store) == [(f"p{number:05}", f"v{number}", 1) for number in range(count)]


def test_a_row_that_is_there_is_changed_as_it_is_told(store: SqlStore) -> None:
    insert(store, columns(3))
    changes = {"version": "excluded.version", "revision": "pointers.revision + 1"}
    assert insert(store, columns(4, "w", first=1), instead=changes) == 4
    assert [row[1:] for row in stored(store)] == [("v0", 1), ("w1", 2), ("w2", 2), ("w3", 1), ("w4", 1)]


def test_rows_whose_key_is_taken_are_left_out_and_not_counted(store: SqlStore) -> None:
    insert(store, columns(3))
    assert insert(store, columns(4, "w", first=1), unless_taken=True) == 2
    assert [row[1] for row in stored(store)] == ["v0", "v1", "v2", "w3", "w4"]


def test_a_row_that_fails_leaves_none(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_MOST_ROWS", 2)
    broken = columns(5)
    broken["version"][4] = None
    with pytest.raises(Exception, match=r"moved in the meantime"):
        insert(store, broken)
    assert stored(store) == []


@pytest.mark.parametrize("before", [0, 40])
def test_rows_that_come_in_order_leave_no_half_empty_pages_on_postgres(postgres_url: str, before: int) -> None:
    """Also among rows that were there, where it splits a page into two halves."""
    store = open_with_keys(postgres_url)
    insert(store, columns(before, "x", first=10_000) | {"subject": [f"p{n * 300:05}a" for n in range(before)]})
    insert(store, columns(12_000))
    with store._database.engine.begin() as connection:
        filled = _pages(connection)
        connection.execute(text("REINDEX INDEX pk_pointers"))
        densest = _pages(connection)
    store.close()
    assert filled <= 1.1 * densest


def test_nor_does_a_release_that_comes_in_batches(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "BATCH", 200)
    monkeypatch.setattr(arriving, "_SPAN", 2_000)
    store = open_with_keys(postgres_url)
    insert(store, columns(100) | {"tenant": ["zz"] * 100})  # comes later in every index
    crowd = gather(store, 6_000)
    crowd.publish(crowd.people)
    with store._database.engine.begin() as connection:
        filled = _pages(connection)
        connection.execute(text("REINDEX INDEX pk_pointers"))
        densest = _pages(connection)
    store.close()
    assert filled <= 1.1 * densest


@pytest.mark.parametrize("names", [[], ["a"], ["a", 'qu"ote', "sla\\sh", "ümlaut", "☃", ""]])
def test_who_is_among_many_is_found_by_name(store: SqlStore, names: list[str]) -> None:
    everybody = ["", "a", "b", 'qu"ote', "sla\\sh", "ümlaut", "☃"]
    insert(store, columns(len(everybody)) | {"subject": everybody})
    with store._database.reading(ALL_TENANTS) as connection:
        found = connection.scalars(select(_P.subject).where(among(_P.subject, names)))
        assert sorted(found) == sorted(names)


def _pages(connection: Connection) -> int:
    return connection.scalar(text("SELECT pg_relation_size('pk_pointers') / 8192")) or 0
