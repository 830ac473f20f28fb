"""The history of pointers, most of which a release says for all its people at once: it reads as if each move had an
entry of its own, whatever is deleted."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from postgres_server import PostgresServer
from sqlalchemy import func, select
from store_samples import GLOBAL, TENANT, at, opt_in, publish_user, tampering, template, version

from idiolect.errors import ConflictError, NotFoundError
from idiolect.registry.pointers import Adapter, PointerMove
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.upgrading import alembic_config
from people_keys import open_with_keys

PEOPLE = ("ann", "bob", "cleo")
Move = tuple[str, str | None, str | None, str]
History = dict[str, list[Move]]


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    return furnished(store)


def furnished(store: SqlStore) -> SqlStore:
    store.create_tenant(TENANT, at(0))
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, *PEOPLE)
    return store


def told(store: SqlStore, person: str) -> list[PointerMove]:
    """Oldest first, read in small pages."""
    found: list[PointerMove] = []
    while page := store.pointer_history(
        TENANT, Adapter("user", person), before=found[-1].id if found else None, limit=3
    ):
        found += page
    return found[::-1]


def short(moves: list[PointerMove]) -> list[Move]:
    return [(move.name, move.old_version, move.version, move.reason) for move in moves]


def live(store: SqlStore, person: str) -> dict[str, str | None]:
    return {pointer.name: pointer.version for pointer in store.pointers(TENANT, Adapter("user", person))}


def act(store: SqlStore, rng: random.Random, number: int) -> str:
    """Something that moves pointers, or makes versions go; its reason."""
    person, reason = rng.choice(PEOPLE), f"move {number}"
    kind = rng.choice(
        ["publish", "publish", "publish staged", "promote", "promote all", "rollback", "revoke", "reset", "collect"]
    )
    why = {"reason": reason, "actor": "admin"}
    try:
        if kind.startswith("publish"):
            some = rng.sample(PEOPLE, rng.randint(1, len(PEOPLE)))
            made = [
                version(
                    f"{number}-{one}",
                    f"r{number}",
                    one,
                    generation=store.subject(TENANT, one).generation,
                    parent=rng.choice([live(store, one)["live"], "elsewhere", None]),
                )
                for one in some
            ]
            store.publish(f"r{number}", template(), made, at(number), **why, staged=kind.endswith("staged"))
        elif kind == "promote":
            store.promote(TENANT, rng.choice(store.versions(TENANT, subject=person)).version.id, at(number), **why)
        elif kind == "promote all":
            store.promote_release(TENANT, rng.choice(store.releases(TENANT)).id, at(number), **why)
        elif kind == "rollback":
            store.rollback(TENANT, Adapter("user", person), at(number), **why)
        elif kind == "revoke":
            store.revoke_release(TENANT, rng.choice(store.releases(TENANT)).id, at(number), **why)
        elif kind == "reset":
            store.apply_reset(TENANT, person, f"x{number}", plan_reset("adapter"), at(number))
            return f"reset x{number}"
        else:
            store.collect(TENANT, at(number), at(number), actor="admin")
    except (ConflictError, NotFoundError, IndexError):
        pass
    return reason


@pytest.mark.parametrize("seed", range(4))
def test_every_move_is_told_once_in_order_whatever_was_deleted_since(ready: SqlStore, seed: int) -> None:
    rng = random.Random(seed)
    expected: History = defaultdict(list)
    for number in range(1, 40):
        before = {person: live(ready, person) for person in PEOPLE}
        reason = act(ready, rng, number)
        for person in PEOPLE:
            after = live(ready, person)
            gone = reason.startswith("reset") and after["live"] is None
            for name, old in before[person].items():
                if old != after.get(name) and (name == "live" or gone):
                    expected[person].append((name, old, after.get(name), reason))
    for person in PEOPLE:
        assert sorted(short(told(ready, person)), key=str) == sorted(expected[person], key=str)
        in_order = [move for move in short(told(ready, person)) if move[0] == "live"]
        assert in_order == [move for move in expected[person] if move[0] == "live"]
        page = ready.person_page(TENANT, person, "live").rows
        assert [(row["pointer"], row["from"], row["to"], row["reason"]) for row in page] == short(told(ready, person))


def test_a_release_is_one_entry_however_many_people_it_moves(ready: SqlStore) -> None:
    made = [version(f"v-{person}", "r", person) for person in PEOPLE]
    ready.publish("r", template(), made, at(1), reason="r", actor="a")
    with ready._database.reading(ALL_TENANTS) as connection:
        assert connection.scalar(select(func.count()).select_from(schema.pointer_history)) == 1
    for person in PEOPLE:
        assert short(told(ready, person)) == [("live", None, f"v-{person}", "r")]
    assert ready.pointer_history(TENANT, Adapter("domain", "chat")) == []


def test_what_was_live_within_the_time_that_is_kept_is_not_collected(ready: SqlStore) -> None:
    """Also where only the version that replaced it says so."""
    for number, name in enumerate(("v1", "v2", "v3", "v4"), 1):
        publish_user(ready, name, minutes=number)
    for name in ("v1", "v2"):
        ready.revoke_release(TENANT, f"r-{name}", at(2.5), reason="bad", actor="admin")
    late = at(0) + timedelta(days=90)
    assert ready.garbage(TENANT, at(2.6)).versions == 1
    ready.collect(TENANT, at(2.6), late, actor="admin")
    assert [stored.version.id for stored in ready.versions(TENANT)] == ["v2", "v3", "v4"]
    ready.collect(TENANT, at(3.1), late, actor="admin")
    assert [stored.version.id for stored in ready.versions(TENANT)] == ["v3", "v4"]
    assert [move[1:3] for move in short(told(ready, "ann"))] == [
        (None, "v1"),
        ("v1", "v2"),
        ("v2", "v3"),
        ("v3", "v4"),
    ]


@pytest.fixture(params=["sqlite", "postgres"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"own_{abs(hash(tmp_path))}")


def test_an_older_schema_gets_an_entry_for_each_and_the_way_up_again_keeps_them(own_url: str) -> None:
    ready, rng = furnished(open_with_keys(own_url)), random.Random(7)
    for number in range(1, 25):
        act(ready, rng, number)
    before = {person: short(told(ready, person)) for person in PEOPLE}
    assert all(before.values())
    with tampering(ready) as connection:
        command.downgrade(alembic_config(connection), "0015")
    with tampering(ready) as connection:
        command.upgrade(alembic_config(connection), "head")
    assert {person: short(told(ready, person)) for person in PEOPLE} == before
    publish_user(ready, "after", generation=ready.subject(TENANT, "ann").generation, minutes=99)
    assert short(told(ready, "ann"))[-1] == ("live", before["ann"][-1][2], "after", "trained")
    ready.close()
