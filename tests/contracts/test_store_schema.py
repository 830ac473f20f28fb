"""Opening a database: from nothing, from several processes at once, from a newer version, from another program."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgres_server import PostgresServer
from sqlalchemy import text
from store_samples import TENANT, at, opt_in, tampering
from store_worker import Worker

from idiolect.errors import ConfigurationError
from idiolect.stores.sql import SqlStore, open_store, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.upgrading import VERSION_TABLE


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"empty_{abs(hash(tmp_path))}")


def execute(store: SqlStore, statement: str) -> None:
    with tampering(store) as connection:
        connection.execute(text(statement))


def test_the_migrations_build_exactly_the_tables_of_the_schema(store: SqlStore) -> None:
    with store._database.reading(ALL_TENANTS) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_opening_again_keeps_everything(store: SqlStore, store_url: str) -> None:
    opt_in(store, "ann")
    again = open_store(store_url)
    assert again.subject(TENANT, "ann").opted_in
    again.close()


def test_check_passes_and_leaves_nothing(store: SqlStore) -> None:
    store.check()
    with store._database.reading(ALL_TENANTS) as connection:
        assert connection.execute(schema.tenants.select()).all() == []


def test_threads_that_open_an_empty_database_at_once_all_succeed(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(open_store, [empty_url] * 4))
    stores[0].create_tenant(TENANT, at(0))
    for store in stores:
        store.check()
        assert list(store.retentions()) == [TENANT]
        store.close()


def test_processes_that_open_an_empty_database_at_once_all_succeed(empty_url: str) -> None:
    workers = [Worker(empty_url, "check", seed, open_first=False) for seed in range(4)]
    for worker in workers:
        worker.wait_until_ready()
    for worker in workers:
        worker.go()
    assert [worker.finish() for worker in workers] == [0] * 4


def test_a_database_of_a_newer_version_is_refused_and_left_alone(empty_url: str) -> None:
    store = open_store(empty_url)
    store.create_tenant(TENANT, at(0))
    execute(store, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    store.close()
    with pytest.raises(ConfigurationError, match=r"newer Idiolect \(schema 9999\)") as caught:
        open_store(empty_url)
    assert caught.value.mend


def test_a_database_of_another_program_is_refused_and_left_alone(empty_url: str) -> None:
    store = open_store(empty_url)
    execute(store, f"DROP TABLE {VERSION_TABLE}")
    store.close()
    with pytest.raises(ConfigurationError, match="another program"):
        open_store(empty_url)
