"""What only a Postgres server can do wrong."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from postgres_server import PostgresServer
from sqlalchemy import Connection
from store_samples import TENANT, at, opt_in

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import open_store, schema
from idiolect.stores.sql.engine import among
from people_keys import open_with_keys


def test_a_server_that_is_not_there_is_unavailable_and_its_password_stays_secret(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        open_store(f"postgresql://user:secret@/idiolect?host={tmp_path}")
    assert caught.value.mend
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_exist_is_named(postgres: PostgresServer) -> None:
    with pytest.raises(ConfigurationError, match=r"/missing .*does not exist"):
        open_store(postgres.url("missing"))


def test_a_user_that_is_refused_is_named(postgres: PostgresServer) -> None:
    with pytest.raises(ConfigurationError, match="nobody_known"):
        open_store(postgres.url("postgres").replace("app@", "nobody_known@"))


def test_a_server_that_closes_its_connections_is_found_again(postgres: PostgresServer, postgres_url: str) -> None:
    store = open_with_keys(postgres_url)
    opt_in(store, "ann")
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'idiolect'")
    assert store.subject(TENANT, "ann").opted_in
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(1))
    store.close()


def test_a_connection_that_is_lost_in_the_middle_of_many_rows_is_thrown_away(
    postgres: PostgresServer, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver is stuck between the rows: not even a rollback goes through."""
    store = open_with_keys(postgres_url)

    def work(connection: Connection) -> None:
        statement = "SELECT pg_terminate_backend(pg_backend_pid()) WHERE %s = 3"
        connection.exec_driver_sql(statement, [(number,) for number in range(1000)])

    with pytest.raises(UnavailableError):
        store._database.write(TENANT, work)
    assert store._database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    opt_in(store, "ann")
    assert store.subject(TENANT, "ann").opted_in
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    store.close()


@pytest.mark.parametrize(("asked", "name"), [("", "idiolect"), ("&application_name=blue", "blue")])
def test_the_url_may_name_the_connections_that_the_server_lists(
    postgres: PostgresServer, postgres_url: str, asked: str, name: str
) -> None:
    store = open_store(postgres_url + asked)
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
        found = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name]).fetchone()
    store.close()
    assert found is not None
    assert found[0] > 0


def test_a_writer_that_waits_too_long_says_so(postgres: PostgresServer, postgres_url: str) -> None:
    store = open_with_keys(postgres_url, lock_timeout_s=0.2)
    opt_in(store, "ann")
    with psycopg.connect(postgres.admin_url("contracts")) as other:
        other.execute("SELECT * FROM subjects FOR UPDATE")
        with pytest.raises(UnavailableError, match="locked"):
            opt_in(store, "ann")
    opt_in(store, "ann")
    store.close()


def test_a_chunk_of_people_is_read_from_its_part_of_the_index_before_there_are_statistics(
    postgres: PostgresServer, postgres_url: str
) -> None:
    open_with_keys(postgres_url).close()
    people = [f"{number:032x}" for number in range(5_000)]
    queue = schema.training_queue.c
    engine = sqlalchemy.create_engine(postgres.admin_url("contracts").replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.connect() as connection:
        rows = [{"tenant": TENANT, "subject": subject, "new_comparisons": 1} for subject in people]
        connection.execute(schema.training_queue.insert(), rows)
        wanted = sqlalchemy.delete(schema.training_queue).where(
            queue.tenant == TENANT, among(queue.subject, people[:900])
        )
        sql = wanted.compile(engine, compile_kwargs={"literal_binds": True, "render_postcompile": True})
        plan = connection.exec_driver_sql(f"EXPLAIN {sql}".replace("%", "%%")).scalars().all()
    engine.dispose()
    [read] = [line for line in plan if "Index Cond" in line]
    assert "subject >= " in read
    assert "subject <= " in read
