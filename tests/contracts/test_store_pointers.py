"""Moving pointers: promote, roll back, history, and who wins a race."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier

import pytest
from sqlalchemy import select
from store_samples import GLOBAL, TENANT, at, opt_in, publish_domain, publish_user, tampering, template, version

from idiolect.consent import ConsentChange
from idiolect.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError
from idiolect.registry.pointers import Adapter
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore, schema

ANN, CHAT = Adapter("user", "ann"), Adapter("domain", "chat")


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    opt_in(store, "ann")
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    return store


def served(store: Store, subject: str = "ann") -> str | None:
    user = store.resolve(TENANT, subject, None).user
    return None if user is None else user.id


def promote(store: Store, version_id: str, if_match: str | None = None) -> str | None:
    moved = store.promote(TENANT, version_id, at(9), reason="better", actor="admin", if_match=if_match)
    return moved.version


def rollback(store: Store, adapter: Adapter = ANN, if_match: str | None = None) -> str | None:
    return store.rollback(TENANT, adapter, at(9), reason="worse", actor="admin", if_match=if_match).version


def pointers(store: Store, adapter: Adapter = ANN) -> dict[str, str | None]:
    return {pointer.name: pointer.version for pointer in store.pointers(TENANT, adapter)}


def etag(store: Store, adapter: Adapter = ANN) -> str:
    return store.pointers(TENANT, adapter)[0].etag


def test_promoting_an_older_version_serves_it_and_remembers_what_was_live(ready: Store) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    assert promote(ready, "v1") == served(ready) == "v1"
    assert pointers(ready) == {"live": "v1", "previous": "v2"}


def test_rolling_back_serves_the_version_before(ready: Store) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    assert rollback(ready) == served(ready) == "v2"
    assert pointers(ready) == {"live": "v2", "previous": "v1"}
    assert rollback(ready) == served(ready) == "v1"
    assert pointers(ready) == {"live": "v1"}
    with pytest.raises(ConflictError, match="no previous version"):
        rollback(ready)
    assert served(ready) == "v1"


def test_a_version_that_was_rolled_back_never_returns_by_itself(ready: Store) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    rollback(ready)
    ready.revoke_release(TENANT, "r-v1", at(9), reason="bad", actor="admin")
    assert served(ready) is None


def test_a_version_that_was_rolled_back_can_be_promoted_again(ready: Store) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    rollback(ready)
    assert promote(ready, "v2") == served(ready) == "v2"
    ready.revoke_release(TENANT, "r-v2", at(9), reason="bad", actor="admin")
    assert served(ready) == "v1"


def test_the_next_publish_ends_a_rollback(ready: Store) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    rollback(ready)
    publish_user(ready, "v3")
    assert served(ready) == "v3"
    assert pointers(ready) == {"live": "v3", "previous": "v1"}


def test_domains_roll_back_too(ready: Store) -> None:
    for name in ("d1", "d2"):
        publish_domain(ready, name)
    assert rollback(ready, CHAT) == "d1"
    domain = ready.resolve(TENANT, None, "chat").domain
    assert domain is not None
    assert domain.id == "d1"


def test_the_history_says_who_moved_what_when_and_why(ready: Store) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name, minutes=1)
    rollback(ready)
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(10))
    moves = ready.pointer_history(TENANT, ANN)
    live = [(m.old_version, m.version, m.reason, m.actor) for m in moves if m.name == "live"]
    assert live == [
        ("v1", None, "reset x1", "subject"),
        ("v2", "v1", "worse", "admin"),
        ("v1", "v2", "trained", "trainer"),
        (None, "v1", "trained", "trainer"),
    ]
    assert ready.pointer_history(TENANT, ANN, limit=1) == moves[:1]
    assert ready.pointer_history(TENANT, ANN, before=moves[1].id) == moves[2:]
    assert ready.pointer_history("other", ANN) == []


@pytest.mark.parametrize("how", ["promote", "rollback"])
def test_a_revoked_version_is_never_made_live(ready: Store, how: str) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    ready.revoke_release(TENANT, "r-v1", at(1), reason="bad", actor="admin")
    with pytest.raises(ConflictError, match="revoked") as caught:
        promote(ready, "v1") if how == "promote" else rollback(ready)
    assert caught.value.code == "not_promotable"
    assert served(ready) == "v2"


@pytest.mark.parametrize("how", ["promote", "rollback"])
def test_a_quarantined_version_is_never_made_live(ready: Store, how: str) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    assert ready.quarantine(TENANT, "v1", "its norm is over the bound", at(1), actor="serving")
    with pytest.raises(ConflictError, match="over the bound"):
        promote(ready, "v1") if how == "promote" else rollback(ready)


def test_nothing_from_before_a_reset_is_ever_made_live(ready: SqlStore) -> None:
    """Even if a version of the old generation somehow lies there still: a restored backup, a late copy."""
    publish_user(ready, "v1")
    with tampering(ready) as connection:
        kept = connection.execute(select(schema.versions)).one()._asdict()
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(1))
    with pytest.raises(NotFoundError):
        promote(ready, "v1")
    with tampering(ready) as connection:
        connection.execute(schema.versions.insert(), kept)
    with pytest.raises(ConflictError, match="older than a reset"):
        promote(ready, "v1")
    assert ready.promote_release(TENANT, "r-v1", at(2), reason="back", actor="admin") == 0
    assert served(ready) is None


def test_who_opted_out_gets_nothing_back(ready: Store) -> None:
    publish_user(ready, "v1")
    ready.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(1))
    with pytest.raises(NotFoundError):
        promote(ready, "v1")
    with pytest.raises(NotFoundError):
        rollback(ready)


def test_a_version_of_another_global_model_is_not_made_live(ready: Store) -> None:
    publish_user(ready, "v1")
    publish_user(ready, "v2")
    ready.set_global("h" * 64, at(1), reason="new", actor="admin")
    with pytest.raises(ConflictError, match="another global model"):
        promote(ready, "v1")


def test_a_version_of_a_withdrawn_key_is_not_made_live(ready: Store) -> None:
    publish_user(ready, "v1")
    publish_user(ready, "v2")
    ready.withdraw_signing_key("k" * 16, at(1), reason="stolen", actor="admin")
    with pytest.raises(ConflictError, match="withdrawn"):
        promote(ready, "v1")


@pytest.mark.parametrize(("tenant", "name"), [("other", "v1"), (TENANT, "v9"), (TENANT, "")])
def test_what_is_not_the_tenants_does_not_exist(ready: Store, tenant: str, name: str) -> None:
    publish_user(ready, "v1")
    with pytest.raises(NotFoundError):
        ready.promote(tenant, name, at(1), reason="mine", actor="admin")
    with pytest.raises(NotFoundError):
        ready.rollback("other", ANN, at(1), reason="mine", actor="admin")
    with pytest.raises(NotFoundError):
        ready.promote_release("other", "r-v1", at(1), reason="mine", actor="admin")
    assert [(p.name, p.version, p.revision) for p in ready.pointers("other", ANN)] == [("live", None, 0)]


def test_an_expectation_that_is_out_of_date_changes_nothing(ready: Store) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    old = etag(ready)
    promote(ready, "v1", old)
    for move in (
        lambda: promote(ready, "v2", old),
        lambda: rollback(ready, ANN, old),
        lambda: promote(ready, "v2", ""),
    ):
        with pytest.raises(PreconditionError):
            move()
    assert served(ready) == "v1"
    assert promote(ready, "v2", etag(ready)) == "v2"


def test_an_etag_from_before_a_reset_never_matches_again(ready: Store) -> None:
    publish_user(ready, "v1")
    old = etag(ready)
    generation = ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(1)).generation
    publish_user(ready, "v2", generation=generation)
    assert [p.revision for p in ready.pointers(TENANT, ANN)] == [1]
    with pytest.raises(PreconditionError):
        rollback(ready, ANN, old)


@pytest.mark.parametrize("adapter_id", ["", "ann", "user:", ":ann", "release:x", "USER:ann"])
def test_an_adapters_id_is_checked(adapter_id: str) -> None:
    with pytest.raises(InvalidInputError):
        Adapter.parse(adapter_id)


def test_an_adapters_id_comes_back_as_it_was() -> None:
    for adapter in (ANN, CHAT):
        assert Adapter.parse(adapter.id) == adapter


def test_adapters_are_listed_page_by_page(ready: Store) -> None:
    opt_in(ready, "bob")
    publish_user(ready, "v2", "bob")
    publish_user(ready, "v1", "ann")
    publish_domain(ready, "d1")
    publish_domain(ready, "d2", "code")
    found = [adapter.id for adapter, _ in ready.adapters(TENANT)]
    assert found == ["domain:chat", "domain:code", "user:ann", "user:bob"]
    for place, name in enumerate(found):
        assert [adapter.id for adapter, _ in ready.adapters(TENANT, after=name)] == found[place + 1 :]
    assert [pointer.version for _, pointer in ready.adapters(TENANT, limit=2)] == ["d1", "d2"]


def publish(store: Store, release: str, people: list[str], **fields: str) -> None:
    versions = [version(f"{release}-{person}", release, person) for person in people]
    store.publish(release, template(**fields), versions, at(0), reason="trained", actor="trainer")


def test_promoting_a_release_moves_everyone_who_may_be_moved(ready: Store) -> None:
    people = [f"p{number}" for number in range(6)]
    opt_in(ready, *people)
    for release in ("r1", "r2"):
        publish(ready, release, people)
    ready.apply_reset(TENANT, "p0", "x1", plan_reset("adapter"), at(1))
    ready.quarantine(TENANT, "r1-p1", "NaN", at(1), actor="serving")
    promote(ready, "r1-p2")
    before = ready.audit_head(TENANT).seq
    assert ready.promote_release(TENANT, "r1", at(2), reason="r2 is worse", actor="admin") == 3
    assert ready.audit_head(TENANT).seq == before + 1
    assert [served(ready, person) for person in people] == [None, "r2-p1", "r1-p2", "r1-p3", "r1-p4", "r1-p5"]
    assert pointers(ready, Adapter("user", "p3")) == {"live": "r1-p3", "previous": "r2-p3"}
    assert rollback(ready, Adapter("user", "p3")) == "r2-p3"
    last = ready.pointer_history(TENANT, Adapter("user", "p4"))[0]
    assert (last.old_version, last.version, last.reason) == ("r2-p4", "r1-p4", "r2 is worse")
    assert ready.promote_release(TENANT, "r1", at(2), reason="again", actor="admin") == 1  # p3 was rolled back


def test_promoting_a_release_lets_rolled_back_versions_serve_again(ready: Store) -> None:
    for release in ("r1", "r2"):
        publish(ready, release, ["ann"])
    rollback(ready)
    assert ready.promote_release(TENANT, "r2", at(2), reason="fine", actor="admin") == 1
    assert served(ready) == "r2-ann"


def test_a_release_that_may_not_be_live_is_refused_whole(ready: Store) -> None:
    publish(ready, "r1", ["ann"])
    publish(ready, "r2", ["ann"])
    ready.revoke_release(TENANT, "r1", at(1), reason="bad", actor="admin")
    with pytest.raises(ConflictError, match="revoked"):
        ready.promote_release(TENANT, "r1", at(2), reason="back", actor="admin")
    with pytest.raises(NotFoundError):
        ready.promote_release(TENANT, "r9", at(2), reason="back", actor="admin")
    assert served(ready) == "r2-ann"


def test_of_32_writers_on_one_pointer_exactly_one_wins_each_generation(ready: Store) -> None:
    for name in ("v0", "v1"):
        publish_user(ready, name)
    barrier = Barrier(32)

    def write(_worker: int) -> list[int]:
        won: list[int] = []
        for _ in range(3):
            seen = ready.pointers(TENANT, ANN)[0]
            target = "v0" if seen.version == "v1" else "v1"
            barrier.wait()
            try:
                moved = ready.promote(TENANT, target, at(5), reason="race", actor="admin", if_match=seen.etag)
                won.append(moved.revision)
            except PreconditionError:
                pass
            barrier.wait()
        return won

    with ThreadPoolExecutor(32) as pool:
        won = sorted(revision for one in pool.map(write, range(32)) for revision in one)
    assert won == [3, 4, 5]
    assert ready.pointers(TENANT, ANN)[0].revision == 5
    moves = [move for move in ready.pointer_history(TENANT, ANN) if move.name == "live"][:3]
    assert all(newer.old_version == older.version for newer, older in pairwise(moves))
