"""Quarantined versions, withdrawn signing keys, lineage, and a stored template that somebody edited."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text
from store_samples import EVENT, GLOBAL, TENANT, at, opt_in, publish_domain, publish_user, tampering, template, version

from idiolect.errors import CorruptArtifactError
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    opt_in(store, "ann")
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    return store


def served(store: Store, subject: str | None = "ann", domain: str | None = "chat") -> tuple[str | None, str | None]:
    resolution = store.resolve(TENANT, subject, domain)
    return (resolution.domain and resolution.domain.id, resolution.user and resolution.user.id)


def quarantine(store: Store, version_id: str, tenant: str = TENANT) -> bool:
    return store.quarantine(tenant, version_id, "its norm is over the bound", at(5), actor="serving")


def test_a_quarantined_version_is_resolved_no_more_and_the_one_before_is(ready: Store) -> None:
    for name in ("v1", "v2"):
        publish_user(ready, name)
    for name in ("d1", "d2"):
        publish_domain(ready, name)
    assert quarantine(ready, "v2")
    assert quarantine(ready, "d2")
    assert served(ready) == ("d1", "v1")
    assert quarantine(ready, "v1")
    assert quarantine(ready, "d1")
    assert served(ready) == (None, None)
    assert ready.resolve(TENANT, "ann", None).user_withheld


def test_a_quarantine_says_why_and_is_recorded_once(ready: Store) -> None:
    publish_user(ready, "v1")
    assert quarantine(ready, "v1")
    assert not quarantine(ready, "v1")
    stored = ready.version(TENANT, "v1")
    assert stored is not None
    assert stored.withheld == "quarantined: its norm is over the bound"
    entry = ready.audit_entries(TENANT, limit=1)[0]
    assert (entry.action, entry.object, entry.reason, entry.actor) == (
        "version.quarantine",
        "version v1",
        "its norm is over the bound",
        "serving",
    )


def test_what_does_not_exist_is_not_quarantined(ready: Store) -> None:
    publish_user(ready, "v1")
    assert not quarantine(ready, "v9")
    assert not quarantine(ready, "v1", "other")
    assert served(ready) == (None, "v1")


def test_a_new_version_ends_what_a_quarantine_began(ready: Store) -> None:
    publish_user(ready, "v1")
    quarantine(ready, "v1")
    publish_user(ready, "v2")
    assert served(ready) == (None, "v2")
    assert not ready.resolve(TENANT, "ann", None).user_withheld


def publish_signed(store: Store, name: str, key_id: str) -> None:
    of_ann = version(name, f"r-{name}", "ann", key_id=key_id)
    store.publish(f"r-{name}", template(), [of_ann], at(0), reason="trained", actor="trainer")


def test_versions_of_a_withdrawn_key_are_resolved_no_more_and_those_of_others_are(ready: Store) -> None:
    publish_signed(ready, "v1", "1" * 16)
    publish_signed(ready, "v2", "2" * 16)
    publish_signed(ready, "v3", "2" * 16)
    assert ready.withdraw_signing_key("2" * 16, at(1), reason="stolen", actor="admin") == 2
    assert served(ready) == (None, "v1")
    stored = ready.version(TENANT, "v3")
    assert stored is not None
    assert stored.withheld == "the key that signed it was withdrawn"
    assert ready.withdrawn_signing_keys() == ["2" * 16]
    assert ready.withdraw_signing_key("2" * 16, at(2), reason="again", actor="admin") == 2


def run(store: Store, unit: str, purpose: str, people: list[str]) -> str:
    return store.reserve(TENANT, unit, purpose, EVENT, people, 100.0, at(0)).run  # type: ignore[arg-type]


def test_a_persons_data_is_followed_to_every_version_that_may_hold_it(ready: Store) -> None:
    opt_in(ready, "bob")
    chat, code = run(ready, "subject", "domain chat", ["ann", "bob"]), run(ready, "subject", "domain code", ["bob"])
    users = run(ready, "comparison", "user adapters", ["ann", "bob"])
    publish_domain(ready, "d1", "chat", run=chat, minutes=1)
    publish_domain(ready, "d2", "code", run=code, minutes=2)
    both = [version(f"v-{person}", "r1", person) for person in ("ann", "bob")]
    ready.publish("r1", template(run=users), both, at(3), reason="trained", actor="trainer")
    ready.revoke_release(TENANT, "r-d1", at(4), reason="bad", actor="admin")
    found = ready.contributions(TENANT, "ann")
    assert [(c.version, c.via, c.domain, c.revoked) for c in found] == [
        ("d1", "ledger", "chat", True),
        ("v-ann", "own", None, False),
    ]
    assert [c.version for c in ready.contributions(TENANT, "bob")] == ["d1", "d2", "v-bob"]
    assert ready.contributions(TENANT, "zoe") == []
    assert ready.contributions("other", "ann") == []


def test_after_a_reset_the_shared_versions_are_still_named(ready: Store) -> None:
    chat = run(ready, "subject", "domain chat", ["ann"])
    publish_domain(ready, "d1", "chat", run=chat)
    publish_user(ready, "v1")
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(1))
    assert [c.version for c in ready.contributions(TENANT, "ann")] == ["d1"]


def test_a_version_is_followed_back_to_its_run_data_and_parents(ready: Store) -> None:
    users = run(ready, "comparison", "user adapters", ["ann"])
    for name, parent in (("v1", None), ("v2", "v1"), ("v3", "v2")):
        of_ann = version(name, f"r-{name}", "ann", parent=parent)
        ready.publish(f"r-{name}", template(run=users), [of_ann], at(0), reason="trained", actor="trainer")
    found = ready.version_lineage(TENANT, "v3")
    assert found is not None
    assert (found.run, found.purpose, found.accounts) == (users, "user adapters", 1)
    assert (found.adapter, found.data_window, found.parents) == ("user:ann", "all", ("v2", "v1"))
    assert ready.version_lineage("other", "v3") is None


@pytest.mark.parametrize("damage", ["privacy", "rank", "tensors", "created_at"])
def test_an_edited_template_is_named_with_the_mend(ready: SqlStore, damage: str) -> None:
    publish_user(ready, "v1")
    edited = template().to_json()
    del edited[damage]
    with tampering(ready) as connection:
        connection.execute(text("UPDATE releases SET template = :t"), {"t": json.dumps(edited)})
    for read in (
        lambda: ready.releases(TENANT),
        lambda: ready.release(TENANT, "r-v1"),
        lambda: ready.version(TENANT, "v1"),
        lambda: ready.versions(TENANT),
    ):
        with pytest.raises(CorruptArtifactError, match=rf"release r-v1 .*'{damage}'") as caught:
            read()
        assert caught.value.mend
    ready.revoke_release(TENANT, "r-v1", at(1), reason="damaged", actor="admin")
    assert served(ready) == (None, None)


@pytest.mark.parametrize("text_of_it", ["", "[]", "null", "{", '{"privacy": 3}', '{"tenant": "acme", "tensors": 1}'])
def test_a_template_that_is_no_template_is_named(ready: SqlStore, text_of_it: str) -> None:
    publish_user(ready, "v1")
    with tampering(ready) as connection:
        connection.execute(text("UPDATE releases SET template = :t"), {"t": text_of_it})
    with pytest.raises(CorruptArtifactError, match="release r-v1"):
        ready.releases(TENANT)
