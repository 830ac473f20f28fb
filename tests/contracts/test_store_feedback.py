"""Inferences, feedback and the training queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select
from store_samples import OPTED_IN, TENANT, at, dataset, give_feedback, opt_in, pairs, shown, signal

from idiolect.consent import ConsentChange
from idiolect.errors import ConflictError, ConsentError, InvalidInputError, NotFoundError
from idiolect.ids import new_id, text_digest
from idiolect.resets.plan import plan_reset
from idiolect.signals.comparison import Item
from idiolect.signals.events import Inference
from idiolect.stores.ports import ShownInference, Store
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.feedback import MAX_FEEDBACK_COMPARISONS
from idiolect.subject_keys import signals_in


def test_an_inference_comes_back_as_it_was_recorded(store: Store) -> None:
    inference = shown(store)
    assert store.inference(TENANT, "i1") == inference
    assert store.inference("other", "i1") is None


def test_an_inference_without_a_person_or_a_domain_comes_back_so(store: Store) -> None:
    assert store.inference(TENANT, shown(store, subject=None, domain=None).id) == shown(
        store, subject=None, domain=None
    )


def test_recording_again_is_harmless_but_another_content_is_a_conflict(store: Store) -> None:
    shown(store)
    shown(store)
    with pytest.raises(ConflictError, match="i1"):
        shown(store, texts=("q", "b", "a"))


def test_an_inference_must_bring_its_texts(store: Store) -> None:
    inference = shown(store)
    unknown = replace(inference, id="i2", documents=(text_digest("never sent"),))
    with pytest.raises(InvalidInputError, match="i2"):
        store.record_inference(TENANT, unknown, ["q"])
    assert store.inference(TENANT, "i2") is None


def test_texts_that_are_known_need_not_be_sent_again(store: Store) -> None:
    again = replace(shown(store), id="i2")
    store.record_inference(TENANT, again, [])
    assert store.inference(TENANT, "i2") == again


def at_once(store: Store, inference_id: str, subject: str | None = "ann", **changes: Any) -> Any:
    query, document = text_digest("q"), text_digest("a")
    inference = Inference(inference_id, subject, "chat", query, (document,), (0,), at(1))
    return store.record_at_once([ShownInference(TENANT, replace(inference, **changes), ("q", "a"))])


def test_what_waits_for_nothing_is_recorded_at_once_where_the_store_is_embedded(store: Store) -> None:
    shown(store)  # the person has a key
    if not store.embedded:
        assert at_once(store, "i2") is None
        assert store.inference(TENANT, "i2") is None
        return
    assert at_once(store, "i2") == ["recorded"]
    assert at_once(store, "i3", None) == ["recorded"]
    for name, subject in (("i2", "ann"), ("i3", None)):
        found = store.inference(TENANT, name)
        assert found is not None
        assert found.subject == subject
    assert at_once(store, "i2") == ["recorded"]
    (differs,) = at_once(store, "i2", shown=(1,))
    assert isinstance(differs, ConflictError)
    (bad,) = at_once(store, "i4", query="no digest")
    assert isinstance(bad, InvalidInputError)
    opt_in(store, "ann")
    store.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(5))
    assert at_once(store, "i5") == ["outdated"]


def test_what_has_to_wait_for_a_new_key_or_another_writer_is_not_recorded_at_once(store: SqlStore) -> None:
    newcomer = new_id()
    assert at_once(store, "i1", newcomer) is None
    assert store._database.keys().find(TENANT, {(newcomer, signals_in("chat"))}) == {}
    shown(store, "i2")
    with store._database._turn:
        assert at_once(store, "i3") is None
    if store.embedded:
        with store._database.engine.execution_options(idiolect_write=True).begin():  # as another process would
            assert at_once(store, "i3") is None
    assert store.inference(TENANT, "i3") is None


def links(store: SqlStore) -> int:
    with store._database.reading(TENANT) as connection:
        return connection.scalar(select(func.count()).select_from(schema.inference_texts)) or 0


def test_a_person_who_is_shown_the_same_again_adds_one_row(store: SqlStore) -> None:
    shown(store, "i1", minutes=1)
    before = links(store)
    shown(store, "i2", minutes=2)
    shown(store, "i3", texts=("q", "c", "a"), minutes=3)
    assert links(store) == before
    shown(store, "i4", minutes=65)  # another hour, of which each has its own
    assert links(store) == 2 * before
    shown(store, "i5", "bob", minutes=66)
    shown(store, "i6", domain="voice", minutes=66)
    assert links(store) == 4 * before
    for number in range(1, 7):
        assert store.inference(TENANT, f"i{number}") is not None


def test_something_that_is_not_a_digest_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match="digest"):
        store.record_inference(TENANT, replace(shown(store), id="i2", query="no digest"), ["q"])


def test_feedback_becomes_comparisons_of_what_was_shown(store: Store) -> None:
    opt_in(store, "ann")
    assert store.add_feedback(TENANT, "ann", signal("s1", shown(store), (2, 0)), at(1)) is True
    snapshot = store.personal_snapshot(TENANT)
    chosen, rejected = snapshot.comparisons.chosen_C[0], snapshot.comparisons.rejected_C[0]
    assert snapshot.people == ("ann",)
    assert snapshot.items[chosen] == Item("chat", "q", "c")
    assert snapshot.items[rejected] == Item("chat", "q", "a")


def test_feedback_is_idempotent_by_id(store: Store) -> None:
    opt_in(store, "ann")
    given = signal("s1", shown(store))
    assert store.add_feedback(TENANT, "ann", given, at(1)) is True
    assert store.add_feedback(TENANT, "ann", given, at(2)) is False
    assert len(store.personal_snapshot(TENANT).comparisons) == 2
    assert store.training_queue(min_new=3) == []


@pytest.mark.parametrize("known", [True, False])
def test_feedback_of_someone_who_did_not_agree_is_not_kept(store: Store, known: bool) -> None:
    if known:
        store.change_subject(TENANT, "ann", ConsentChange(strength=1.0), at(0))
    with pytest.raises(ConsentError):
        store.add_feedback(TENANT, "ann", signal("s1", shown(store)), at(1))
    opt_in(store, "ann")
    assert len(store.personal_snapshot(TENANT).comparisons) == 0
    assert store.add_feedback(TENANT, "ann", signal("s1", shown(store)), at(1)) is True


def test_feedback_on_what_was_shown_to_another_or_elsewhere_is_not_found(store: Store) -> None:
    opt_in(store, "ann", "bob")
    store.change_subject("other", "ann", ConsentChange(opted_in=True), at(0))
    inference = shown(store, subject="bob")
    for tenant, person in ((TENANT, "ann"), ("other", "bob"), ("other", "ann")):
        with pytest.raises((NotFoundError, ConsentError)) as caught:
            store.add_feedback(tenant, person, signal("s1", inference), at(1))
        assert "bob" not in str(caught.value)
    assert store.add_feedback(TENANT, "bob", signal("s1", inference), at(1)) is True


def test_feedback_on_what_was_shown_to_nobody_in_particular_counts(store: Store) -> None:
    opt_in(store, "ann")
    assert store.add_feedback(TENANT, "ann", signal("s1", shown(store, subject=None)), at(1)) is True


def test_the_stored_inference_is_believed_and_not_the_callers(store: Store) -> None:
    opt_in(store, "ann")
    forged = replace(shown(store, subject="bob"), subject="ann")
    with pytest.raises(NotFoundError):
        store.add_feedback(TENANT, "ann", signal("s1", forged), at(1))


@pytest.mark.parametrize("pair", [(0, 3), (-1, 0)])
def test_feedback_on_a_document_that_was_not_shown_is_refused_whole(store: Store, pair: tuple[int, int]) -> None:
    opt_in(store, "ann")
    with pytest.raises(InvalidInputError, match="s1"):
        store.add_feedback(TENANT, "ann", signal("s1", shown(store), (0, 1), pair), at(1))
    assert store.training_queue(min_new=1) == []
    assert store.add_feedback(TENANT, "ann", signal("s1", shown(store)), at(1)) is True


def test_a_flood_keeps_only_the_newest_feedback_and_all_that_was_imported(store: Store) -> None:
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 3)), OPTED_IN, at(0))
    inference = shown(store)
    for number in range(3):
        flood = signal(f"s{number}", inference, *[(0, 1)] * 1_000, minutes=number)
        store.add_feedback(TENANT, "ann", flood, at(number))
    newest = signal("last", inference, (2, 1), minutes=9)
    store.add_feedback(TENANT, "ann", newest, at(9))
    kept = store.personal_snapshot(TENANT, max_comparisons=10_000)
    assert len(kept.comparisons) == MAX_FEEDBACK_COMPARISONS + 3
    assert kept.items[kept.comparisons.chosen_C[-1]].text == "c"


def test_a_time_in_the_future_does_not_stay_the_newest_for_ever(store: Store) -> None:
    opt_in(store, "ann")
    inference = shown(store)
    store.add_feedback(TENANT, "ann", signal("s1", inference, (0, 1), minutes=10**6), at(1))
    store.add_feedback(TENANT, "ann", signal("s2", inference, (2, 1), minutes=2), at(2))
    snapshot = store.personal_snapshot(TENANT, max_comparisons=1)
    assert snapshot.items[snapshot.comparisons.chosen_C[0]].text == "c"


def test_the_queue_holds_who_gave_enough_since_their_last_training(store: Store) -> None:
    opt_in(store, "ann", "bob")
    give_feedback(store, "ann", 1, minutes=1)
    give_feedback(store, "bob", 1, minutes=1)
    give_feedback(store, "bob", 2, minutes=2)
    assert store.training_queue(min_new=2) == [(TENANT, "ann"), (TENANT, "bob")]
    assert store.training_queue(min_new=3) == [(TENANT, "bob")]
    store.mark_trained(TENANT, ["ann", "bob", "nobody"], at(1))
    assert store.training_queue(min_new=1) == [(TENANT, "bob")]
    store.mark_trained(TENANT, ["bob"], at(2))
    assert store.training_queue(min_new=1) == []
    give_feedback(store, "ann", 3, minutes=3)
    assert store.training_queue(min_new=2) == [(TENANT, "ann")]


def test_an_older_training_does_not_make_trained_comparisons_new_again(store: Store) -> None:
    opt_in(store, "ann")
    give_feedback(store, minutes=5)
    store.mark_trained(TENANT, ["ann"], at(5))
    store.mark_trained(TENANT, ["ann"], at(1))
    assert store.training_queue(min_new=1) == []


def test_imported_comparisons_queue_their_person(store: Store) -> None:
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 5)), OPTED_IN, at(0))
    assert store.training_queue(min_new=5) == [(TENANT, "ann")]
    assert store.training_queue(min_new=6) == []


def test_opting_in_later_queues_what_was_imported_before(store: Store) -> None:
    store.import_dataset(TENANT, dataset(comparisons=pairs("ann", 5)), OPTED_IN, at(0))
    assert store.training_queue(min_new=1) == []
    opt_in(store, "ann", minutes=1)
    assert store.training_queue(min_new=5) == [(TENANT, "ann")]


def test_someone_who_paused_waits_outside_the_queue(store: Store) -> None:
    opt_in(store, "ann")
    give_feedback(store)
    store.change_subject(TENANT, "ann", ConsentChange(paused=True), at(2))
    assert store.training_queue(min_new=1) == []
    store.change_subject(TENANT, "ann", ConsentChange(paused=False), at(3))
    assert store.training_queue(min_new=1) == [(TENANT, "ann")]


def test_what_was_shown_before_a_reset_and_is_recorded_after_it_is_dropped(store: Store) -> None:
    opt_in(store, "ann")
    store.apply_reset(TENANT, "ann", "x1", plan_reset("feedback"), at(5))
    late = shown(store, minutes=4)
    assert store.inference(TENANT, late.id) is None
    with pytest.raises(NotFoundError):
        store.add_feedback(TENANT, "ann", signal("s1", late, minutes=4), at(6))
    assert store.inference(TENANT, shown(store, "i2", minutes=6).id) is not None
