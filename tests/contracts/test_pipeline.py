"""What only a driver of pipelines can do wrong, on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from postgres_server import PostgresServer
from sqlalchemy import BigInteger, Connection, Integer, LargeBinary, Text, bindparam, func, literal, select, text
from store_samples import EVENT, TENANT, at, opt_in, publish_user, shown, template, version

from idiolect.audit import AuditEvent
from idiolect.errors import ConflictError, UnavailableError
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import PublishOutcome
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.stores.sql import SqlStore, open_key_store, schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import Hold, hold
from idiolect.stores.sql.people import STATES
from idiolect.stores.sql.pipeline import MOST_PREPARED, PREPARED_AFTER, Pipeline, numbered
from idiolect.stores.sql.prepared import together
from idiolect.stores.sql.tenant_wall import NO_TENANT
from people_keys import open_with_keys, wrapping_key

REPLICAS = schema.replicas
WAITING = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
ECHO = select(bindparam("said", type_=Text).label("heard"))


@pytest.fixture
def store(postgres_url: str) -> Iterator[SqlStore]:
    opened = open_with_keys(postgres_url)
    opened.create_tenant(TENANT, at(0))
    yield opened
    opened.close()


@pytest.fixture
def journeys(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each journey to any server that is waited for."""
    made: list[int] = []
    run = Pipeline.run

    def counted(self: Pipeline, asked: object) -> None:
        made.append(1)
        run(self, asked)  # type: ignore[arg-type]

    monkeypatch.setattr(Pipeline, "run", counted)
    return made


def replica(name: str) -> dict[str, object]:
    return {"id": name, "since": 0, "cursor": 0, "seen_at": 0}


def names_of(store: SqlStore) -> list[str]:
    return sorted(one.id for one in store.replicas(at(0)))


def test_places_are_numbered_and_percent_signs_stay() -> None:
    assert numbered("a LIKE '50%%' AND b = %s AND c IN (%s, %s)") == b"a LIKE '50%' AND b = $1 AND c IN ($2, $3)"


def test_a_warm_ranking_asks_the_store_in_four_journeys(store: SqlStore, journeys: list[int]) -> None:
    opt_in(store, "ann")
    shown(store, "i1")  # makes the key
    journeys.clear()
    store.resolve(TENANT, "ann", "chat")
    assert len(journeys) == 1
    store.subject(TENANT, "ann")
    assert len(journeys) == 2
    shown(store, "i2")
    assert len(journeys) == 4  # what is known already, and what is new with the commit


def test_what_failed_is_told_with_the_next_question_and_leaves_nothing(store: SqlStore) -> None:
    def twice(connection: Connection) -> None:
        connection.execute(REPLICAS.insert(), [replica("a")])
        connection.execute(REPLICAS.insert(), [replica("a")])
        connection.execute(ECHO, {"said": "never"})
        raise AssertionError("it was answered")

    with pytest.raises(ConflictError):
        store._database.small_write(NO_TENANT, twice)
    assert names_of(store) == []


def test_what_failed_with_the_commit_leaves_nothing_and_its_connection_is_used_again(store: SqlStore) -> None:
    used: list[object] = []

    def twice(connection: Connection) -> None:
        used.append(connection)
        connection.execute(ECHO, {"said": "first"})
        connection.execute(REPLICAS.insert(), [replica("a")])
        connection.execute(REPLICAS.insert(), [replica("a")])

    with pytest.raises(ConflictError):
        store._database.small_write(NO_TENANT, twice)
    assert names_of(store) == []
    assert store._database.small_write(NO_TENANT, lambda connection: connection is used[0])


def test_a_transaction_whose_commit_was_lost_is_not_done_again(store: SqlStore) -> None:
    """Nobody knows whether it was committed."""
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        connection.execute(ECHO, {"said": "first"})
        connection.execute(REPLICAS.insert(), [replica("a")])
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(UnavailableError):
        store._database.small_write(NO_TENANT, work)
    assert len(runs) == 1
    assert names_of(store) == []


def test_a_transaction_that_found_its_server_gone_is_asked_again_from_its_beginning(
    store: SqlStore, postgres: PostgresServer
) -> None:
    opt_in(store, "ann")
    store.follow("a", 0, 1, at(0))
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'idiolect'")
    store.follow("b", 0, 1, at(0))  # only writes: on its way with the commit, it could not be told what became of it
    assert names_of(store) == ["a", "b"]


def test_each_question_outside_a_transaction_is_about_its_tenant(store: SqlStore) -> None:
    opt_in(store, "ann")
    opt_in(store, "bob")
    with store._database.point_reading(TENANT, single=True) as connection:
        for person in ("ann", "bob"):
            assert [row.subject for row in STATES.rows(connection, [person], {"tenant": TENANT})] == [person]
    with store._database.point_reading(NO_TENANT, single=True) as connection:
        assert STATES.rows(connection, ["ann"], {"tenant": TENANT}) == []


def test_more_is_sent_and_comes_back_than_sockets_hold(store: SqlStore) -> None:
    """Were the one only sent before the other is read, both sides would wait for ever."""
    large = ["a" * 2_000_000, "b" * 3_000_000, "c" * 1_000_000]
    with store._database.point_reading(NO_TENANT) as connection:
        found = together(connection, [(ECHO, {"said": one}) for one in large])
    assert [rows.one().heard for rows in found] == large


def test_values_of_every_size_and_none_come_back_whether_prepared_or_not(store: SqlStore) -> None:
    columns = {"n": BigInteger, "m": Integer, "raw": LargeBinary, "said": Text}
    statement = select(*(bindparam(name, type_=kind).label(name) for name, kind in columns.items()))
    each = [
        {"n": n, "m": m, "raw": raw, "said": said}
        for n in (0, 2**15, 2**31, -(2**62), None)
        for m, raw, said in ((7, b"\0\xff", "50%"), (None, None, None), (-(2**31), b"", "'; --"))
    ]
    for _ in range(PREPARED_AFTER + 2):
        for values in each:
            with store._database.point_reading(NO_TENANT) as connection:
                found, again = together(connection, [(statement, values), (statement, values)])
            assert found.one() == again.one() == tuple(values.values())


def test_statements_of_one_use_do_not_fill_the_server_with_plans(store: SqlStore) -> None:
    with store._database.point_reading(NO_TENANT) as connection:
        for number in range(MOST_PREPARED + 20):
            statement = select(literal(1).label(f"n{number}"))
            for _ in range(PREPARED_AFTER + 1):
                connection.execute(statement)
        plans = connection.scalar(select(func.count().label("plans")).select_from(text("pg_prepared_statements")))
        assert plans == MOST_PREPARED


def test_a_reset_holds_the_tenants_lock_for_three_journeys_and_sent_again_for_none(
    store: SqlStore, postgres: PostgresServer, journeys: list[int]
) -> None:
    opt_in(store, "ann")
    publish_user(store, "v1")
    journeys.clear()
    done = store.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(1))
    assert len(journeys) == 1 + 3  # before, whether it is done already
    with psycopg.connect(postgres.admin_url("contracts")) as other:
        other.execute("LOCK TABLE subjects IN ACCESS EXCLUSIVE MODE")
        assert store.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(2)) == done
    assert len(journeys) == 4 + 1


@pytest.fixture
def with_keys(store: SqlStore, postgres: PostgresServer) -> Iterator[SqlStore]:
    """As `store`, but its keys too are on a server."""
    keys = open_key_store(postgres.create_database("keys_of_few"), wrapping_key)
    store._database.key_store, before = keys, store._database.key_store
    yield store
    store._database.key_store = before
    keys.close()
    postgres.drop_database("keys_of_few")


def test_publishing_for_one_person_holds_the_tenants_lock_for_three_journeys_and_one_to_the_keys(
    with_keys: SqlStore, journeys: list[int]
) -> None:
    """Whether the person has a key yet or not."""
    opt_in(with_keys, "ann", "bob")
    publish_user(with_keys, "v0", "bob")  # makes the tenant's key
    journeys.clear()
    publish_user(with_keys, "v1", "ann")
    assert len(journeys) == 3 + 1
    again = version("v2", "r-v2", "ann", parent="v1")
    with_keys.publish("r-v2", template(), [again], at(1), reason="trained", actor="trainer")
    assert len(journeys) == 2 * (3 + 1)
    assert [one.version.id for one in with_keys.versions(TENANT, subject="ann")] == ["v1", "v2"]


def test_the_rest_of_a_persons_training_holds_it_for_seven_journeys(store: SqlStore, journeys: list[int]) -> None:
    opt_in(store, "ann")
    journeys.clear()
    run = store.reserve(TENANT, "comparison", "training", EVENT, ["ann"], 10.0, at(1)).run
    assert len(journeys) == 3
    store.settle(TENANT, run, at(2))
    assert len(journeys) == 3 + 2
    store.mark_trained(TENANT, ["ann"], at(1))
    assert len(journeys) == 3 + 2 + 2


def test_what_travels_with_the_lock_sees_the_reset_that_it_waited_for(store: SqlStore) -> None:
    """The fence is asked about in the journey that asks for the lock, long before the reset is committed."""
    opt_in(store, "ann")

    def reset(connection: Connection) -> Future[PublishOutcome]:
        hold(connection, TENANT, Hold.ERASE)
        published = pool.submit(publish_user, store, "v1")
        while not connection.scalar(WAITING) and not published.done():
            pass
        connection.execute(schema.subjects.update().values(generation=1))
        return published

    with ThreadPoolExecutor(1) as pool:
        assert store._database.write(TENANT, reset).result().fenced == ("ann",)
    assert list(store.versions(TENANT, subject="ann")) == []


def test_a_change_that_fails_is_not_in_the_recovery_log(store: SqlStore, tmp_path: Path) -> None:
    """Nor where nothing asked for the answer to what failed, so that it would have gone out with the commit."""
    log = RecoveryLog(tmp_path / "log")
    store._database.recovery_log = log

    def work(connection: Connection, name: str) -> None:
        connection.execute(REPLICAS.insert(), [replica("a")])
        append(connection, TENANT, AuditEvent("x", "y", name), 0)
        connection.execute(REPLICAS.insert(), [replica(name)])

    with pytest.raises(ConflictError):
        store._database.lasting_write(TENANT, lambda connection: work(connection, "a"))
    assert log.last() is None
    store._database.lasting_write(TENANT, lambda connection: work(connection, "b"))
    logged = log.last()
    assert logged is not None
    assert logged.entry.object == "b"
