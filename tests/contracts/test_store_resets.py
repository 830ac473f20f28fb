"""Resets: what goes, what stays, and that it is really gone."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select
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
    rating,
    shown,
    signal,
)

from idiolect.errors import ConflictError, InvalidInputError
from idiolect.resets.plan import plan_reset
from idiolect.signals.comparison import Item
from idiolect.stores.ports import ImportOptions, Store
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS

SCOPES = ["adapter", "feedback", "all"]
PERSONAL = ("comparisons", "ratings", "evaluation_pairs", "signals", "inferences", "versions", "pointers")


def reset(store: Store, scope: Any = "all", reset_id: str = "x1", *, subject: str = "ann", minutes: float = 5) -> Any:
    return store.apply_reset(TENANT, subject, reset_id, plan_reset(scope), at(minutes))


def rows_of(store: SqlStore, table: str, subject: str = "ann") -> int:
    columns = schema.metadata.tables[table].c
    with store._database.reading(ALL_TENANTS) as connection:
        return connection.scalar(select(func.count()).where(columns.tenant == TENANT, columns.subject == subject)) or 0


def fill(store: SqlStore) -> None:
    """Ann and Bob with one row or more in every table that holds people's data."""
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
        publish_user(store, f"v-{person}", person)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_reset_raises_the_generation_and_says_what_it_did(store: SqlStore, scope: Any) -> None:
    fill(store)
    before = store.subject(TENANT, "ann")
    record = reset(store, scope)
    state = store.subject(TENANT, "ann")
    assert (state.generation, state.revision) == (before.generation + 1, before.revision + 1)
    assert state.opted_in is (scope != "all")
    assert (record.id, record.tenant, record.subject, record.scope) == ("x1", TENANT, "ann", scope)
    assert (record.generation, record.steps) == (1, plan_reset(scope).steps)
    assert (record.completed_at, record.state) == (at(5), "completed")
    assert store.reset(TENANT, "x1") == record
    assert store.reset("other", "x1") is None


@pytest.mark.parametrize("scope", SCOPES)
def test_a_reset_erases_what_its_plan_names_of_this_person_only(store: SqlStore, scope: Any) -> None:
    fill(store)
    before = {table: rows_of(store, table, "bob") for table in PERSONAL}
    had = {table: rows_of(store, table) for table in PERSONAL}
    record = reset(store, scope)
    gone = {"versions", "pointers"} if scope == "adapter" else set(PERSONAL)
    assert all(had.values())
    assert {table: rows_of(store, table) for table in PERSONAL} == {t: 0 if t in gone else had[t] for t in PERSONAL}
    assert {table: rows_of(store, table, "bob") for table in PERSONAL} == before
    assert {table: record.erased[table] for table in gone} == {table: had[table] for table in gone}


@pytest.mark.parametrize("scope", SCOPES)
def test_after_a_reset_nothing_personal_is_resolved(store: SqlStore, scope: Any) -> None:
    fill(store)
    reset(store, scope)
    assert store.resolve(TENANT, "ann", None).user is None
    assert store.resolve(TENANT, "bob", None).user is not None
    assert store.version(TENANT, "v-ann") is None
    opt_in(store, "ann", minutes=6)
    assert store.resolve(TENANT, "ann", None).user is None


@pytest.mark.parametrize("scope", SCOPES)
def test_after_a_reset_the_person_is_out_of_the_queue_and_of_shared_data(store: SqlStore, scope: Any) -> None:
    fill(store)
    reset(store, scope)
    assert store.training_queue(min_new=1) == [(TENANT, "bob")]
    assert store.shared_data(TENANT).people == ("bob",)


def test_a_reset_of_the_adapter_keeps_signals_that_can_train_the_next_generation(store: SqlStore) -> None:
    fill(store)
    reset(store, "adapter")
    snapshot = store.personal_snapshot(TENANT, subjects=["ann"])
    assert (snapshot.generation_P, len(snapshot.comparisons)) == ((1,), 5)
    give_feedback(store, number=2, minutes=6)
    assert (TENANT, "ann") in store.training_queue(min_new=2)
    assert (TENANT, "ann") not in store.training_queue(min_new=3)


@pytest.mark.parametrize("scope", ["feedback", "all"])
def test_after_forgetting_feedback_nothing_is_left_to_train_on_or_evaluate(store: SqlStore, scope: Any) -> None:
    fill(store)
    reset(store, scope)
    opt_in(store, "ann", minutes=6)
    assert store.personal_snapshot(TENANT).people == ("bob",)
    assert store.evaluation_data(TENANT, "votes").people == ("bob",)
    assert store.inference(TENANT, "i-ann-1") is None
    give_feedback(store, number=2, minutes=7)
    snapshot = store.personal_snapshot(TENANT)
    assert (snapshot.people, snapshot.generation_P) == (("ann", "bob"), (1, 0))


def test_withdrawing_everything_forgets_the_settings_too(store: SqlStore) -> None:
    fill(store)
    state = store.subject(TENANT, "ann")
    assert state.policy_version is not None
    reset(store)
    state = store.subject(TENANT, "ann")
    assert (state.opted_in, state.paused, state.strength, state.policy_version) == (False, False, 1.0, None)


def test_texts_go_though_another_person_saw_the_same(store: SqlStore) -> None:
    """Each person's are sealed apart, so Bob's copies stay."""
    opt_in(store, "ann", "bob")
    only_ann = shown(store, "i1", "ann", texts=("my secret", "common", "mine"))
    store.add_feedback(TENANT, "ann", signal("s1", only_ann, (0, 1)), at(1))
    shown(store, "i2", "bob", texts=("his", "common"))
    assert reset(store).erased["texts"] == 3
    (of_bob,) = store.person_page(TENANT, "bob", "shown").rows
    assert (of_bob["query"], of_bob["documents"]) == ("his", ["common"])
    with store._database.reading(ALL_TENANTS) as connection:
        assert connection.scalar(select(func.count()).select_from(schema.texts)) == 2
        assert connection.scalar(select(func.count()).select_from(schema.items)) == 0


def test_texts_of_a_data_set_outlive_the_people_who_rated_them(store: SqlStore) -> None:
    fill(store)
    reset(store)
    reset(store, subject="bob", reset_id="x2")
    with store._database.reading(ALL_TENANTS) as connection:
        assert connection.scalar(select(func.count()).select_from(schema.items)) == 4
    store.import_dataset(TENANT, dataset(adaptation=pairs("cleo", 1)), OPTED_IN, at(9))
    assert store.personal_snapshot(TENANT).items[0] == Item("chat", "how?", "answer 0 to how?")


def test_texts_of_feedback_that_fell_out_of_its_bound_go_too(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idiolect.stores.sql.feedback.MAX_FEEDBACK_COMPARISONS", 1)
    opt_in(store, "ann")
    for number, secret in enumerate(("first", "second")):
        inference = shown(store, f"i{number}", texts=(f"{secret} q", f"{secret} a", f"{secret} b"))
        store.add_feedback(TENANT, "ann", signal(f"s{number}", inference, (0, 1)), at(1))
    reset(store)
    with store._database.reading(ALL_TENANTS) as connection:
        assert connection.execute(select(schema.texts)).all() == []
        assert connection.execute(select(schema.items)).all() == []
        assert connection.execute(select(schema.inference_texts)).all() == []


def test_a_reset_of_one_domain_leaves_the_texts_of_the_others(store: Store) -> None:
    opt_in(store, "ann", "bob")
    for number, (person, domain) in enumerate((("ann", "chat"), ("ann", "voice"), ("bob", "chat"))):
        shown(store, f"i{number}", person, domain=domain)
    with store._database.reading(ALL_TENANTS) as connection:
        before = connection.scalar(select(func.count()).select_from(schema.inference_texts)) or 0
    store.apply_reset(TENANT, "ann", "x1", plan_reset("feedback", "chat"), at(5))
    with store._database.reading(ALL_TENANTS) as connection:
        for table in (schema.inference_texts, schema.texts):
            assert 3 * (connection.scalar(select(func.count()).select_from(table)) or 0) == 2 * before
    assert store.inference(TENANT, "i0") is None
    assert store.inference(TENANT, "i1") is not None


def test_the_same_reset_again_returns_its_record_and_changes_nothing(store: SqlStore) -> None:
    fill(store)
    first = reset(store)
    opt_in(store, "ann", minutes=6)
    give_feedback(store, number=2, minutes=7)
    assert reset(store, minutes=9) == first
    assert store.subject(TENANT, "ann").generation == 1
    assert len(store.personal_snapshot(TENANT, subjects=["ann"]).comparisons) == 2


def test_a_reset_id_stands_for_one_reset(store: Store) -> None:
    reset(store)
    with pytest.raises(ConflictError, match="x1"):
        reset(store, subject="bob")
    with pytest.raises(ConflictError, match="x1"):
        reset(store, scope="adapter")
    assert not store.subject(TENANT, "bob").known


@pytest.mark.parametrize("scope", SCOPES)
def test_someone_unknown_can_be_reset(store: Store, scope: Any) -> None:
    record = reset(store, scope)
    state = store.subject(TENANT, "ann")
    assert (record.generation, state.generation, state.known, state.opted_in) == (1, 1, True, False)
    assert sum(record.erased.values()) == 0


def test_every_reset_raises_the_generation_again(store: Store) -> None:
    assert [reset(store, reset_id=f"x{number}").generation for number in range(3)] == [1, 2, 3]


def test_a_reset_names_the_shared_releases_that_read_the_person_also_revoked_ones(store: Store) -> None:
    charged = [
        store.reserve(TENANT, "subject", "domain", EVENT, people, 9.0, at(0)).run
        for people in (["ann"], ["bob"], ["ann", "bob"], ["ann"])
    ]
    for number, run in enumerate(charged[:3]):
        publish_domain(store, f"d{number}", run=run, minutes=number)
    opt_in(store, "ann")
    publish_user(store, "v1", run=charged[3])
    store.revoke_release(TENANT, "r-d2", at(4), reason="bad", actor="admin")
    assert reset(store).shared_releases == ("r-d0", "r-d2")


def test_a_reset_names_the_shared_trainings_that_are_still_under_way(store: Store) -> None:
    """Such a run had read the person, and its release would come after the receipt."""
    mine, others, published, settled = (
        store.reserve(TENANT, "subject", "domain", EVENT, people, 9.0, at(0)).run
        for people in (["ann", "bob"], ["bob"], ["ann"], ["ann"])
    )
    own = store.reserve(TENANT, "comparison", "user adapters", EVENT, ["ann"], 9.0, at(0)).run
    publish_domain(store, "d1", run=published)
    store.settle(TENANT, settled, at(1))
    record = reset(store)
    assert record.shared_runs == (mine,)
    assert not {others, own} & set(record.shared_runs)
    assert record.shared_releases == ("r-d1",)
    assert store.reset(TENANT, "x1") == record
    assert "shared_runs" not in reset(store, reset_id="x2", subject="cleo").to_json()


def test_a_refused_person_is_in_no_shared_release(store: Store) -> None:
    run = store.reserve(TENANT, "subject", "domain", EVENT, ["ann"], 0.5, at(0)).run
    publish_domain(store, "d1", run=run)
    assert reset(store).shared_releases == ()


def test_the_empty_person_can_not_be_reset_because_that_would_erase_the_domains(store: Store) -> None:
    publish_domain(store, "d1")
    with pytest.raises(InvalidInputError):
        reset(store, subject="")
    assert store.version(TENANT, "d1") is not None


def test_another_tenants_person_of_that_name_is_untouched(store: SqlStore) -> None:
    fill(store)
    store.apply_reset("other", "ann", "x1", plan_reset("all"), at(5))
    assert store.subject(TENANT, "ann").generation == 0
    assert store.resolve(TENANT, "ann", None).user is not None
