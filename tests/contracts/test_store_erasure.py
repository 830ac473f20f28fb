"""Erasure of a person: only the tombstone and the ledger's charges stay."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from store_samples import (
    EVENT,
    GLOBAL,
    TENANT,
    at,
    dataset,
    give_feedback,
    opt_in,
    pairs,
    publish_domain,
    publish_user,
    rating,
)

from idiolect.consent import ConsentChange, DomainChange
from idiolect.errors import ConflictError, NotFoundError
from idiolect.resets.plan import plan_erasure, plan_reset
from idiolect.resets.receipt import ResetRecord
from idiolect.stores.people_ports import KeptAnswer
from idiolect.stores.ports import ImportOptions, Store
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS

# What names a person and stays: the reduced row of settings, the tombstone, the record, the charges, the audit log.
STAYS = {
    "subjects",
    "tombstones",
    "resets",
    "ledger_accounts",
    "ledger_charges",
    "audit_entries",
}


GOES = {
    "comparisons",
    "ratings",
    "evaluation_pairs",
    "signals",
    "inferences",
    "training_queue",
    "versions",
    "pointers",
    "pointer_history",
    "releases",  # the lists of who was left out
    "idempotency_keys",
}


def erase(store: Store, erasure: str = "e1", *, subject: str = "ann", minutes: float = 5) -> ResetRecord:
    return store.apply_reset(TENANT, subject, erasure, plan_erasure(), at(minutes))


def fill(store: SqlStore) -> None:
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    data = dataset(
        ratings=(rating("ann"), rating("bob")),
        comparisons=pairs("ann", 1) + pairs("bob", 1),
        adaptation=pairs("ann", 2) + pairs("bob", 2),
        evaluation={"test": pairs("ann", 1) + pairs("bob", 1)},
    )
    store.import_dataset(TENANT, data, ImportOptions(public=True, opt_in=True), at(0))
    for person in ("ann", "bob"):
        give_feedback(store, person, minutes=1)
        store.reserve(TENANT, "comparison", "user adapters", EVENT, [person], 9.0, at(1))
        publish_user(store, f"v-{person[0]}", person)
        publish_user(store, f"stale-{person[0]}", person, generation=9)
        chosen = ConsentChange(strength=0.5, domains=(DomainChange("voice", strength=0.5),))
        store.change_subject(TENANT, person, chosen, at(2))
        store.claim_key(TENANT, person, "k", b"f" * 32, at(2), at(99))
        store.keep_answer(TENANT, person, "k", b"f" * 32, KeptAnswer(202, b"{}"))


def tables_naming(store: SqlStore, person: str) -> set[str]:
    """Every table of which any cell holds the person's name."""
    found = set()
    with store._database.reading(ALL_TENANTS) as connection:
        for name, table in schema.metadata.tables.items():
            for row in connection.execute(select(table)):
                cells = [bytes(cell) if isinstance(cell, memoryview) else cell for cell in row]
                if any(person.encode() in (cell if isinstance(cell, bytes) else str(cell).encode()) for cell in cells):
                    found.add(name)
    return found


def test_nothing_names_the_person_any_more_but_what_must(store: SqlStore) -> None:
    fill(store)
    publish_user(store, "w-a", "ann")
    store.promote(TENANT, "v-a", at(3), reason="back", actor="admin")  # of which the history has a row
    assert tables_naming(store, "ann") >= GOES
    record = erase(store)
    assert tables_naming(store, "ann") <= STAYS
    assert {"signals", "inferences", "comparisons", "versions"} <= tables_naming(store, "bob")
    assert record.scope == "erasure"
    assert record.steps == plan_erasure().steps
    assert "erase_traces" in record.steps


def test_the_settings_are_reduced_to_their_generation(store: SqlStore) -> None:
    fill(store)
    erase(store)
    state = store.subject(TENANT, "ann")
    assert (state.opted_in, state.paused, state.strength, state.domains) == (False, False, 1.0, ())
    assert (state.policy_version, state.generation) == (None, 1)


def test_charges_stay_and_are_never_refunded(store: SqlStore) -> None:
    fill(store)
    erase(store)
    assert store.account(TENANT, "comparison", "ann").spent_rho == EVENT.rho
    assert len(store.charges(TENANT, "ann")) == 1


def test_erasing_twice_is_harmless_and_answers_the_first_record(store: SqlStore) -> None:
    fill(store)
    first = erase(store)
    assert erase(store, "e2", minutes=6) == first
    assert erase(store, "e1", minutes=7) == first
    assert store.subject(TENANT, "ann").generation == 1
    assert store.reset(TENANT, "e2") is None


def test_whoever_comes_back_is_erased_again(store: SqlStore) -> None:
    fill(store)
    first = erase(store)
    opt_in(store, "ann", minutes=6)
    give_feedback(store, "ann", number=2, minutes=7)
    again = erase(store, "e2", minutes=8)
    assert (again.generation, again.id) == (first.generation + 1, "e2")
    assert tables_naming(store, "ann") <= STAYS


def test_a_reset_after_an_erasure_does_not_stand_for_it(store: SqlStore) -> None:
    fill(store)
    erase(store)
    store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(6))
    assert erase(store, "e2", minutes=7).generation == 3


def test_an_erased_person_opts_in_as_a_new_generation_alone(store: SqlStore) -> None:
    fill(store)
    erase(store)
    opt_in(store, "ann", minutes=6)
    assert store.subject(TENANT, "ann").generation == 1
    assert publish_user(store, "late", generation=0).fenced == ("ann",)
    assert store.resolve(TENANT, "ann", None).user is None
    assert publish_user(store, "new", generation=1).published == 1


def test_imports_leave_an_erased_person_out(store: SqlStore) -> None:
    fill(store)
    erase(store)
    data = dataset("more", "2", adaptation=pairs("ann", 2), ratings=(rating("ann"),))
    outcome = store.import_dataset(TENANT, data, ImportOptions(public=True, opt_in=True), at(6))
    assert outcome.counts["people_reset"] == 1
    assert tables_naming(store, "ann") <= STAYS
    assert not store.subject(TENANT, "ann").opted_in


def test_the_record_names_the_shared_releases_that_had_learned_from_the_person(store: SqlStore) -> None:
    fill(store)
    run = store.reserve(TENANT, "subject", "domain chat", EVENT, ["ann", "bob"], 9.0, at(1)).run
    publish_domain(store, "d1", run=run)
    assert erase(store).shared_releases == ("r-d1",)
    assert store.version(TENANT, "d1") is not None


def test_someone_unknown_can_be_erased_like_anyone(store: SqlStore) -> None:
    record = erase(store)
    assert sum(record.erased.values()) == 0
    assert record.generation == 1
    assert erase(store, "e2", minutes=6) == record


def test_an_erasure_is_no_reset_of_the_same_id(store: SqlStore) -> None:
    store.apply_reset(TENANT, "ann", "x", plan_reset("all"), at(1))
    with pytest.raises(ConflictError):
        erase(store, "x")


def test_another_tenants_person_of_that_name_stays(store: SqlStore) -> None:
    fill(store)
    store.apply_reset("other", "ann", "e1", plan_erasure(), at(5))
    assert store.version(TENANT, "v-a") is not None


def test_feedback_on_what_was_erased_is_refused(store: SqlStore) -> None:
    fill(store)
    erase(store)
    opt_in(store, "ann", minutes=6)
    assert store.inference(TENANT, "i-ann-1") is None
    with pytest.raises(NotFoundError):
        _late_feedback(store)


def _late_feedback(store: SqlStore) -> Any:
    from store_samples import shown, signal

    late = shown(store, "late", "ann", minutes=4)
    return store.add_feedback(TENANT, "ann", signal("late", late, minutes=4), at(6))
