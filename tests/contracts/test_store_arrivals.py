"""A release that comes in batches: what happens in between, what is seen of it, and where it is cut off.

Batches are of one person here, and what happens in between happens there: in the same thread, before one of the
transactions begins. So whatever the publisher still held would keep it from happening.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from crashes import Crash, listening
from postgres_server import PostgresServer
from sqlalchemy import func, select
from store_samples import (
    EVENT,
    GLOBAL,
    TENANT,
    at,
    give_feedback,
    opt_in,
    publish_user,
    tampering,
    template,
    version,
)
from store_worker import Worker

from idiolect.audit import verify
from idiolect.consent import ConsentChange
from idiolect.errors import ConflictError, NotFoundError, PreconditionError, UnavailableError
from idiolect.registry.pointers import Adapter
from idiolect.resets.plan import plan_erasure, plan_reset
from idiolect.rollouts.plan import Candidate, Plan
from idiolect.stores.ports import PublishOutcome
from idiolect.stores.sql import SqlStore, arriving, schema
from idiolect.stores.sql.snapshots import Snapshot
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.upgrading import alembic_config
from people_keys import mirror_keys, open_with_keys

WHY: dict[str, Any] = {"reason": "trained", "actor": "trainer"}
PEOPLE = ("ann", "bob", "cleo")
TRANSACTIONS = len(PEOPLE) + 2  # its beginning, a batch each, its end
BETWEEN = range(1, TRANSACTIONS)  # two of them
LONG_AFTER = at(0) + timedelta(days=90)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "BATCH", 1)
    monkeypatch.setattr(arriving, "_SPAN", 1)  # people in their order, on Postgres too
    monkeypatch.setattr(arriving, "sleep", lambda _seconds: None)


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    return prepared(store)


def prepared(store: SqlStore) -> SqlStore:
    """Ann was never published, bob once, cleo three times."""
    store.create_tenant(TENANT, at(0))
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, *PEOPLE)
    for person in PEOPLE:
        give_feedback(store, person)
    for name, person in (("b1", "bob"), ("c1", "cleo"), ("c2", "cleo"), ("c3", "cleo")):
        publish_user(store, name, person, minutes=1)
    return store


def publish(store: SqlStore, name: str = "big", minutes: float = 5, **more: Any) -> PublishOutcome:
    versions = [version(f"{name}-{person}", name, person) for person in PEOPLE]
    return store.publish(name, template(run=name), versions, at(minutes), **WHY, **more)


def publish_at_once(store: SqlStore, monkeypatch: pytest.MonkeyPatch, name: str = "big", **more: Any) -> PublishOutcome:
    with monkeypatch.context() as patched:
        patched.setattr(arriving, "BATCH", 100)
        return publish(store, name, **more)


@contextmanager
def between(store: SqlStore, monkeypatch: pytest.MonkeyPatch, *steps: int, do: Callable[[], object]) -> Iterator[None]:
    """`do` it before the transactions of these numbers, the first one being 0."""
    write, begun = store._database.write, 0

    def written(*call: Any, **how: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun - 1 in steps:
            with monkeypatch.context() as undone:
                undone.setattr(store._database, "write", write)
                do()
        return write(*call, **how)

    with monkeypatch.context() as patched:
        patched.setattr(store._database, "write", written)
        yield


def adapter(person: str) -> Adapter:
    return Adapter("user", person)


def pointers(store: SqlStore, person: str) -> list[Any]:
    live, *others = store.pointers(TENANT, adapter(person))
    return [("live", live.version, live.revision), *((one.name, one.version) for one in others)]


def history(store: SqlStore, person: str) -> list[Any]:
    """Without its places, which only give the order."""
    moves = store.pointer_history(TENANT, adapter(person))
    return [{name: value for name, value in asdict(one).items() if name != "id"} for one in moves]


def served(store: SqlStore) -> dict[str, str | None]:
    found = {person: store.resolve(TENANT, person, "chat").user for person in PEOPLE}
    return {person: user and user.id for person, user in found.items()}


def seen(store: SqlStore) -> dict[str, Any]:
    """All that the store says of the registry."""
    trained = store.personal_snapshot(TENANT)
    each = {(TENANT, person, "chat") for person in PEOPLE}
    together = [(one[1], found.user) for one, found in zip(sorted(each), store.resolve_each(sorted(each)), strict=True)]
    return {
        "served": served(store),
        "served together": [(person, user and user.id) for person, user in together],
        "pointers": {person: pointers(store, person) for person in PEOPLE},
        "history": {person: history(store, person) for person in PEOPLE},
        "adapters": store.adapters(TENANT),
        "versions": [
            (one.version.id, one.version.weights, one.withheld, one.revoked) for one in store.versions(TENANT)
        ],
        "releases": store.releases(TENANT),
        # Without what a reset counted: the rows of pointers are fewer here, and versions that were arriving count too.
        "audit": [
            (one.action, one.object, one.details if one.action != "reset" else "") for one in store.audit_walk(TENANT)
        ],
        "contributions": {person: store.contributions(TENANT, person) for person in PEOPLE},
        "parents": dict(zip(trained.people, trained.parent_P, strict=True)),
        "left behind": store.left_behind(TENANT, "f" * 64),
        "waiting": store.waiting_releases(GLOBAL),
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Of what was `seen`, part by part."""
    return {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}


def traces(store: SqlStore, person: str) -> list[int]:
    """Rows of the person's versions and pointers."""
    with store._database.reading(ALL_TENANTS) as connection:
        return [
            connection.scalar(select(func.count()).where(table.c.subject == person)) or 0
            for table in (schema.versions, schema.pointers)
        ]


def arrivals(store: SqlStore) -> int:
    with store._database.reading(ALL_TENANTS) as connection:
        return connection.scalar(select(func.count()).select_from(schema.arrivals)) or 0


def reset(store: SqlStore, person: str, reset_id: str = "x1", scope: Any = "adapter") -> None:
    plan = plan_erasure() if scope == "erasure" else plan_reset(scope)
    store.apply_reset(TENANT, person, reset_id, plan, at(3))


def cut_off(store: SqlStore, monkeypatch: pytest.MonkeyPatch, step: int, **more: Any) -> None:
    """Its process is killed before a transaction."""

    def die() -> None:
        raise Crash

    with pytest.raises(Crash), between(store, monkeypatch, step, do=die):
        publish(store, **more)


@pytest.fixture
def other(sqlite_template: Path, tmp_path: Path) -> Iterator[SqlStore]:
    """Another store, to compare with."""
    path = tmp_path / "other.db"
    shutil.copy(sqlite_template, path)
    opened = open_with_keys(f"sqlite:///{path}")
    yield opened
    opened.close()


# --- the same as in one transaction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("staged", [False, True])
def test_it_ends_as_if_it_had_come_at_once(
    ready: SqlStore, other: SqlStore, monkeypatch: pytest.MonkeyPatch, staged: bool
) -> None:
    prepared(other)
    for number in range(3):
        assert publish(ready, f"big{number}", staged=staged) == PublishOutcome(3, ())
        assert publish_at_once(other, monkeypatch, f"big{number}", staged=staged) == PublishOutcome(3, ())
        assert not differences(seen(ready), seen(other))
    publish_user(ready, "a9", "ann", minutes=7)
    publish_user(other, "a9", "ann", minutes=7)
    assert not differences(seen(ready), seen(other))


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.rollback(TENANT, adapter("cleo"), at(6), **WHY),
        lambda store: store.promote(TENANT, "c1", at(6), **WHY),
        lambda store: store.promote(TENANT, "big1-ann", at(6), **WHY),
        lambda store: store.promote_release(TENANT, "big0", at(6), **WHY),
        lambda store: store.revoke_release(TENANT, "big1", at(6), **WHY),
        lambda store: store.quarantine(TENANT, "big1-bob", "bad", at(6), actor="serving"),
        lambda store: store.apply_reset(TENANT, "cleo", "x1", plan_reset("adapter"), at(6)),
        lambda store: store.apply_reset(TENANT, "cleo", "x1", plan_erasure(), at(6)),
        lambda store: publish(store, "big2"),
        lambda store: publish_user(store, "c9", "cleo", minutes=6),
    ],
)
def test_whatever_is_done_with_it_afterwards_ends_as_if_it_had_come_at_once(
    ready: SqlStore, other: SqlStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[SqlStore], object]
) -> None:
    prepared(other)
    for name in ("big0", "big1"):
        publish(ready, name)
        publish_at_once(other, monkeypatch, name)
    change(ready)
    with monkeypatch.context() as patched:
        patched.setattr(arriving, "BATCH", 100)
        change(other)
    assert not differences(seen(ready), seen(other))
    assert verify(ready.audit_walk(TENANT), ready.audit_head(TENANT)).broken is None


# --- nobody sees it before all of it is there -------------------------------------------------------------------------


def test_nothing_is_seen_of_it_while_it_arrives(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.revoke_release(TENANT, "r-c3", at(2), **WHY)
    assert served(ready)["cleo"] == "c2"  # who falls back doesn't fall back to it
    before = seen(ready)
    looked: list[bool] = []

    def look() -> None:
        assert not differences(seen(ready), before)
        assert ready.release(TENANT, "big") is None
        assert ready.versions(TENANT, release="big") == []
        assert ready.versions(TENANT, subject="ann") == []
        for person in PEOPLE:
            assert ready.version(TENANT, f"big-{person}") is None
            assert ready.version_lineage(TENANT, f"big-{person}") is None
        looked.append(True)

    with between(ready, monkeypatch, *BETWEEN, do=look):
        publish(ready)
    assert len(looked) == len(BETWEEN)
    assert served(ready) == {person: f"big-{person}" for person in PEOPLE}


def test_nothing_can_be_done_with_it_while_it_arrives(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []

    plan = Plan(steps=(0.5, 1.0))

    def try_everything() -> None:
        attempts: Sequence[Callable[[], object]] = (
            lambda: ready.promote(TENANT, "big-ann", at(4), **WHY),
            lambda: ready.promote_release(TENANT, "big", at(4), **WHY),
            lambda: ready.revoke_release(TENANT, "big", at(4), **WHY),
            lambda: ready.create_rollout(TENANT, Candidate("release", "big"), plan, at(4), **WHY, start=True),
        )
        for attempt in attempts:
            with pytest.raises(NotFoundError):
                attempt()
            refused.append(1)
        assert not ready.quarantine(TENANT, "big-ann", "bad", at(4), actor="serving")
        assert ready.follow_model(TENANT, "big", at(4), **WHY) == 0

    with between(ready, monkeypatch, TRANSACTIONS - 1, do=try_everything):
        publish(ready)
    assert len(refused) == 4
    assert served(ready) == {person: f"big-{person}" for person in PEOPLE}


def test_a_domain_is_not_known_before_its_first_release_has_arrived(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [version(f"d-{name}", "d", "", name) for name in ("mail", "voice")]

    def look() -> None:
        assert ready.resolve(TENANT, None, "mail").domain is None

    with between(ready, monkeypatch, 1, 2, 3, do=look):
        ready.publish("d", template("domain"), versions, at(5), **WHY)
    assert ready.resolve(TENANT, None, "mail").domain is not None


# --- what others do meanwhile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "scope"), [*((step, "adapter") for step in BETWEEN), (2, "erasure"), (TRANSACTIONS - 1, "erasure")]
)
def test_a_reset_while_it_arrives_holds(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch, step: int, scope: str
) -> None:
    """Whether the person's batch was written by then or not."""
    with between(ready, monkeypatch, step, do=lambda: reset(ready, "bob", scope=scope)):
        outcome = publish(ready)
    assert outcome == PublishOutcome(2, ("bob",))
    assert publish(ready) == outcome
    assert served(ready) == {"ann": "big-ann", "bob": None, "cleo": "big-cleo"}
    assert traces(ready, "bob") == [0, 0]
    assert ready.version(TENANT, "big-bob") is None
    assert pointers(ready, "bob") == [("live", None, 0)]
    summary = ready.release(TENANT, "big")
    assert summary is not None
    assert summary.versions == len(ready.versions(TENANT, release="big")) == 2
    assert [move["version"] for move in history(ready, "bob")] == ([] if scope == "erasure" else [None, "b1"])


def test_a_batch_that_was_sealed_before_a_reset_is_written_without_the_person(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only left out when all of it is there: nothing of theirs is stored in the meantime."""
    left: list[list[int]] = []
    looking = between(ready, monkeypatch, 3, do=lambda: left.append(traces(ready, "bob")))
    with looking, between(ready, monkeypatch, 2, do=lambda: reset(ready, "bob")):
        assert publish(ready) == PublishOutcome(2, ("bob",))
    assert left == [[0, 0]]


@pytest.mark.parametrize("step", [2, TRANSACTIONS - 1])
def test_who_opts_out_while_it_arrives_and_in_again_has_nothing_of_it(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def leave_and_return() -> None:
        for opted_in in (False, True):
            ready.change_subject(TENANT, "bob", ConsentChange(opted_in=opted_in), at(3))

    with between(ready, monkeypatch, step, do=leave_and_return):
        assert publish(ready) == PublishOutcome(2, ("bob",))
    assert served(ready)["bob"] is None
    assert traces(ready, "bob") == [0, 0]


def test_others_write_between_any_two_transactions(
    ready: SqlStore, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the publisher still held would be in the way until they gave up."""
    beside = open_with_keys(store_url)
    done: list[int] = []

    def write() -> None:
        done.append(len(done))
        reset(beside, "dora", f"x{len(done)}")
        opt_in(beside, "dora")
        give_feedback(beside, "dora", len(done), minutes=4)
        beside.promote(TENANT, ("c1", "c2")[len(done) % 2], at(3), **WHY)
        beside.reserve(TENANT, "comparison", "training", EVENT, ["dora"], 10.0, at(3))

    with between(ready, monkeypatch, *BETWEEN, do=write):
        assert publish(ready) == PublishOutcome(3, ())
    beside.close()
    assert len(done) == len(BETWEEN)


@pytest.mark.parametrize("step", [2, TRANSACTIONS - 1])
@pytest.mark.parametrize(
    ("change", "person", "gone_back_to"),
    [
        (lambda store: store.promote(TENANT, "c1", at(3), **WHY), "cleo", "c1"),
        (lambda store: store.rollback(TENANT, adapter("cleo"), at(3), **WHY), "cleo", "c2"),
        (lambda store: publish_user(store, "c4", "cleo", minutes=3), "cleo", "c4"),
        (lambda store: publish_user(store, "a1", "ann", minutes=3), "ann", "a1"),
        (lambda store: store.promote_release(TENANT, "r-c1", at(3), **WHY), "cleo", "c1"),
    ],
)
def test_a_pointer_that_moves_while_it_arrives_moves_on_when_it_is_there(
    ready: SqlStore,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    change: Callable[[SqlStore], object],
    person: str,
    gone_back_to: str,
) -> None:
    before = ready.pointers(TENANT, adapter(person))[0]

    def move() -> None:
        change(ready)
        live = ready.pointers(TENANT, adapter(person))[0]
        assert (live.version, live.revision) == (gone_back_to, before.revision + 1)
        assert served(ready)[person] == gone_back_to

    with between(ready, monkeypatch, step, do=move):
        assert publish(ready) == PublishOutcome(3, ())
    live, previous = ready.pointers(TENANT, adapter(person))
    assert (live.version, live.revision) == (f"big-{person}", before.revision + 2)
    assert previous.version == gone_back_to
    newest, older = history(ready, person)[:2]
    assert (newest["old_version"], newest["version"]) == (gone_back_to, f"big-{person}")
    assert (older["old_version"], older["version"]) == (before.version, gone_back_to)
    back = ready.rollback(TENANT, adapter(person), at(7), **WHY)
    assert (back.version, served(ready)[person]) == (gone_back_to, gone_back_to)


def test_a_rollback_while_it_arrives_does_not_make_it_what_is_gone_back_to(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def roll_back() -> None:
        for name in ("c4", "c5"):  # written after what is coming for cleo
            publish_user(ready, name, "cleo", minutes=3)
        ready.rollback(TENANT, adapter("cleo"), at(4), **WHY)
        assert pointers(ready, "cleo") == [("live", "c4", 6), ("previous", "c3")]

    with between(ready, monkeypatch, TRANSACTIONS - 1, do=roll_back):
        publish(ready)
    assert pointers(ready, "cleo") == [("live", "big-cleo", 7), ("previous", "c4")]


def test_a_move_that_expects_what_was_live_before_it_came_is_refused(ready: SqlStore) -> None:
    seen_before = ready.pointers(TENANT, adapter("cleo"))[0].etag
    publish(ready)
    with pytest.raises(PreconditionError):
        ready.promote(TENANT, "c1", at(6), **WHY, if_match=seen_before)


def test_what_is_withdrawn_while_it_arrives_is_not_served(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def withdraw() -> None:
        ready.withdraw_signing_key("k" * 16, at(3), reason="stolen", actor="admin")

    with between(ready, monkeypatch, 2, do=withdraw):
        publish(ready)
    assert set(served(ready).values()) == {None}


def test_a_global_model_that_changes_while_it_arrives_does_not_serve_it(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = lambda: ready.set_global("f" * 64, at(3), reason="new", actor="admin")  # noqa: E731
    with between(ready, monkeypatch, 2, do=change):
        assert publish(ready) == PublishOutcome(3, ())
    assert set(served(ready).values()) == {None}


def test_who_got_it_after_a_rollout_began_takes_no_part(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(ready, "candidate", staged=True)

    def begin() -> None:
        plan = Plan(steps=(0.999, 1.0))
        ready.create_rollout(TENANT, Candidate("release", "candidate"), plan, at(3), **WHY, start=True)
        assert ready.resolve(TENANT, "bob", None).trials

    with between(ready, monkeypatch, TRANSACTIONS - 1, do=begin):
        publish(ready)
    for person in PEOPLE:
        found = ready.resolve(TENANT, person, None)
        assert not found.trials
        assert found.user is not None
        assert found.user.id == f"big-{person}"


# --- cut off ----------------------------------------------------------------------------------------------------------


def test_a_crash_at_any_write_is_seen_by_nobody_and_the_same_call_ends_it(
    ready: SqlStore, other: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(other)
    points = 0
    for store in (ready, other):
        reset(store, "bob")  # a fenced person, and one with a new generation
    before = seen(ready)
    expected = publish_at_once(other, monkeypatch)
    assert expected == PublishOutcome(2, ("bob",))
    while True:
        try:
            with dying(ready, points):
                publish(ready)
        except Crash:
            assert not differences(seen(ready), before), f"after {points} writes"
            points += 1
        else:
            break
    assert points > 3 * len(PEOPLE)
    assert publish(ready) == expected
    assert not differences(seen(ready), seen(other))
    assert arrivals(ready) == 0


@contextmanager
def dying(store: SqlStore, after: int) -> Iterator[None]:
    """After so many writes and commits, with what was committed by then."""
    left = after

    def step(*_call: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash

    def write(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if statement.lstrip().startswith(("INSERT", "UPDATE", "DELETE")):
            step()

    with listening(store, before_cursor_execute=write, commit=step):
        yield


@pytest.mark.parametrize("step", BETWEEN)
def test_cut_off_between_two_batches_it_goes_on_where_it_was(
    ready: SqlStore, other: SqlStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    prepared(other)
    cut_off(ready, monkeypatch, step)
    with ready._database.reading(ALL_TENANTS) as connection:
        of_release = schema.versions.c.release == "big"
        written = connection.scalars(select(schema.versions.c.seq).where(of_release)).all()
    assert len(written) == step - 1
    reset(ready, "cleo")
    reset(other, "cleo")
    assert publish(ready) == publish_at_once(other, monkeypatch) == PublishOutcome(2, ("cleo",))
    assert not differences(seen(ready), seen(other))
    with ready._database.reading(ALL_TENANTS) as connection:
        left = connection.scalars(select(schema.versions.c.seq).where(of_release)).all()
    assert len(set(written) & set(left)) == min(step - 1, 2)


def test_a_publisher_that_is_killed_between_two_batches_leaves_what_another_ends(
    ready: SqlStore, store_url: str
) -> None:
    before = seen(ready)
    worker = Worker(store_url, "killed between batches", 0)
    worker.wait_until_ready()
    worker.go()
    assert worker.finish() == -9
    assert arrivals(ready) == 1
    assert not differences(seen(ready), before)
    assert publish(ready) == PublishOutcome(3, ())
    assert served(ready) == {person: f"big-{person}" for person in PEOPLE}


def test_other_content_under_its_id_is_refused_while_it_arrives(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(ready, monkeypatch, 2)
    for people in (PEOPLE, PEOPLE[:1]):
        others = [version(f"other-{person}", "big", person) for person in people]
        with pytest.raises(ConflictError, match="exists with other content"):
            ready.publish("big", template(run="big"), others, at(5), **WHY)
    assert publish(ready) == PublishOutcome(3, ())


def test_sent_again_as_staged_it_moves_no_pointer(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = served(ready)
    cut_off(ready, monkeypatch, TRANSACTIONS - 1)
    assert publish(ready, staged=True) == PublishOutcome(3, ())
    assert served(ready) == before
    assert ready.promote_release(TENANT, "big", at(6), **WHY) == 3


def test_a_backup_of_the_middle_of_it_is_restored_and_goes_on(
    ready: SqlStore, store_url: str, monkeypatch: pytest.MonkeyPatch, sqlite_template: Path, tmp_path: Path
) -> None:
    publish(ready, "first")
    before = seen(ready)
    cut_off(ready, monkeypatch, 3)
    with ready.snapshot() as found:
        rows = {name: list(found.rows(name)) for name in found.columns}
    path = tmp_path / "restored.db"
    shutil.copy(sqlite_template, path)
    mirror_keys(store_url, f"sqlite:///{path}")
    restored = open_with_keys(f"sqlite:///{path}")
    restored.load(Snapshot(found.revision, found.columns, found.counters, rows.__getitem__), [])
    assert not differences(seen(restored), before)
    assert publish(restored) == PublishOutcome(3, ())
    assert publish(restored, "next") == PublishOutcome(3, ())
    assert served(restored) == {person: f"next-{person}" for person in PEOPLE}
    restored.close()


# --- several at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, TRANSACTIONS - 1])
def test_sent_twice_at_once_it_is_published_once(ready: SqlStore, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    outcomes: list[PublishOutcome] = []
    with between(ready, monkeypatch, step, do=lambda: outcomes.append(publish(ready))):
        outcomes.append(publish(ready))
    assert outcomes == [PublishOutcome(3, ())] * 2
    assert [one.id for one in ready.releases(TENANT)].count("big") == 1
    assert pointers(ready, "bob") == [("live", "big-bob", 2), ("previous", "b1")]


def test_another_release_of_the_tenant_waits_and_gives_way_while_this_one_lives(
    ready: SqlStore, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = open_with_keys(store_url)
    looks = iter(BETWEEN)

    def try_another() -> None:
        """The other lives: each time that is looked for a sign of life, it has written a batch."""
        next(looks)
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(UnavailableError, match="release big of the same tenant") as no,
        ):
            pool.submit(publish, rival, "rival").result()
        assert no.value.code == "release_arriving"  # so the API says so, and not that it can't be reached
        assert no.value.retry_after_s == 30

    def alive(_seconds: float) -> None:
        with tampering(ready) as connection:
            connection.execute(schema.arrivals.update().values(batches=schema.arrivals.c.batches + 1))

    monkeypatch.setattr(arriving, "sleep", alive)
    with between(ready, monkeypatch, *BETWEEN, do=try_another):
        assert publish(ready) == PublishOutcome(3, ())
    assert publish(rival, "rival") == PublishOutcome(3, ())
    assert served(ready) == {person: f"rival-{person}" for person in PEOPLE}
    rival.close()


def test_what_nobody_goes_on_with_gives_way_to_the_next_release(
    ready: SqlStore, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(ready, "first")
    cut_off(ready, monkeypatch, TRANSACTIONS - 1, name="dead")
    next_one = open_with_keys(store_url)
    assert publish(next_one, "next") == PublishOutcome(3, ())
    next_one.close()
    assert served(ready) == {person: f"next-{person}" for person in PEOPLE}
    assert [one.id for one in ready.releases(TENANT) if one.id == "dead"] == []
    assert pointers(ready, "ann") == [("live", "next-ann", 2), ("previous", "first-ann")]
    assert [(one.action, one.object) for one in ready.audit_walk(TENANT)][-2:] == [
        ("release.give_up", "release dead"),
        ("release.publish", "release next"),
    ]


def test_who_was_taken_for_abandoned_begins_again(
    ready: SqlStore, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = open_with_keys(store_url)
    with between(ready, monkeypatch, 3, do=lambda: publish(hasty, "hasty")):
        assert publish(ready) == PublishOutcome(3, ())
    hasty.close()
    assert served(ready) == {person: f"big-{person}" for person in PEOPLE}
    assert pointers(ready, "ann") == [("live", "big-ann", 2), ("previous", "hasty-ann")]
    assert arrivals(ready) == 0


def test_releases_of_two_tenants_arrive_at_once(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.create_tenant("globex", at(0))
    for person in ("x", "y"):
        ready.change_subject("globex", person, ConsentChange(opted_in=True), at(0))
    theirs = [version(f"g-{person}", "g", person) for person in ("x", "y")]

    def publish_theirs() -> None:
        made = template(run="g", tenant="globex")
        assert ready.publish("g", made, theirs, at(5), **WHY) == PublishOutcome(2, ())

    with between(ready, monkeypatch, 3, do=publish_theirs):
        assert publish(ready) == PublishOutcome(3, ())
    user = ready.resolve("globex", "x", None).user
    assert user is not None
    assert user.id == "g-x"


# --- what nobody ends -------------------------------------------------------------------------------------------------


def test_garbage_collection_takes_what_nobody_ended(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(ready, "first")
    before = seen(ready)
    cut_off(ready, monkeypatch, 3)
    assert ready.garbage(TENANT, at(4)).versions == 0
    assert ready.collect(TENANT, at(4), LONG_AFTER, actor="admin").versions == 0
    assert arrivals(ready) == 1
    found = ready.garbage(TENANT, LONG_AFTER)
    assert (found.releases, found.versions) == (1, 2)
    assert found.bytes > 0
    assert ready.collect(TENANT, LONG_AFTER, LONG_AFTER, actor="admin") == found
    assert arrivals(ready) == 0
    with ready._database.reading(ALL_TENANTS) as connection:
        left = select(func.count()).where(schema.versions.c.release == "big")
        assert connection.scalar(left) == 0
    after = seen(ready)
    assert after.pop("audit")[:-1] == before.pop("audit")
    assert not differences(after, before)
    assert publish(ready) == PublishOutcome(3, ())


def test_garbage_collection_that_is_cut_off_is_ended_by_the_next_one(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(ready, monkeypatch, TRANSACTIONS - 1)

    def die() -> None:
        raise Crash

    with pytest.raises(Crash), between(ready, monkeypatch, 1, do=die):
        ready.collect(TENANT, LONG_AFTER, LONG_AFTER, actor="admin")
    assert publish(ready) == PublishOutcome(3, ())  # what was given up does not go on: it began again
    assert served(ready) == {person: f"big-{person}" for person in PEOPLE}
    assert len(ready.versions(TENANT, release="big")) == 3


def test_the_newest_three_of_many_releases_are_kept_and_older_revoked_ones_collected(ready: SqlStore) -> None:
    for number in range(4):
        publish(ready, f"big{number}")
    for number in range(4):
        ready.revoke_release(TENANT, f"big{number}", at(6), **WHY)
    collected = ready.collect(TENANT, LONG_AFTER, LONG_AFTER, actor="admin")
    assert (collected.releases, collected.versions) == (2, 6)
    left = {one.version.release for one in ready.versions(TENANT)}
    assert {"big2", "big3"} <= left  # live and previous
    assert not {"big0", "big1"} & left


# --- an older schema --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"arrivals_{abs(hash(tmp_path))}")


def test_a_database_goes_back_to_the_schema_before_with_what_has_arrived(
    own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepared(open_with_keys(own_url))
    publish(store, "first")
    publish(store, "second")
    before = seen(store)
    cut_off(store, monkeypatch, 3)
    with tampering(store) as connection:
        command.downgrade(alembic_config(connection), "0016")
    with tampering(store) as connection:
        command.upgrade(alembic_config(connection), "head")
    assert not differences(seen(store), before)
    assert publish(store) == PublishOutcome(3, ())
    store.close()


def test_an_arrival_that_began_under_the_schema_before_goes_on_under_this_one(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There each version's row named its key, and the release's none."""
    cut_off(ready, monkeypatch, 3)
    with tampering(ready) as connection:
        connection.execute(schema.versions.update().values(key_id="k" * 16))
        connection.execute(schema.releases.update().values(key_id=None))
    assert publish(ready) == PublishOutcome(3, ())
    assert [stored.version.key_id for stored in ready.versions(TENANT, release="big")] == ["k" * 16] * 3
