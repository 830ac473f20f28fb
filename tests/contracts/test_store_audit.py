"""What is written into the audit log, that it can't be changed, and that writers don't trip over each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alembic import command
from postgres_server import PostgresServer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from store_samples import (
    EVENT,
    GLOBAL,
    OPTED_IN,
    TENANT,
    at,
    dataset,
    give_feedback,
    opt_in,
    pairs,
    publish_domain,
    publish_user,
    shown,
    tampering,
    template,
    version,
)
from test_store_races import at_once

from idiolect.audit import INSTALLATION, AuditEvent, Head, verify
from idiolect.consent import ConsentChange
from idiolect.errors import PreconditionError
from idiolect.registry.pointers import Adapter
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore
from idiolect.stores.sql.upgrading import alembic_config
from idiolect.tenancy import Scope
from people_keys import open_with_keys


def actions(store: Store, tenant: str = TENANT) -> list[str]:
    return [entry.action for entry in reversed(store.audit_entries(tenant, limit=1000))]


def holds(store: Store, tenant: str = TENANT, expected: Head | None = None) -> bool:
    return verify(store.audit_walk(tenant), store.audit_head(tenant), expected).broken is None


def test_every_administrative_change_is_one_entry_in_its_chain(store: Store) -> None:
    store.create_tenant(TENANT, at(0))
    key = store.create_key(TENANT, [Scope.INFER], b"hash", at(0))
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    store.import_dataset(TENANT, dataset(adaptation=pairs("bob", 1)), OPTED_IN, at(0))
    opt_in(store, "ann")
    run = store.reserve(TENANT, "comparison", "user adapters", EVENT, ["ann"], 10.0, at(1)).run
    publish_user(store, "v1", run=run)
    store.settle(TENANT, run, at(2))
    publish_user(store, "v2")
    store.rollback(TENANT, Adapter("user", "ann"), at(3), reason="worse", actor="admin")
    store.promote(TENANT, "v2", at(3), reason="better after all", actor="admin")
    store.quarantine(TENANT, "v2", "norm", at(3), actor="serving")
    store.revoke_release(TENANT, "r-v2", at(4), reason="bad", actor="admin")
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(5))
    store.revoke_key(key.id, at(6))
    store.withdraw_signing_key("k" * 16, at(7), reason="lost", actor="admin")
    assert actions(store) == [
        "api_key.create",
        "dataset.import",
        "consent.change",
        "ledger.reserve",
        "release.publish",
        "ledger.settle",
        "release.publish",
        "pointer.rollback",
        "pointer.promote",
        "version.quarantine",
        "release.revoke",
        "reset",
        "api_key.revoke",
    ]
    assert actions(store, INSTALLATION) == ["tenant.create", "global.set", "signing_key.withdraw"]
    assert holds(store)
    assert holds(store, INSTALLATION)
    assert store.audit_chains() == [INSTALLATION, TENANT]


def test_an_entry_says_who_what_when_and_why(store: Store) -> None:
    publish_domain(store, "d1")
    store.revoke_release(TENANT, "r-d1", at(9), reason="hurts recall", actor="api key 7")
    entry = store.audit_entries(TENANT, limit=1)[0]
    assert (entry.actor, entry.action, entry.object, entry.reason, entry.at) == (
        "api key 7",
        "release.revoke",
        "release r-d1",
        "hurts recall",
        at(9),
    )


def test_a_release_of_many_is_one_entry(store: Store) -> None:
    people = [f"p{number:03}" for number in range(300)]
    store.import_dataset(TENANT, dataset(adaptation=tuple(p for n in people for p in pairs(n, 1))), OPTED_IN, at(0))
    before = store.audit_head(TENANT).seq
    versions = [version(f"v-{person}", "r1", person) for person in people]
    store.publish("r1", template(), versions, at(1), reason="trained", actor="trainer")
    assert store.audit_head(TENANT).seq == before + 1
    details = json.loads(store.audit_entries(TENANT, limit=1)[0].details)
    assert (details["versions"], details["fenced"]) == (300, 0)


def test_the_hot_path_writes_none(store: Store) -> None:
    opt_in(store, "ann")
    before = store.audit_head(TENANT)
    store.resolve(TENANT, "ann", "chat")
    shown(store, "i1")
    give_feedback(store)
    assert store.audit_head(TENANT) == before


def test_what_changes_nothing_writes_none(store: Store) -> None:
    for minutes in range(3):
        store.create_tenant(TENANT, at(minutes))
        store.set_global(GLOBAL, at(minutes), reason="again", actor="admin")
        publish_domain(store, "d1")
        store.promote(TENANT, "d1", at(minutes), reason="is live", actor="admin")
        store.revoke_release(TENANT, "r-d1", at(minutes), reason="bad", actor="admin") if minutes == 2 else None
        store.withdraw_signing_key("x" * 16, at(minutes), reason="lost", actor="admin")
    assert actions(store) == ["release.publish", "release.revoke"]
    assert actions(store, INSTALLATION) == ["tenant.create", "global.set", "signing_key.withdraw"]


def test_a_refused_change_leaves_no_entry(store: Store) -> None:
    opt_in(store, "ann")
    before = store.audit_head(TENANT)
    with pytest.raises(PreconditionError):
        store.change_subject(TENANT, "ann", ConsentChange(paused=True), at(1), if_revision=99)
    assert store.audit_head(TENANT) == before


def test_no_entry_holds_what_people_wrote_or_a_secret(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    store.create_key(TENANT, [Scope.ADMIN], b"the secret hash", at(0))
    opt_in(store, "ann")
    give_feedback(store)
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(5))
    everything = repr(list(store.audit_walk(TENANT)))
    assert b"the secret hash".hex() not in everything
    assert "the secret hash" not in everything
    assert "answer" not in everything


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET reason = 'nothing to see'",
        "UPDATE audit_entries SET seq = seq + 10",
        "DELETE FROM audit_entries",
        "DELETE FROM audit_entries WHERE seq = 1",
    ],
)
def test_the_database_refuses_to_change_or_delete_an_entry(store: SqlStore, statement: str) -> None:
    opt_in(store, "ann", "bob")
    before = store.audit_entries(TENANT)
    with pytest.raises(DBAPIError, match="append-only"), tampering(store) as connection:
        connection.execute(text(statement))
    assert store.audit_entries(TENANT) == before


def test_the_database_refuses_to_replace_or_empty_the_entries(store: SqlStore) -> None:
    opt_in(store, "ann")
    statement = (
        "INSERT OR REPLACE INTO audit_entries SELECT tenant, seq, at, actor, 'forged', object, reason, details, "
        "previous, hash FROM audit_entries"
        if store._database.is_sqlite
        else "TRUNCATE audit_entries"
    )
    with pytest.raises(DBAPIError, match="append-only"), tampering(store) as connection:
        connection.execute(text(statement))
    assert holds(store)


_TRIGGERS = "ALTER TABLE audit_entries {} TRIGGER USER"


def without_triggers(store: SqlStore, *statements: str) -> None:
    """What somebody does who owns the database."""
    with tampering(store) as connection:
        if store._database.is_sqlite:
            names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            for name in names:
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            statements = (_TRIGGERS.format("DISABLE"), *statements, _TRIGGERS.format("ENABLE"))
        for statement in statements:
            connection.execute(text(statement))


@pytest.mark.parametrize(
    ("statements", "seq", "fault"),
    [
        (["UPDATE audit_entries SET actor = 'x' WHERE seq = 3"], 3, "edited"),
        (["DELETE FROM audit_entries WHERE seq = 2"], 2, "missing"),
        (["DELETE FROM audit_entries WHERE seq >= 4"], 4, "truncated"),
        (
            [
                "UPDATE audit_entries SET seq = 100 WHERE seq = 2",
                "UPDATE audit_entries SET seq = 2 WHERE seq = 3",
                "UPDATE audit_entries SET seq = 3 WHERE seq = 100",
            ],
            2,
            "reordered",
        ),
        (["DELETE FROM audit_entries"], 1, "truncated"),
    ],
)
def test_verification_names_the_first_broken_entry(
    store: SqlStore, statements: list[str], seq: int, fault: str
) -> None:
    opt_in(store, "a", "b", "c", "d", "e")
    without_triggers(store, *statements)
    broken = verify(store.audit_walk(TENANT), store.audit_head(TENANT)).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (seq, fault)


def test_a_chain_cut_off_with_its_head_is_found_by_the_anchor_that_was_kept(store: SqlStore) -> None:
    opt_in(store, "a", "b")
    kept = store.audit_head(TENANT)
    without_triggers(store, "DELETE FROM audit_entries", "DELETE FROM audit_heads")
    assert holds(store)
    assert not holds(store, expected=kept)
    opt_in(store, "c", "d")
    assert not holds(store, expected=kept)


def test_a_long_chain_is_walked_in_pages(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idiolect.stores.sql.audit._PAGE", 3)
    opt_in(store, *[f"p{number}" for number in range(10)])
    assert [entry.seq for entry in store.audit_walk(TENANT)] == list(range(1, 11))
    assert [entry.seq for entry in store.audit_entries(TENANT, before=4)] == [3, 2, 1]


def test_writers_at_once_leave_one_unbroken_chain(store: SqlStore) -> None:
    def record(worker: int) -> None:
        for number in range(15):
            store.record_audit(TENANT, AuditEvent(f"w{worker}", "test", str(number)), at(number))

    def consent(worker: int) -> None:
        opt_in(store, *[f"p{worker}-{number}" for number in range(10)])

    calls = [lambda w=w: record(w) for w in range(6)] + [lambda w=w: consent(w) for w in range(3)]  # type: ignore[misc]
    assert at_once(*calls) == [None] * 9
    assert store.audit_head(TENANT).seq == 6 * 15 + 3 * 10
    assert holds(store)


def test_tenants_have_chains_of_their_own(store: Store) -> None:
    opt_in(store, "ann")
    store.change_subject("other", "ann", ConsentChange(opted_in=True), at(0))
    assert (store.audit_head(TENANT).seq, store.audit_head("other").seq) == (1, 1)
    assert store.audit_head(TENANT).hash != store.audit_head("other").hash
    assert {entry.tenant for entry in store.audit_entries("other")} == {"other"}


@pytest.fixture(params=["sqlite", "postgres"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"own_{abs(hash(tmp_path))}")


def test_a_database_of_the_first_schema_keeps_its_data_going_up_and_down(own_url: str) -> None:
    store = open_with_keys(own_url)
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, "ann")
    publish_user(store, "v1")
    with tampering(store) as connection:
        command.downgrade(alembic_config(connection), "0001")
    with tampering(store) as connection:
        assert connection.execute(text("SELECT id FROM versions")).scalars().all() == ["v1"]
        assert not store._database.engine.dialect.has_table(connection, "audit_entries")
    store.close()
    again = open_with_keys(own_url)
    user = again.resolve(TENANT, "ann", None).user
    assert user is not None
    assert user.id == "v1"
    assert again.audit_head(TENANT) == Head()
    opt_in(again, "bob")
    assert holds(again)
    again.close()
