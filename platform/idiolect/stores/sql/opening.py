"""From a URL to a database at the newest schema."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from idiolect.errors import ConfigurationError
from idiolect.stores.sql.engine import Database, prepare_postgres, prepare_sqlite
from idiolect.stores.sql.failures import DRIVER_ERRORS, is_locked, translated
from idiolect.stores.sql.upgrading import upgrade

_POSTGRES_NAMES = ("postgres", "postgresql", "postgresql+psycopg")
_POSTGRES_DEFAULTS = {"connect_timeout": 10, "application_name": "idiolect"}  # where the URL does not say otherwise


def open_database(url: str, lock_timeout_s: float) -> Database:
    """At the newest schema. Raises as `connect`."""
    database = connect(url, lock_timeout_s)
    try:
        upgrade(database)
    except BaseException:
        database.close()
        raise
    database.rest()
    return database


def connect(url: str, lock_timeout_s: float) -> Database:
    """Raises ConfigurationError for a URL, file or server that can't work, UnavailableError for one that can't now."""
    parsed = _parsed(url)
    engine = _sqlite(parsed, lock_timeout_s) if parsed.drivername == "sqlite" else _postgres(parsed, lock_timeout_s)
    database = Database(engine, _shown(parsed), lock_timeout_s)
    try:
        if database.is_sqlite:
            _use_write_ahead_log(database, lock_timeout_s)
    except BaseException:
        engine.dispose()
        raise
    return database


def _shown(url: URL) -> str:
    """How messages name the database: never with its password, which may also be in the query."""
    if url.drivername == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "IDIOLECT_DATABASE_URL is not a database URL.", mend="Use sqlite:///FILE or postgresql://USER@HOST/NAME."
        ) from error
    if parsed.drivername in _POSTGRES_NAMES:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigurationError(
            f"databases of the kind {parsed.drivername!r} are not supported.",
            mend="Use sqlite:///FILE or postgresql://USER@HOST/NAME.",
        )
    if parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("the SQLite URL names no file.", mend="Use sqlite:///FILE.")
    return parsed.set(drivername="sqlite")


def _sqlite(url: URL, lock_timeout_s: float) -> Engine:
    assert url.database is not None
    if not url.database.startswith("file:"):
        _make_private_file(Path(url.database))
    engine = create_engine(url, hide_parameters=True, pool_size=8, max_overflow=32, pool_timeout=lock_timeout_s)
    prepare_sqlite(engine, lock_timeout_s)
    return engine


def _make_private_file(path: Path) -> None:
    """Only its owner may read what people wrote; SQLite gives its log files the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigurationError(
            f"the database {path} can't be opened: {error.strerror}.", mend="Make its folder exist and be writable."
        ) from error


def _postgres(url: URL, lock_timeout_s: float) -> Engine:
    try:
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=4,  # idle; what is asked often has connections of its own (`prepared_postgres`)
            max_overflow=36,
            pool_timeout=lock_timeout_s,
            connect_args={name: value for name, value in _POSTGRES_DEFAULTS.items() if name not in url.query},
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise ConfigurationError(
            "Postgres needs the package psycopg.", mend="Install it: pip install 'idiolect[postgres]'."
        ) from error
    prepare_postgres(engine, lock_timeout_s)
    return engine


def _use_write_ahead_log(database: Database, patience_s: float) -> None:
    """Kept in the file, so set once. The switch needs the file alone for a moment, and SQLite does not wait for it."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with database.engine.connect() as connection:
                raw = connection.connection.dbapi_connection
                assert raw is not None
                raw.execute("PRAGMA journal_mode=WAL").fetchone()
                return
        except DRIVER_ERRORS as error:
            if not is_locked(error) or time.monotonic() > deadline:
                raise translated(error, database.where) from error
            time.sleep(0.02)


def fold_log(path: Path) -> None:
    """Into a SQLite file what a process that crashed left in the log beside it. Nothing, if it can't be opened."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
