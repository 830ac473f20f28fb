"""What is collected, what never is, and that nobody has to stop for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Event

import pytest
from sqlalchemy import func, select
from store_samples import EVENT, GLOBAL, TENANT, at, opt_in, publish_domain, publish_user, template, version
from test_store_races import at_once

from idiolect.registry.garbage import Garbage
from idiolect.registry.pointers import Adapter
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS

LATER = at(0) + timedelta(days=60)
CUTOFF = LATER - timedelta(days=30)
NOTHING = Garbage(0, 0, 0)


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    opt_in(store, "ann")
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    return store


def collect(store: SqlStore) -> Garbage:
    dry = store.garbage(TENANT, CUTOFF)
    done = store.collect(TENANT, CUTOFF, LATER, actor="admin")
    assert dry == done
    return done


def ids(store: SqlStore) -> list[str]:
    return [stored.version.id for stored in store.versions(TENANT, limit=1000)]


def revoke(store: SqlStore, release: str, minutes: float = 1) -> None:
    store.revoke_release(TENANT, release, at(minutes), reason="bad", actor="admin")


def test_old_versions_of_revoked_releases_that_no_pointer_names_go(ready: SqlStore) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    revoke(ready, "r-v1")
    size = 4 * 8 + 45 + 64  # the sealed numbers, and the signature
    assert collect(ready) == Garbage(1, 1, size)
    assert ids(ready) == ["v2", "v3"]
    assert collect(ready) == NOTHING
    user = ready.resolve(TENANT, "ann", None).user
    assert user is not None
    assert user.id == "v3"


def test_counting_deletes_nothing(ready: SqlStore) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    revoke(ready, "r-v1")
    before = ready.audit_head(TENANT)
    assert ready.garbage(TENANT, CUTOFF).versions == 1
    assert ids(ready) == ["v1", "v2", "v3"]
    assert ready.audit_head(TENANT) == before


def test_what_a_pointer_names_stays_also_if_it_is_revoked(ready: SqlStore) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    revoke(ready, "r-v1")
    revoke(ready, "r-v2")
    assert collect(ready) == NOTHING
    assert ids(ready) == ["v1", "v2"]


def test_what_is_not_revoked_stays_for_ever(ready: SqlStore) -> None:
    for number in range(5):
        publish_user(ready, f"v{number}")
        publish_domain(ready, f"d{number}")
    assert collect(ready) == NOTHING


def test_what_was_revoked_or_moved_within_the_retention_stays(ready: SqlStore) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    days = timedelta(days=1) / timedelta(minutes=1)
    revoke(ready, "r-v1", 40 * days)
    assert collect(ready) == NOTHING
    publish_user(ready, "v4", minutes=40 * days)  # moves the pointer from v3
    publish_user(ready, "v5", minutes=40 * days)
    publish_user(ready, "v6", minutes=40 * days)
    revoke(ready, "r-v3")
    assert collect(ready) == NOTHING
    assert ready.garbage(TENANT, LATER).versions == 2


def test_what_a_running_reservation_published_stays(ready: SqlStore) -> None:
    days = timedelta(days=1) / timedelta(minutes=1)
    running = ready.reserve(TENANT, "comparison", "user adapters", EVENT, ["ann"], 99.0, at(50 * days)).run
    crashed = ready.reserve(TENANT, "comparison", "user adapters", EVENT, ["ann"], 99.0, at(50 * days)).run
    ready.settle(TENANT, crashed, at(51 * days))
    publish_user(ready, "v1", run=running)
    publish_user(ready, "v2", run=crashed)
    for name in ("v3", "v4"):
        publish_user(ready, name)
    revoke(ready, "r-v1")
    revoke(ready, "r-v2")
    collect(ready)
    assert ids(ready) == ["v1", "v3", "v4"]


def test_a_replayed_publish_does_not_bring_a_collected_release_back(ready: SqlStore) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    revoke(ready, "r-v1")
    collect(ready)
    publish_user(ready, "v1")
    assert ids(ready) == ["v2", "v3"]
    summary = ready.release(TENANT, "r-v1")
    assert summary is not None
    assert summary.revoked


def test_collecting_is_audited_and_stays_with_its_tenant(ready: SqlStore) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    revoke(ready, "r-v1")
    assert ready.collect("other", CUTOFF, LATER, actor="admin") == NOTHING
    collect(ready)
    entry = ready.audit_entries(TENANT, limit=1)[0]
    assert (entry.action, entry.actor) == ("registry.gc", "admin")
    assert '"r-v1"' in entry.details


def test_large_garbage_goes_in_batches(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idiolect.stores.sql.garbage.BATCH", 7)
    people = [f"p{number:02}" for number in range(20)]
    opt_in(ready, *people)
    for release in ("r1", "r2", "r3"):
        versions = [version(f"{release}-{person}", release, person) for person in people]
        ready.publish(release, template(), versions, at(0), reason="trained", actor="trainer")
    revoke(ready, "r1")
    found = ready.collect(TENANT, CUTOFF, LATER, actor="admin")
    assert (found.releases, found.versions) == (1, 20)
    assert len(ids(ready)) == 40


def test_models_that_anything_is_bound_to_are_named(ready: SqlStore) -> None:
    publish_user(ready, "v1", global_digest="h" * 64)
    ready.set_global("i" * 64, at(1), reason="new", actor="admin")
    assert ready.referenced_models() == ["g" * 64, "h" * 64, "i" * 64]


def test_publishers_revokers_and_readers_go_on_while_garbage_is_collected(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idiolect.stores.sql.garbage.BATCH", 3)
    done = Event()

    def publish() -> None:
        try:
            for number in range(25):
                publish_user(ready, f"v{number:02}")
                if number % 2:
                    revoke(ready, f"r-v{number:02}")
        finally:
            done.set()

    def gather() -> int:
        count = 0
        while not done.is_set():
            count += ready.collect(TENANT, CUTOFF, LATER, actor="admin").versions
        return count + ready.collect(TENANT, CUTOFF, LATER, actor="admin").versions

    def read() -> None:
        seen = False
        while not done.is_set():
            user = ready.resolve(TENANT, "ann", None).user
            assert user is not None or not seen, "what was served before is gone"
            seen = seen or user is not None

    calls: list[Callable[[], object]] = [publish, gather, gather, read]
    results = at_once(*calls)
    assert results[0] is None
    assert results[3] is None
    left = ids(ready)
    # Of 12 revoked ones, `previous` still names the last.
    assert results[1] + results[2] == 11
    assert left == sorted([f"v{number:02}" for number in range(0, 25, 2)] + ["v23"])
    pointed = {p.version for p in ready.pointers(TENANT, Adapter("user", "ann"))}
    assert pointed <= set(left)
    with ready._database.reading(ALL_TENANTS) as connection:
        assert connection.scalar(select(func.count()).select_from(schema.releases)) == 25
