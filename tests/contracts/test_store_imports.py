"""Importing data sets."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import OPTED_IN, PUBLIC, TENANT, at, dataset, items, opt_in, pairs, rating

from idiolect.consent import POLICY_VERSION, ConsentChange
from idiolect.errors import InvalidInputError
from idiolect.resets.plan import plan_reset
from idiolect.signals.comparison import Comparison, Item
from idiolect.stores.ports import ImportOptions, Store


def weights(store: Store, person: str) -> list[float]:
    snapshot = store.personal_snapshot(TENANT, subjects=[person])
    return [float(weight) for weight in snapshot.comparisons.weight_C]


def test_an_import_counts_what_it_stored_and_is_listed(store: Store) -> None:
    data = dataset(
        ratings=(rating("rob"),),
        comparisons=pairs("rob", 2),
        new_people=frozenset({"ann"}),
        adaptation=pairs("ann", 3),
        evaluation={"test": pairs("ann", 1)},
        report={"rows_left_out": 7},
    )
    outcome = store.import_dataset(TENANT, data, OPTED_IN, at(0))
    assert outcome.unchanged is False
    assert outcome.counts == {
        "rows_left_out": 7,
        "items": 4,
        "ratings": 1,
        "comparisons": 2,
        "adaptation_comparisons": 3,
        "evaluation_comparisons": 1,
        "people": 2,
        "people_reset": 0,
        "people_opted_in": 1,
        "adaptation_not_stored": 0,
    }
    (info,) = store.datasets(TENANT)
    assert (info.name, info.digest, info.public, info.counts) == ("votes", "1", False, outcome.counts)
    assert info.imported_at == at(0)
    assert store.datasets("other") == []


def test_the_same_import_again_changes_nothing(store: Store) -> None:
    data = dataset(adaptation=pairs("ann", 3))
    first = store.import_dataset(TENANT, data, OPTED_IN, at(0))
    again = store.import_dataset(TENANT, data, OPTED_IN, at(9))
    assert (again.unchanged, again.counts) == (True, first.counts)
    assert store.datasets(TENANT)[0].imported_at == at(0)
    assert weights(store, "ann") == [1.0, 2.0, 3.0]


def test_the_same_content_under_other_options_is_another_import(store: Store) -> None:
    data = dataset(ratings=(rating("rob"),))
    store.import_dataset(TENANT, data, OPTED_IN, at(0))
    assert len(store.shared_data(TENANT).ratings) == 0
    assert store.import_dataset(TENANT, data, PUBLIC, at(1)).unchanged is False
    assert len(store.shared_data(TENANT).ratings) == 1


def test_a_new_digest_replaces_everything_that_the_name_held(store: Store) -> None:
    old = dataset(
        items=items(2, prompt="old?"),
        ratings=(rating("rob"),),
        adaptation=pairs("ann", 3),
        evaluation={"test": pairs("ann", 2)},
    )
    store.import_dataset(TENANT, old, ImportOptions(public=True, opt_in=True), at(0))
    store.import_dataset(TENANT, dataset(digest="2", adaptation=pairs("ann", 1)), OPTED_IN, at(1))
    assert weights(store, "ann") == [1.0]
    assert len(store.shared_data(TENANT).ratings) == 0
    assert store.evaluation_data(TENANT, "votes").parts == {}
    assert store.training_queue(min_new=2) == []
    assert store.training_queue(min_new=1) == [(TENANT, "ann")]
    assert len(store.datasets(TENANT)) == 1


def test_replacing_one_data_set_leaves_another_that_shares_its_texts_whole(store: Store) -> None:
    store.import_dataset(TENANT, dataset("one", adaptation=pairs("ann", 1)), OPTED_IN, at(0))
    store.import_dataset(TENANT, dataset("two", adaptation=pairs("bob", 1)), OPTED_IN, at(0))
    store.import_dataset(TENANT, dataset("one", "2", items=()), OPTED_IN, at(1))
    snapshot = store.personal_snapshot(TENANT)
    assert snapshot.people == ("bob",)
    assert snapshot.items == items(2)


def test_opting_in_by_import_marks_only_people_with_adaptation_comparisons(store: Store) -> None:
    data = dataset(comparisons=pairs("rob", 1), adaptation=pairs("ann", 1), evaluation={"test": pairs("eve", 1)})
    store.import_dataset(TENANT, data, OPTED_IN, at(0))
    ann = store.subject(TENANT, "ann")
    assert (ann.opted_in, ann.policy_version, ann.revision, ann.updated_at) == (True, POLICY_VERSION, 1, at(0))
    assert not store.subject(TENANT, "rob").known
    assert not store.subject(TENANT, "eve").known


def test_opting_in_by_import_is_what_a_change_of_consent_would_be(store: Store) -> None:
    for person in ("ann", "bob"):
        store.change_subject(TENANT, person, ConsentChange(strength=0.25, paused=True), at(0))
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 1)), OPTED_IN, at(1))
    opt_in(store, "bob", minutes=1)
    assert store.subject(TENANT, "ann") == replace(store.subject(TENANT, "bob"), subject="ann")


def test_someone_who_agreed_before_stays_as_they_are(store: Store) -> None:
    opt_in(store, "ann")
    before = store.subject(TENANT, "ann")
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 1)), OPTED_IN, at(1))
    assert store.subject(TENANT, "ann") == before


def test_without_opt_in_adaptation_is_counted_but_not_stored(store: Store) -> None:
    outcome = store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 3)), PUBLIC, at(0))
    assert outcome.counts["adaptation_not_stored"] == 3
    assert outcome.counts["adaptation_comparisons"] == 0
    opt_in(store, "ann")
    assert weights(store, "ann") == []


@pytest.mark.parametrize("scope", ["adapter", "feedback", "all"])
def test_a_reset_person_is_left_out_of_an_import(store: Store, scope: Any) -> None:
    store.apply_reset(TENANT, "ann", "x1", plan_reset(scope), at(0))
    data = dataset(
        ratings=(rating("ann"), rating("bob")),
        comparisons=pairs("ann", 1),
        adaptation=pairs("ann", 2) + pairs("bob", 1),
        evaluation={"test": pairs("ann", 1)},
    )
    outcome = store.import_dataset(TENANT, data, ImportOptions(public=True, opt_in=True), at(1))
    assert (outcome.counts["people_reset"], outcome.counts["people"]) == (1, 1)
    assert store.subject(TENANT, "ann").opted_in is False
    assert "ann" not in store.shared_data(TENANT).people
    assert store.personal_snapshot(TENANT).people == ("bob",)
    assert store.evaluation_data(TENANT, "votes").people == ()


def test_an_import_does_not_override_a_no_even_one_without_an_earlier_yes(store: Store) -> None:
    store.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(0))
    outcome = store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 2)), OPTED_IN, at(1))
    assert outcome.counts["people_reset"] == 1
    assert store.subject(TENANT, "ann").opted_in is False


def test_a_person_who_was_reset_in_another_tenant_is_another_person(store: Store) -> None:
    store.apply_reset("other", "ann", "x1", plan_reset("all"), at(0))
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 2)), OPTED_IN, at(1))
    assert weights(store, "ann") == [1.0, 2.0]


def test_an_import_that_fails_half_way_leaves_nothing(store: Store) -> None:
    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    data = dataset(ratings=tuple(rating("rob") for _ in range(30_000)), adaptation=pairs("ann", 1))
    with pytest.raises(KeyboardInterrupt):
        store.import_dataset(TENANT, data, OPTED_IN, at(0), progress=fail)
    assert store.datasets(TENANT) == []
    assert not store.subject(TENANT, "ann").known
    assert store.import_dataset(TENANT, data, OPTED_IN, at(0)).counts["ratings"] == 30_000


def test_progress_reaches_the_total(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    data = dataset(ratings=(rating("rob"),), comparisons=pairs("rob", 2), adaptation=pairs("ann", 3))
    store.import_dataset(TENANT, data, OPTED_IN, at(0), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    "parts",
    [
        {"comparisons": (Comparison("ann", 0, 4),)},
        {"comparisons": (Comparison("ann", -1, 0),)},
        {"comparisons": (Comparison("ann", 0, 1, weight=float("nan")),)},
        {"evaluation": {"test": (Comparison("ann", 4, 0),)}},
        {"adaptation": (Comparison("ann", 0, 4),)},
        {"ratings": (rating("ann", 9),)},
        {"ratings": (rating("ann", 0, float("inf")),)},
        {"items": items(1) + items(1, prompt="other?"), "comparisons": (Comparison("ann", 0, 1),)},
    ],
)
def test_a_data_set_that_points_nowhere_is_refused_whole(store: Store, parts: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="votes"):
        store.import_dataset(TENANT, dataset(**parts), OPTED_IN, at(0))
    assert store.datasets(TENANT) == []


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match="zone"):
        store.import_dataset(TENANT, dataset(), OPTED_IN, at(0).replace(tzinfo=None))


# One database serves all examples: each imports under the same name and reads back what it wrote.
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(st.characters(exclude_categories=()), max_size=20), text=st.text(max_size=20))
def test_every_text_comes_back_as_it_went_in(store: Store, prompt: str, text: str) -> None:
    hostile = (Item("chat", prompt, text, "de"), Item("chat", prompt, text + "\0\ud800", "de", "reply"))
    data = dataset(digest=repr((prompt, text)), items=hostile, evaluation={"test": pairs("ann", 1)})
    store.import_dataset(TENANT, data, PUBLIC, at(0))
    assert store.evaluation_data(TENANT, "votes").items == hostile


@pytest.mark.parametrize("name", ["nul\0", "surrogate\ud800"])
def test_a_name_that_a_database_can_not_hold_is_refused_or_stored_but_never_a_crash(store: Store, name: str) -> None:
    with suppress(InvalidInputError):
        store.import_dataset(TENANT, dataset(name), OPTED_IN, at(0))
    assert [info.name for info in store.datasets(TENANT)] in ([], [name])
