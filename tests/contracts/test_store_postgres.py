"""What only a Postgres server can do wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from postgres_server import PostgresServer
from sqlalchemy import Connection, func, literal, select
from store_samples import TENANT, at, opt_in

from idiolect.errors import ConfigurationError, InvalidInputError, NotFoundError, UnavailableError
from idiolect.registry.pointers import Adapter
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import engine, open_store, prepared_postgres, resolving, schema
from idiolect.stores.sql.engine import among
from idiolect.stores.sql.tenant_wall import NO_TENANT, stand_behind
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
    assert not store.tenant_exists(TENANT)
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


_MANY_VERSIONS = (
    "INSERT INTO releases (tenant, id, scope, global_digest, run, template, content, versions, fenced, published_at, "
    "reason, actor) VALUES (%(tenant)s, 'r', 'user', 'g', 'r', '{}', '', 0, '[]', 0, '', '')",
    "INSERT INTO versions (tenant, id, release, subject, domain, generation, weights, weights_sha256, key_id, "
    "signature) SELECT %(tenant)s, 'v' || i, 'r', 'p' || i, '', 0, '', '', '', '' FROM generate_series(1, 3000) i",
    "INSERT INTO pointers (tenant, subject, domain, name, version, revision) "
    "SELECT %(tenant)s, 'p' || i, '', 'live', 'v' || i, 1 FROM generate_series(1, 3000) i",
    "ANALYZE versions, pointers",
)


def test_behind_the_wall_a_live_version_is_found_by_its_index(postgres_url: str) -> None:
    """Also where its pointer says what is coming: what might tell of other tenants' rows is compared without one."""
    plan = _plan_of_live(postgres_url, _MANY_VERSIONS)
    assert [line for line in plan if "Index Cond" in line and "(id = CASE " in line], "\n".join(plan)


def test_before_there_are_statistics_a_resolve_reads_the_pointer_of_one_person(postgres_url: str) -> None:
    """And not all of a tenant's, out of which it would pick the one."""
    plan = _plan_of_live(postgres_url, _MANY_VERSIONS[:-1])
    pointers = [line for line in plan if "Index Cond" in line and "live" in line]
    assert pointers, "\n".join(plan)
    assert all("(subject = " in line for line in pointers), "\n".join(plan)


def _plan_of_live(url: str, made: Sequence[str]) -> Sequence[str]:
    store = open_with_keys(url)
    names = {"tenant": TENANT, "subject": "ann", "domain": ""}
    with store._database.engine.begin() as connection:
        stand_behind(connection, TENANT)
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for statement in made:
            connection.exec_driver_sql(statement, {"tenant": TENANT})
        sql = resolving._LIVE.params(names).compile(store._database.engine, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN {sql}".replace("%", "%%")).scalars().all()
    store.close()
    return plan


def test_constant_statements_go_on_after_the_server_closed_their_connections(
    postgres: PostgresServer, postgres_url: str
) -> None:
    store = open_with_keys(postgres_url)
    opt_in(store, "ann")
    for _ in range(2):  # the second time the connections are those that were opened after the first
        assert store.resolve(TENANT, "ann", None).state is not None
        with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'idiolect'")
        assert store.resolve(TENANT, "ann", None).state is not None
    store.close()


def test_a_refused_small_write_leaves_nothing_and_its_connection_may_be_used_again(postgres_url: str) -> None:
    store = open_with_keys(postgres_url)
    store.create_tenant(TENANT, at(0))
    used: list[object] = []

    def refused(connection: Connection) -> None:
        used.append(connection)
        connection.execute(schema.replicas.insert().values(id="x", since=0, cursor=0, seen_at=0))
        raise NotFoundError("no.")

    with pytest.raises(NotFoundError):
        store._database.small_write(NO_TENANT, refused)
    assert store.replicas(at(0)) == []
    assert store._database.small_write(NO_TENANT, lambda connection: connection is used[0])
    store.close()


def test_a_small_write_that_loses_its_server_says_so_and_its_connection_is_not_used_again(postgres_url: str) -> None:
    store = open_with_keys(postgres_url)
    store.create_tenant(TENANT, at(0))
    lost: list[object] = []

    def work(connection: Connection) -> None:
        lost.append(connection)
        connection.execute(sqlalchemy.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(UnavailableError):
        store._database.small_write(NO_TENANT, work)
    assert store._database.small_write(NO_TENANT, lambda connection: connection is not lost[-1])
    store.close()


@pytest.mark.parametrize("kind", ["small_write", "lasting_write", "write"])
def test_who_stands_still_in_a_transaction_loses_its_locks_and_nothing_of_it_stays(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As a frozen server does, or one whose network is gone."""
    monkeypatch.setattr(engine, "STANDSTILL_SECONDS", 0.1)
    for words in ("_WRITE", "_HASTY_WRITE"):
        monkeypatch.setattr(prepared_postgres, words, getattr(prepared_postgres, words).replace("5000", "100"))
    still, others = (open_with_keys(postgres_url, lock_timeout_s=10) for _ in range(2))
    still.follow("r", 0, 0, at(0))
    stands, goes_on = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        ours = schema.replicas.update().where(schema.replicas.c.id == "r")
        assert connection.execute(ours.values(cursor=1)).rowcount == 1
        stands.set()
        goes_on.wait(30)
        connection.execute(ours.values(cursor=2))

    with ThreadPoolExecutor(1) as pool:
        frozen = pool.submit(getattr(still._database, kind), NO_TENANT, work)
        assert stands.wait(10)
        try:
            others.follow("r", 0, 7, at(0))
        finally:
            goes_on.set()
        with pytest.raises(UnavailableError):
            frozen.result(30)
    assert [replica.cursor for replica in still.replicas(at(0))] == [7]
    still.close()
    others.close()


def test_what_only_reads_may_take_its_time_between_two_statements(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "STANDSTILL_SECONDS", 0.05)
    store = open_with_keys(postgres_url)
    opt_in(store, "ann")
    with store.snapshot() as snapshot:  # as a backup, or a training that decrypts
        with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
            admin.execute("SELECT pg_sleep(0.5)")
        assert len(list(snapshot.rows("subjects"))) == 1
    store.close()


def test_a_deadlock_of_small_writes_is_settled_by_trying_again(postgres_url: str) -> None:
    """Each locks what the other one wants next; the server ends one of the two."""
    store = open_with_keys(postgres_url)
    names, meeting, runs = ("a", "b"), threading.Barrier(2), Counter[str]()
    for name in names:
        store.follow(name, 0, 0, at(0))

    def both(first: str, second: str, connection: Connection) -> None:
        runs[first] += 1
        for name in (first, second):
            changed = connection.execute(schema.replicas.update().where(schema.replicas.c.id == name).values(cursor=7))
            assert changed.rowcount == 1  # what nobody asks for is not sent yet
            if runs[first] == 1 and name == first:
                meeting.wait(10)

    with ThreadPoolExecutor(2) as pool:
        for order in (names, names[::-1]):
            pool.submit(store._database.small_write, NO_TENANT, partial(both, *order))
    assert sum(runs.values()) == 3
    assert [replica.cursor for replica in store.replicas(at(0))] == [7, 7]
    store.close()


def test_no_name_of_a_tenant_leaves_its_quotes(postgres_url: str) -> None:
    store = open_with_keys(postgres_url)
    for name in ("o'hara", "a\\", "'; DROP TABLE subjects; --", "x" * 1000):
        assert not store.tenant_exists(name)
        with store._database.point_reading(name) as connection:
            assert connection.execute(select(literal(1)).where(func.current_setting("idiolect.tenant") == name)).all()
    with pytest.raises(InvalidInputError):
        store.tenant_exists("a\0b")
    store.close()


def test_a_connection_that_is_cut_while_it_is_made_is_a_server_out_of_reach(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_with_keys(postgres_url)
    store.create_tenant(TENANT, at(0))

    def cut(*_more: object) -> None:
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    store._database.close()
    with monkeypatch.context() as patched:
        patched.setattr(psycopg.Connection, "execute", cut)  # what a new connection is told first
        for call in (lambda: store.resolve(TENANT, "ann", None), lambda: store.follow("x", 0, 0, at(0))):
            with pytest.raises(UnavailableError):
                call()
    assert store.resolve(TENANT, "ann", None).user is None
    store.close()


def test_a_store_that_was_opened_keeps_no_connection_and_one_that_is_used_few(
    postgres: PostgresServer, postgres_url: str
) -> None:
    """A server has a hundred, and many processes open a store on it."""

    def comes_to(most: int) -> bool:
        """A process of the server ends a moment after its connection."""
        mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'idiolect'"
        with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
            counts = (admin.execute(mine).fetchone() for _ in range(20_000))
            return any(count is not None and count[0] <= most for count in counts)

    store = open_with_keys(postgres_url)
    assert comes_to(0)
    opt_in(store, "ann")
    for _ in range(3):
        store.resolve(TENANT, "ann", None)
        store.pointers(TENANT, Adapter("user", "ann"))
    assert comes_to(4)  # of the store and of its keys: one for constant statements, one for all others
    store.close()
    assert comes_to(0)
