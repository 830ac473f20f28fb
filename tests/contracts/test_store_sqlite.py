"""What only a SQLite file can do wrong."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text
from store_samples import OPTED_IN, TENANT, at, dataset, opt_in, pairs, publish_user, shown, signal

from idiolect.errors import ConfigurationError, IdiolectError, UnavailableError
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import SqlStore, open_store
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from people_keys import keys_beside, open_with_keys

NEEDLE = "a text that only Ann ever wrote"
SCOPES = ("adapters", "signals:chat")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "idiolect.db"


@pytest.fixture
def sqlite_store(path: Path) -> Iterator[SqlStore]:
    opened = open_with_keys(f"sqlite:///{path}", lock_timeout_s=0.3)
    yield opened
    opened.close()


def pragma(store: SqlStore, name: str) -> object:
    with store._database.engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def test_the_file_is_durable_and_forgetful(sqlite_store: SqlStore) -> None:
    assert pragma(sqlite_store, "journal_mode") == "wal"
    assert pragma(sqlite_store, "synchronous") == 2  # FULL
    assert pragma(sqlite_store, "secure_delete") == 1
    assert pragma(sqlite_store, "foreign_keys") == 1


@pytest.mark.parametrize("kind", ["small write", "write at once"])
def test_what_is_written_all_the_time_notes_down_its_statements_in_memory(sqlite_store: SqlStore, kind: str) -> None:
    database, found = sqlite_store._database, []

    def work(connection: Connection) -> None:
        found.append(connection.exec_driver_sql("PRAGMA temp_store", ()).fetchone()[0])

    if kind == "small write":
        database.small_write(ALL_TENANTS, work)
    else:
        database.write_at_once(work)
    assert found == [2]  # 2: MEMORY


def test_only_the_owner_can_read_the_files(sqlite_store: SqlStore, path: Path) -> None:
    opt_in(sqlite_store, "ann")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path / 'new' / 'home' / 'idiolect.db'}").close()
    assert (tmp_path / "new" / "home" / "idiolect.db").exists()


def test_erased_bytes_are_gone_from_the_files(sqlite_store: SqlStore, path: Path) -> None:
    opt_in(sqlite_store, "ann")
    inference = shown(sqlite_store, texts=(NEEDLE, "a", "b"))
    sqlite_store.add_feedback(TENANT, "ann", signal("s1", inference, (0, 1), value=NEEDLE), at(1))
    publish_user(sqlite_store, "v1")
    with sqlite_store._database.reading(ALL_TENANTS) as connection:
        tables = ("texts", "inferences", "signals", "comparisons", "versions")
        sealed = {row[0] for name in tables for row in connection.execute(text(f"SELECT sealed FROM {name}"))}
    ids = {
        key.id for key in keys_beside(f"sqlite:///{path}").find(TENANT, {("ann", scope) for scope in SCOPES}).values()
    }
    assert len(ids) == 2

    def found() -> set[bytes]:
        content = b"".join(file.read_bytes() for file in path.parent.glob("idiolect.db*"))
        return {what for what in (NEEDLE.encode(), *sealed, *ids) if what in content}

    assert found() == sealed | ids
    sqlite_store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(2))
    assert found() == set()


def test_a_reset_does_not_fail_because_a_reader_keeps_the_log_open(sqlite_store: SqlStore) -> None:
    opt_in(sqlite_store, "ann")
    with sqlite_store._database.reading(ALL_TENANTS) as connection:
        connection.exec_driver_sql("SELECT count(*) FROM subjects").scalar()
        record = sqlite_store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(2))
    assert record.generation == 1


def test_a_writer_that_waits_too_long_says_so(sqlite_store: SqlStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        opt_in(sqlite_store, "ann")
    with pytest.raises(UnavailableError, match="locked"):
        sqlite_store.check()
    assert sqlite_store.resolve(TENANT, "ann", None).state is not None  # readers do not wait
    other.execute("ROLLBACK")
    other.close()
    opt_in(sqlite_store, "ann")


def test_a_full_disk_is_named_and_leaves_nothing_half_written(sqlite_store: SqlStore, path: Path) -> None:
    @event.listens_for(sqlite_store._database.engine, "begin")
    def _almost_full(connection: object) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=80")  # type: ignore[attr-defined]

    with pytest.raises(UnavailableError, match=r"no space left.*Free space"):
        sqlite_store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 30_000)), OPTED_IN, at(0))
    assert sqlite_store.datasets(TENANT) == []
    assert sqlite_store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 1)), OPTED_IN, at(0)).unchanged is False


def test_a_file_that_is_no_database_is_named_and_left_alone(path: Path) -> None:
    path.write_bytes(b"these are notes, and no database" * 100)
    with pytest.raises(ConfigurationError, match=r"idiolect\.db is not a SQLite database") as caught:
        open_store(f"sqlite:///{path}")
    assert caught.value.mend
    assert path.read_bytes().startswith(b"these are notes")


def test_a_damaged_file_is_named(sqlite_store: SqlStore, path: Path) -> None:
    sqlite_store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 3_000)), OPTED_IN, at(0))
    sqlite_store.close()
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(ConfigurationError, match=r"idiolect\.db is damaged"):
        open_store(f"sqlite:///{path}").personal_snapshot(TENANT)


@pytest.mark.parametrize("folder", ["/proc/idiolect", "a file"])
def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(ConfigurationError, match=r"idiolect\.db"):
        open_store(f"sqlite:///{tmp_path / folder / 'idiolect.db'}")


def test_a_file_that_can_only_be_read_is_named(sqlite_store: SqlStore, path: Path) -> None:
    sqlite_store.close()
    reader = open_store(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises(ConfigurationError, match=r"can't be written"):
        reader.check()
    reader.close()


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "nonsense", "mysql://user:secret@host/db", "", "postgresql+asyncpg://h/d"],
)
def test_a_url_that_can_not_work_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert caught.value.mend
    assert "secret" not in str(caught.value)


def test_a_message_never_shows_what_people_wrote(sqlite_store: SqlStore) -> None:
    opt_in(sqlite_store, "ann")
    with pytest.raises(IdiolectError) as caught:
        sqlite_store.create_key(TENANT, (), NEEDLE.encode(), at(0))
    sqlite_store.create_tenant(TENANT, at(0))
    sqlite_store.create_key(TENANT, (), NEEDLE.encode(), at(0))
    with pytest.raises(IdiolectError) as taken:
        sqlite_store.create_key(TENANT, (), NEEDLE.encode(), at(0))
    for error in (caught.value, taken.value, taken.value.__cause__):
        assert NEEDLE not in str(error)
