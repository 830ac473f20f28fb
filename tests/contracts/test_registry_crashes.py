"""A crash between every two writes of everything that changes the registry: nothing of the change is there, and it can
be done again as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from crashes import Crash, crashing, listening, writes_of
from store_samples import (
    EVENT,
    GLOBAL,
    TENANT,
    at,
    give_feedback,
    opt_in,
    publish_domain,
    publish_user,
    template,
    version,
)

from idiolect.audit import verify
from idiolect.consent import ConsentChange
from idiolect.registry.manifest import manifest_bytes
from idiolect.registry.pointers import Adapter
from idiolect.registry.portable import dump_release
from idiolect.registry.signing import Signer
from idiolect.resets.plan import plan_reset
from idiolect.rollouts.plan import Candidate, Plan
from idiolect.stores.sql import SqlStore, garbage
from idiolect_services.release_transfer import import_release

WHY: dict[str, Any] = {"reason": "r", "actor": "a"}
ANN = Adapter("user", "ann")
PEOPLE = ("ann", "bob", "cleo")
SIGNER = Signer(b"\x01" * 32)


def release(store: SqlStore, name: str, **more: Any) -> object:
    """Of everybody."""
    versions = [version(f"{name}-{person}", name, person) for person in PEOPLE]
    return store.publish(name, template(run=name), versions, at(2), **WHY, **more)


def imported(store: SqlStore) -> object:
    made, one = template(run="r8"), version("v8", "r8", "ann", key_id=SIGNER.key_id)
    signed = replace(one, signature=SIGNER.sign(manifest_bytes(made, one)))
    content = b"".join(dump_release("r8", made, [signed], SIGNER, at(2)))
    return import_release(store, SIGNER, TENANT, BytesIO(content), at(3), **WHY)


def trial(store: SqlStore) -> object:
    return store.create_rollout(
        TENANT, Candidate("setting", strength=0.5), Plan(steps=(0.5,)), at(3), **WHY, start=True
    )


CHANGES: dict[str, Callable[[SqlStore], object]] = {
    "reserve": lambda store: store.reserve(TENANT, "comparison", "training", EVENT, list(PEOPLE), 10.0, at(2)),
    "settle": lambda store: store.settle(TENANT, store.runs(TENANT)[0].id, at(2)),
    "mark trained": lambda store: store.mark_trained(TENANT, PEOPLE, at(2)),
    "publish": lambda store: release(store, "r9"),
    "publish for one": lambda store: publish_user(store, "v9"),
    "publish staged": lambda store: release(store, "r9", staged=True),
    "publish a domain's": lambda store: publish_domain(store, "d9", minutes=3),
    "promote": lambda store: store.promote(TENANT, "v1", at(3), **WHY),
    "promote a release": lambda store: store.promote_release(TENANT, "first", at(3), **WHY),
    "roll back": lambda store: store.rollback(TENANT, ANN, at(3), **WHY),
    "revoke": lambda store: store.revoke_release(TENANT, "second", at(3), **WHY),
    "quarantine": lambda store: store.quarantine(TENANT, "v1", "bad", at(3), actor="serving"),
    "withdraw a key": lambda store: store.withdraw_signing_key("k" * 16, at(3), **WHY),
    "set the global model": lambda store: store.set_global("f" * 64, at(3), **WHY),
    "reset": lambda store: store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(3)),
    "erase": lambda store: store.apply_reset(TENANT, "ann", "x1", plan_reset("erasure"), at(3)),
    "opt out": lambda store: store.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(3)),
    "collect": lambda store: store.collect(TENANT, at(90), at(90), actor="a"),
    "import": imported,
    "start a rollout": trial,
}


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    store.create_tenant(TENANT, at(0))
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, *PEOPLE)
    give_feedback(store)
    store.reserve(TENANT, "comparison", "training", EVENT, list(PEOPLE), 10.0, at(0))
    publish_user(store, "v0")
    release(store, "first")
    publish_user(store, "v1")
    release(store, "second")
    publish_domain(store, "d1")
    store.revoke_release(TENANT, "r-v0", at(2), **WHY)
    return store


def everything(store: SqlStore) -> dict[str, list[Any]]:
    with store.snapshot() as found:
        return {name: sorted(map(list, found.rows(name)), key=repr) for name in found.columns}


@pytest.mark.parametrize("name", CHANGES)
def test_a_crash_at_any_write_leaves_nothing_and_the_change_can_be_made_again(ready: SqlStore, name: str) -> None:
    before = everything(ready)
    points = 0
    while True:
        with pytest.raises(Crash) as crash, crashing(ready, points):
            CHANGES[name](ready)
        assert everything(ready) == before, f"after {points} writes"
        if str(crash.value) == "commit":
            break
        points += 1
    assert points >= 2
    assert writes_of(ready, lambda: CHANGES[name](ready)) >= points
    assert everything(ready) != before
    assert verify(ready.audit_walk(TENANT), ready.audit_head(TENANT)).broken is None


def test_collecting_goes_on_where_a_crash_stopped_it(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It commits batch by batch; a reachable version is in none of them."""
    monkeypatch.setattr(garbage, "BATCH", 1)
    late = at(0) + timedelta(days=90)
    for made in ("first", "second"):
        ready.revoke_release(TENANT, made, at(3), **WHY)
    for person in PEOPLE:
        for number in range(2):
            publish_user(ready, f"{person}-{number}", person, minutes=4)
    dead = {one.version.id for one in ready.versions(TENANT) if one.revoked}
    left = ready.garbage(TENANT, late).versions
    assert left == len(dead)
    for _ in range(left - 1):
        with pytest.raises(Crash), crashing_in_the_second_batch(ready):
            ready.collect(TENANT, late, late, actor="a")
        left -= 1
        assert ready.garbage(TENANT, late).versions == left
    assert ready.collect(TENANT, late, late, actor="a").versions == 1
    assert not dead & {one.version.id for one in ready.versions(TENANT)}
    assert all(ready.resolve(TENANT, person, None).user is not None for person in PEOPLE)


def crashing_in_the_second_batch(store: SqlStore) -> Any:
    deletes = 0

    def write(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        nonlocal deletes
        if statement.lstrip().startswith("DELETE FROM versions"):
            deletes += 1
            if deletes == 2:
                raise Crash(statement)

    return listening(store, before_cursor_execute=write)
