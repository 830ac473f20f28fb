"""A database that was written before there were keys of people: brought up to date, then sealed, in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from postgres_server import PostgresServer
from sqlalchemy import MetaData, text
from store_samples import TENANT, at, opt_in, template, version

from idiolect.ids import text_digest
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import SqlStore, open_store
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, stand_behind
from idiolect.stores.sql.texts import item_key
from idiolect.stores.sql.times import micros
from idiolect.stores.sql.upgrading import alembic_config
from people_keys import open_with_keys

PEOPLE = ("ann", "bob")
ROUNDS = 30  # inferences of each person: more than one batch


@dataclass
class Old:
    """Rows as they were stored before."""

    rows: dict[str, list[dict[str, Any]]]

    def add(self, table: str, **row: Any) -> None:
        self.rows.setdefault(table, []).append({"tenant": TENANT, **row})


def old_rows() -> Old:
    old = Old({})
    for digest in ("q", "x", "y"):
        old.add("texts", digest=bytes.fromhex(text_digest(digest)), body=digest.encode())
    q, x, y = (bytes.fromhex(text_digest(name)) for name in ("q", "x", "y"))
    for number, body in enumerate((x, y), 1):
        key = item_key("chat", q.hex(), body.hex())
        old.add("items", id=number, key=key, domain="chat", prompt=q, text=body, language="en")
    for who in (*PEOPLE, None):
        for number in range(ROUNDS):
            inference = f"i-{who}-{number}"
            moment = micros(at(number))
            packed = {"query": q, "documents": x + y, "shown": json.dumps([1, 0])}
            old.add("inferences", id=inference, subject=who, domain="chat", **packed, created_at=moment)
            for digest in (q, x, y):
                old.add("inference_texts", digest=digest, inference=inference)
            if who is None:
                continue
            times = {"occurred_at": moment, "received_at": moment}
            said = {"kind": "choice", "value": "1"}
            old.add("signals", id=f"s-{who}-{number}", subject=who, inference=inference, **said, **times)
            pair = {"chosen": 2, "rejected": 1, "weight": 0.5 + number, "source": "choice", "shared": True}
            old.add("comparisons", dataset=None, subject=who, generation=0, **pair, **times)
    return old


@pytest.fixture(params=["sqlite", "postgres"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'old.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database(f"old_{abs(hash(tmp_path))}")
    store = open_store(url)
    store.create_tenant(TENANT, at(0))
    opt_in(store, *PEOPLE)
    with store._database.engine.execution_options(idiolect_write=True).begin() as connection:
        stand_behind(connection, ALL_TENANTS)
        command.downgrade(alembic_config(connection), "0012")
        tables = MetaData()
        tables.reflect(connection)
        for name, rows in old_rows().rows.items():
            connection.execute(tables.tables[name].insert(), rows)
        _publish(connection, tables)
        if request.param == "postgres":
            connection.execute(text("SELECT setval(pg_get_serial_sequence('items', 'id'), 2)"))
    store.close()
    return url


def _publish(connection: Any, tables: MetaData) -> None:
    """One release with an adapter for each."""
    release = {"scope": "user", "global_digest": "g" * 64, "run": "run1", "template": json.dumps(template().to_json())}
    told = {"content": b"c", "versions": 2, "fenced": "[]", "published_at": 0, "reason": "r", "actor": "a"}
    row = {"tenant": TENANT, "id": "r", **release, **told, "staged": False}
    connection.execute(tables.tables["releases"].insert(), row)
    for who in PEOPLE:
        made = version(f"v-{who}", "r", who)
        owner = {"tenant": TENANT, "id": made.id, "release": "r", "subject": who, "domain": "", "generation": 0}
        weights = {"weights": made.weights, "weights_sha256": bytes.fromhex(made.weights_sha256)}
        signed = {"key_id": made.key_id, "signature": made.signature}
        connection.execute(tables.tables["versions"].insert(), owner | weights | signed)


@pytest.fixture
def old_store(old_url: str) -> Iterator[SqlStore]:
    opened = open_with_keys(old_url)
    yield opened
    opened.close()


def said(store: SqlStore) -> dict[str, Any]:
    """Everything that can be read of the people."""
    snapshot = store.personal_snapshot(TENANT, max_comparisons=ROUNDS)
    pairs = snapshot.comparisons
    return {
        "learned": [
            (snapshot.people[p], snapshot.items[c].text, snapshot.items[r].text, float(w))
            for p, c, r, w in zip(pairs.person_C, pairs.chosen_C, pairs.rejected_C, pairs.weight_C, strict=True)
        ],
        "weights": [stored.version.weights for stored in store.versions(TENANT)],
        "inferences": [store.inference(TENANT, f"i-{who}-{n}") for who in (*PEOPLE, None) for n in range(ROUNDS)],
        "pages": [
            list(store.person_page(TENANT, who, part).rows)  # type: ignore[arg-type]
            for who in PEOPLE
            for part in ("signals", "comparisons", "shown")
        ],
    }


def in_the_clear(store: SqlStore) -> int:
    """Rows of people that are not sealed, and texts that are neither sealed nor of an unnamed inference."""
    queries = (
        "SELECT count(*) FROM inferences WHERE subject IS NOT NULL AND sealed IS NULL",
        "SELECT count(*) FROM signals WHERE sealed IS NULL",
        "SELECT count(*) FROM comparisons WHERE sealed IS NULL AND dataset IS NULL",
        "SELECT count(*) FROM versions WHERE sealed IS NULL AND subject <> ''",
        "SELECT count(*) FROM texts t WHERE sealed IS NULL AND NOT EXISTS (SELECT 1 FROM inference_texts l"
        " JOIN inferences i ON i.id = l.inference WHERE l.digest = t.digest AND i.subject IS NULL)",
    )
    with store._database.reading(ALL_TENANTS) as connection:
        return sum(connection.scalar(text(query)) or 0 for query in queries)


def test_everything_is_sealed_and_reads_as_before(old_store: SqlStore) -> None:
    before = said(old_store)
    assert len(before["learned"]) == 2 * ROUNDS
    assert not old_store.is_all_sealed()
    assert old_store.seal_existing(at(1)) == in_all()
    assert in_the_clear(old_store) == 0
    assert said(old_store) == before
    assert old_store.is_all_sealed()
    assert old_store.seal_existing(at(2)) == 0


def in_all() -> int:
    return 2 * (3 * ROUNDS + 1)


def test_a_pass_that_is_cut_off_goes_on_with_the_next(old_store: SqlStore) -> None:
    before, sealed, passes = said(old_store), 0, 0
    while not old_store.is_all_sealed():
        left = iter([True, False])  # one batch
        sealed += old_store.seal_existing(at(1), goes_on=lambda left=left: next(left, False))  # type: ignore[misc]
        assert said(old_store) == before
        passes += 1
        if passes == 12:
            sealed += old_store.seal_existing(at(1))
    assert sealed == in_all()
    assert passes > 5
    assert in_the_clear(old_store) == 0


def test_who_was_reset_in_between_stays_so(old_store: SqlStore) -> None:
    left = iter([True, True])
    old_store.seal_existing(at(1), goes_on=lambda: next(left, False))
    old_store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(60))
    old_store.seal_existing(at(61))
    assert {person for person, *_ in said(old_store)["learned"]} == {"bob"}
    old_store.apply_reset(TENANT, "bob", "r2", plan_reset("all"), at(62))
    with old_store._database.reading(ALL_TENANTS) as connection:
        assert connection.scalar(text("SELECT count(*) FROM texts")) == 3  # of the unnamed
        assert connection.scalar(text("SELECT count(*) FROM items")) == 0


def test_a_new_database_has_nothing_to_seal(store: SqlStore) -> None:
    assert store.seal_existing(at(0)) == 0
    assert store.is_all_sealed()
