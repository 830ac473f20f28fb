"""What training and evaluation may read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import event
from store_samples import (
    OPTED_IN,
    PUBLIC,
    TENANT,
    at,
    dataset,
    give_feedback,
    items,
    opt_in,
    pairs,
    publish_user,
    rating,
)

from idiolect.consent import ConsentChange
from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.resets.plan import plan_reset
from idiolect.signals.comparison import Comparison, Item, Rating
from idiolect.signals.data import SharedData
from idiolect.stores.ports import ImportOptions, Store
from idiolect.stores.sql import SqlStore, columns


def readable(data: SharedData) -> tuple[list[tuple[str, str, float]], list[tuple[str, str, str, float]]]:
    """Ratings and comparisons with their names in place of indices."""
    texts = [item.text for item in data.items]
    rated, compared = data.ratings, data.comparisons
    return (
        [
            (data.people[person], texts[item], float(value))
            for person, item, value in zip(rated.person_R, rated.item_R, rated.value_R, strict=True)
        ],
        [
            (data.people[person], texts[chosen], texts[rejected], float(weight))
            for person, chosen, rejected, weight in zip(
                compared.person_C, compared.chosen_C, compared.rejected_C, compared.weight_C, strict=True
            )
        ],
    )


def personal_weights(store: Store, **options: Any) -> list[float]:
    return store.personal_snapshot(TENANT, **options).comparisons.weight_C.tolist()  # type: ignore[no-any-return]


def test_shared_data_comes_back_in_order_with_its_types(store: Store) -> None:
    data = dataset(
        ratings=(Rating("bob", 3, 1.0), Rating("ann", 0, -1.0)), comparisons=(Comparison("ann", 2, 1, weight=0.5),)
    )
    store.import_dataset(TENANT, data, PUBLIC, at(0))
    shared = store.shared_data(TENANT)
    names = [f"answer {index} to how?" for index in range(4)]
    assert readable(shared) == (
        [("bob", names[3], 1.0), ("ann", names[0], -1.0)],
        [("ann", names[2], names[1], 0.5)],
    )
    assert shared.ratings.person_R.dtype == shared.comparisons.chosen_C.dtype == np.int32
    assert shared.ratings.value_R.dtype == shared.comparisons.weight_C.dtype == np.float32


def test_no_data_is_empty_columns(store: Store) -> None:
    shared = store.shared_data(TENANT)
    assert (len(shared.items), len(shared.people), len(shared.ratings), len(shared.comparisons)) == (0, 0, 0, 0)
    assert len(store.personal_snapshot(TENANT).comparisons) == 0
    assert store.personal_snapshot(TENANT, subjects=[]).people == ()


def test_of_private_data_sets_only_people_who_opted_in_are_shared(store: Store) -> None:
    data = dataset(ratings=(rating("ann"), rating("bob")), comparisons=pairs("ann", 1) + pairs("bob", 1))
    store.import_dataset(TENANT, data, ImportOptions(public=False, opt_in=False), at(0))
    opt_in(store, "ann")
    assert store.shared_data(TENANT).people == ("ann",)
    assert len(store.shared_data(TENANT, public_only=True).people) == 0


def test_public_data_is_shared_without_consent_but_not_against_a_no(store: Store) -> None:
    data = dataset(ratings=(rating("ann"), rating("bob")), comparisons=pairs("ann", 1) + pairs("bob", 1))
    store.import_dataset(TENANT, data, PUBLIC, at(0))
    assert store.shared_data(TENANT, public_only=True).people == ("ann", "bob")
    store.change_subject(TENANT, "bob", ConsentChange(opted_in=False), at(1))
    assert store.shared_data(TENANT, public_only=True).people == ("ann",)
    assert store.shared_data(TENANT).people == ("ann",)


def test_adaptation_and_evaluation_are_never_shared(store: Store) -> None:
    data = dataset(adaptation=pairs("ann", 3), evaluation={"test": pairs("ann", 3)})
    store.import_dataset(TENANT, data, ImportOptions(public=True, opt_in=True), at(0))
    assert len(store.shared_data(TENANT).comparisons) == 0


def test_feedback_is_shared_with_domains_but_is_not_public(store: Store) -> None:
    opt_in(store, "ann")
    give_feedback(store)
    assert len(store.shared_data(TENANT).comparisons) == 2
    assert len(store.shared_data(TENANT, public_only=True).comparisons) == 0


def test_a_domain_names_the_tasks_and_languages_of_its_texts(store: Store) -> None:
    texts = (Item("chat", "p", "a", "de"), Item("chat", "p", "b", "en", "reply"), Item("chat", "p", "c", "de"))
    data = dataset(items=(*texts, Item("mail", "p", "d", "fr")), ratings=tuple(rating("ann", n) for n in range(4)))
    store.import_dataset(TENANT, data, PUBLIC, at(0))
    assert store.contexts(TENANT, "chat") == [("", "de"), ("reply", "en")]
    assert store.contexts(TENANT, "elsewhere") == store.contexts("other", "chat") == []


def test_a_domain_reads_only_its_own(store: Store) -> None:
    both = items(2, "chat") + items(2, "code")
    data = dataset(items=both, ratings=(rating("ann", 0), rating("bob", 2)), comparisons=(Comparison("cleo", 2, 3),))
    store.import_dataset(TENANT, data, PUBLIC, at(0))
    assert store.shared_data(TENANT, domain="chat").people == ("ann",)
    assert store.shared_data(TENANT, domain="code").people == ("bob", "cleo")
    assert store.shared_data(TENANT, domain="voice").people == ()


@pytest.mark.parametrize("scope", ["adapter", "feedback", "all"])
def test_after_any_reset_older_data_is_not_shared_again(store: Store, scope: Any) -> None:
    data = dataset(ratings=(rating("ann"),), comparisons=pairs("ann", 2))
    store.import_dataset(TENANT, data, PUBLIC, at(0))
    opt_in(store, "ann")
    give_feedback(store)
    store.apply_reset(TENANT, "ann", "x1", plan_reset(scope), at(2))
    assert store.shared_data(TENANT).people == ()


def test_feedback_after_a_reset_is_theirs_to_give_even_at_the_same_moment(store: Store) -> None:
    opt_in(store, "ann")
    give_feedback(store, number=1, minutes=2)
    store.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(2))
    give_feedback(store, number=2, minutes=2)
    assert len(store.shared_data(TENANT).comparisons) == 2
    assert len(store.personal_snapshot(TENANT).comparisons) == 4


def test_nothing_crosses_tenants(store: Store) -> None:
    data = dataset(ratings=(rating("ann"),), adaptation=pairs("ann", 2), evaluation={"test": pairs("ann", 1)})
    store.import_dataset(TENANT, data, ImportOptions(public=True, opt_in=True), at(0))
    assert len(store.shared_data("other").ratings) == 0
    assert store.personal_snapshot("other", subjects=["ann"]).people == ()
    with pytest.raises(NotFoundError):
        store.evaluation_data("other", "votes")


def test_a_personal_snapshot_carries_generations_and_parents(store: Store) -> None:
    store.apply_reset(TENANT, "bob", "x1", plan_reset("all"), at(0))
    opt_in(store, "ann", "bob", minutes=1)
    publish_user(store, "v1", "ann")
    give_feedback(store, "ann")
    give_feedback(store, "bob")
    snapshot = store.personal_snapshot(TENANT)
    assert snapshot.people == ("ann", "bob")
    assert snapshot.generation_P == (0, 1)
    assert snapshot.parent_P == ("v1", None)


def test_a_personal_snapshot_leaves_out_who_paused_or_did_not_agree(store: Store) -> None:
    data = dataset(adaptation=pairs("ann", 1) + pairs("bob", 1), comparisons=pairs("cleo", 1))
    store.import_dataset(TENANT, data, OPTED_IN, at(0))
    store.change_subject(TENANT, "bob", ConsentChange(paused=True), at(1))
    assert store.personal_snapshot(TENANT).people == ("ann",)
    assert store.personal_snapshot(TENANT, subjects=["bob", "cleo", "nobody"]).people == ()


def test_of_comparisons_without_times_the_first_of_the_file_are_kept_in_its_order(store: Store) -> None:
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 5)), OPTED_IN, at(0))
    assert personal_weights(store, max_comparisons=3) == [1.0, 2.0, 3.0]


def test_of_comparisons_at_one_time_the_first_of_the_file_are_kept(store: Store) -> None:
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 5, occurred_at=at(3))), OPTED_IN, at(0))
    assert personal_weights(store, max_comparisons=3) == [1.0, 2.0, 3.0]


def test_of_comparisons_with_times_the_newest_are_kept_in_order_of_storing(store: Store) -> None:
    times = [3, 1, None, 5, 4]
    adaptation = tuple(
        Comparison("ann", 0, 1, weight=float(number), occurred_at=None if time is None else at(time))
        for number, time in enumerate(times)
    )
    store.import_dataset(TENANT, dataset(adaptation=adaptation), OPTED_IN, at(0))
    assert personal_weights(store, max_comparisons=3) == [0.0, 3.0, 4.0]
    assert personal_weights(store, max_comparisons=4) == [0.0, 1.0, 3.0, 4.0]


def test_feedback_goes_before_an_import_without_times(store: Store) -> None:
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 5, source="vote")), OPTED_IN, at(0))
    give_feedback(store)
    snapshot = store.personal_snapshot(TENANT, max_comparisons=3)
    assert [snapshot.items[index].prompt for index in snapshot.comparisons.chosen_C] == ["how?", "q", "q"]


def test_the_bound_holds_for_each_person_and_indices_stay_true(store: Store) -> None:
    people = [f"p{number:03}" for number in range(40)]
    adaptation = tuple(pair for person in people for pair in pairs(person, 7))
    store.import_dataset(TENANT, dataset(adaptation=adaptation), OPTED_IN, at(0))
    snapshot = store.personal_snapshot(TENANT, subjects=people[:30], max_comparisons=5)
    assert snapshot.people == tuple(people[:30])
    assert snapshot.comparisons.person_C.tolist() == [person for person in range(30) for _ in range(5)]
    assert {snapshot.items[index].text for index in snapshot.comparisons.chosen_C} == {"answer 0 to how?"}


def test_a_bound_below_one_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match="0"):
        store.personal_snapshot(TENANT, max_comparisons=0)


def test_a_snapshot_takes_as_many_statements_for_many_people_as_for_one(store: SqlStore) -> None:
    def statements(people: list[str]) -> int:
        seen: list[str] = []
        engine = store._database.engine
        count = lambda *args: seen.append(args[2])  # noqa: E731  listened to and removed by identity
        event.listen(engine, "before_cursor_execute", count)
        store.personal_snapshot(TENANT, subjects=people)
        event.remove(engine, "before_cursor_execute", count)
        return len(seen)

    people = [f"p{number:03}" for number in range(300)]
    adaptation = tuple(pair for person in people for pair in pairs(person, 1))
    store.import_dataset(TENANT, dataset(adaptation=adaptation), OPTED_IN, at(0))
    assert statements(people) == statements(people[:1])


def test_evaluation_parts_come_back_apart(store: Store) -> None:
    parts = {"test_new": pairs("bob", 1), "test_known": pairs("ann", 2) + pairs("bob", 1)}
    store.import_dataset(TENANT, dataset(evaluation=parts), PUBLIC, at(0))
    data = store.evaluation_data(TENANT, "votes")
    assert sorted(data.parts) == ["test_known", "test_new"]
    assert data.parts["test_known"].weight_C.tolist() == [1.0, 2.0, 1.0]
    assert [data.people[person] for person in data.parts["test_known"].person_C] == ["ann", "ann", "bob"]
    assert [data.people[person] for person in data.parts["test_new"].person_C] == ["bob"]


def test_an_evaluation_lists_its_texts_as_their_data_set_did_whichever_of_them_were_preferred(store: Store) -> None:
    listed = items(12)
    later_wins = tuple(Comparison("ann", n, n - 1) for n in range(11, 1, -1))
    store.import_dataset(TENANT, dataset(items=listed, evaluation={"test": later_wins}), PUBLIC, at(0))
    turned = dataset("turned", "2", items=listed[::-1], evaluation={"test": later_wins})
    store.import_dataset(TENANT, turned, PUBLIC, at(0))
    assert store.evaluation_data(TENANT, "votes").items == listed[1:]
    assert store.evaluation_data(TENANT, "turned").items == listed[::-1][1:]
    pairs_ = store.evaluation_data(TENANT, "votes").parts["test"]
    assert pairs_.chosen_C.tolist() == list(range(10, 0, -1))


def test_an_unknown_data_set_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError, match="votes"):
        store.evaluation_data(TENANT, "votes")


def test_rows_that_are_read_in_blocks_are_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = tuple(Rating(f"p{n % 3}", n % 4, float(n)) for n in range(7))
    data = dataset(ratings=ratings, comparisons=(*pairs("ann", 4), *pairs("p1", 3)))
    store.import_dataset(TENANT, data, PUBLIC, at(0))
    whole = store.shared_data(TENANT)
    for block in (1, 2, 7):
        monkeypatch.setattr(columns, "BLOCK", block)
        found = store.shared_data(TENANT)
        assert (found.people, found.items) == (whole.people, whole.items)
        assert readable(found) == readable(whole)
        assert found.ratings.value_R.dtype == whole.ratings.value_R.dtype


def test_an_evaluation_has_what_its_people_told_in_the_same_data_set_and_agreed_to(store: Store) -> None:
    told = (*pairs("ann", 3), *pairs("bob", 2), *pairs("cat", 1))
    data = dataset(adaptation=told, evaluation={"test": (*pairs("ann", 1), *pairs("bob", 1))})
    store.import_dataset(TENANT, data, OPTED_IN, at(0))
    store.import_dataset(TENANT, dataset("other", "2", adaptation=pairs("ann", 5)), OPTED_IN, at(0))

    def adaptation() -> dict[str, list[float]]:
        found = store.evaluation_data(TENANT, "votes")
        rows = found.adaptation
        return {
            found.people[person]: rows.weight_C[rows.person_C == person].tolist()
            for person in set(rows.person_C.tolist())
        }

    assert adaptation() == {"ann": [1.0, 2.0, 3.0], "bob": [1.0, 2.0]}
    store.change_subject(TENANT, "bob", ConsentChange(paused=True), at(1))
    assert adaptation() == {"ann": [1.0, 2.0, 3.0]}
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(2))
    assert adaptation() == {}
