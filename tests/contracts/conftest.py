"""Every test that takes `store` runs against a SQLite file and against a real Postgres."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from postgres_server import PostgresServer

from idiolect.stores.sql import SqlStore, open_store, schema
from people_keys import open_with_keys


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_database(postgres: PostgresServer) -> str:
    """One for all tests, emptied after each: making one takes several times as long."""
    url = postgres.create_database("contracts")
    open_store(url).close()
    return url


def _empty(url: str) -> None:
    """`url`: of the superuser."""
    tables = ", ".join(schema.metadata.tables)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # the audit log refuses to be emptied
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY".encode())


@pytest.fixture
def postgres_url(postgres: PostgresServer, postgres_database: str) -> Iterator[str]:
    yield postgres_database
    _empty(postgres.admin_url("contracts"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "ready.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of its own, at the newest schema."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "idiolect.db")
        yield f"sqlite:///{tmp_path / 'idiolect.db'}"
        return
    yield request.getfixturevalue("postgres_url")


@pytest.fixture
def store(store_url: str) -> Iterator[SqlStore]:
    opened = open_with_keys(store_url)
    yield opened
    opened.close()
