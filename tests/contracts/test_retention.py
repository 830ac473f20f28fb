"""Texts go when their tenant's retention says, with all that came of them but the adapters."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text
from store_samples import (
    GLOBAL,
    OPTED_IN,
    TENANT,
    at,
    dataset,
    give_feedback,
    opt_in,
    pairs,
    publish_user,
    shown,
    signal,
)

from idiolect.errors import InvalidInputError, NotFoundError, PreconditionError
from idiolect.retention import Swept, etag_of, oldest_kept
from idiolect.stores.sql import SqlStore
from idiolect.stores.sql.retention import INFERENCES
from idiolect.stores.sql.tenant_wall import ALL_TENANTS


def rows(store: SqlStore, *tables: str) -> list[int]:
    with store._database.reading(ALL_TENANTS) as connection:
        return [connection.scalar(text(f"SELECT count(*) FROM {name}")) or 0 for name in tables]


def sweep(store: SqlStore, minutes: float) -> Swept:
    """Of what was served before minute `minutes`."""
    return store.sweep(TENANT, at(minutes), at(1_000), actor="retention")


def test_what_is_older_goes_and_what_is_younger_stays(store: SqlStore) -> None:
    opt_in(store, "ann")
    for number in (1, 2, 3):
        give_feedback(store, "ann", number, minutes=number)
    assert sweep(store, 3) == Swept(inferences=2, signals=2, comparisons=4, texts=0)
    assert store.inference(TENANT, "i-ann-2") is None
    assert store.inference(TENANT, "i-ann-3") is not None
    assert len(store.personal_snapshot(TENANT).comparisons) == 2
    assert sweep(store, 3) == Swept()
    assert sweep(store, 4).texts == 4
    assert rows(store, "texts", "items", "inferences", "inference_texts", "signals", "comparisons") == [0] * 6


def test_texts_that_were_shown_to_nobody_in_particular_go_too(store: SqlStore) -> None:
    shown(store, "i1", None, minutes=1)
    shown(store, "i2", None, texts=("q", "a"), minutes=5)
    assert sweep(store, 2) == Swept(inferences=1, texts=2)
    assert rows(store, "texts") == [2]


def test_a_text_stays_as_long_as_one_inference_of_its_hour_shows_it(store: SqlStore) -> None:
    shown(store, "i1", texts=("q", "a", "b"), minutes=1)
    shown(store, "i2", texts=("q", "a", "c"), minutes=2)
    shown(store, "i3", texts=("q", "a", "d"), minutes=61)
    assert sweep(store, 2) == Swept(inferences=1, texts=1)  # b
    assert rows(store, "inference_texts") == [3 + 3]
    assert sweep(store, 3) == Swept(inferences=1, texts=1)  # c; the others were shown in the next hour
    assert rows(store, "inference_texts") == [3]
    assert sweep(store, 62) == Swept(inferences=1, texts=3)
    assert rows(store, "texts", "inference_texts") == [0, 0]


def test_a_sweep_that_stops_within_an_hour_leaves_the_texts_of_what_is_left(store: SqlStore) -> None:
    for number in range(INFERENCES + 1):
        shown(store, f"i{number}", texts=("q", f"a{number}", "last"), minutes=number / 100)
    once = iter([True, False])
    first = store.sweep(TENANT, at(50), at(60), actor="retention", goes_on=lambda: next(once))
    assert (first.inferences, first.texts) == (INFERENCES, INFERENCES)
    assert rows(store, "texts", "inference_texts") == [3, 3]
    assert sweep(store, 50) == Swept(inferences=1, texts=3)


def test_what_is_shown_again_after_its_hour_was_swept_is_kept_again(store: SqlStore) -> None:
    shown(store, "i1", minutes=1)
    assert sweep(store, 2).texts == 4
    shown(store, "i2", minutes=3)  # of the same hour
    assert rows(store, "texts", "inference_texts") == [4, 4]


def test_feedback_that_came_late_does_not_keep_its_texts(store: SqlStore) -> None:
    opt_in(store, "ann")
    seen = shown(store, "i1", "ann", minutes=1)
    store.add_feedback(TENANT, "ann", signal("s1", seen, minutes=500), at(500))
    assert sweep(store, 2).comparisons == 2
    assert rows(store, "texts", "items") == [0, 0]


def test_adapters_stay_and_so_does_consent(store: SqlStore) -> None:
    opt_in(store, "ann")
    store.set_global(GLOBAL, at(0), reason="trained", actor="trainer")
    give_feedback(store, "ann")
    publish_user(store, "v1", "ann")
    sweep(store, 100)
    resolution = store.resolve(TENANT, "ann", "chat")
    assert resolution.user is not None
    assert store.version(TENANT, "v1") is not None


def test_imported_data_stays(store: SqlStore) -> None:
    store.import_dataset(TENANT, dataset(adaptation=pairs("ann", 3)), OPTED_IN, at(0))
    before = rows(store, "texts", "items", "comparisons")
    shown(store, "i1", None, texts=("how?", "answer 0 to how?"), minutes=1)  # texts of the data set
    sweep(store, 100)
    assert rows(store, "texts", "items", "comparisons") == before


def test_nobody_waits_for_a_training_with_what_is_gone(store: SqlStore) -> None:
    opt_in(store, "ann")
    give_feedback(store, "ann", 1, minutes=1)
    give_feedback(store, "ann", 2, minutes=9)
    assert store.training_queue(min_new=4) == [(TENANT, "ann")]
    sweep(store, 5)
    assert store.training_queue(min_new=3) == []
    assert store.training_queue(min_new=2) == [(TENANT, "ann")]


def test_a_sweep_works_in_batches_and_goes_on_where_it_was_stopped(store: SqlStore) -> None:
    for number in range(INFERENCES + 5):
        shown(store, f"i{number}", None, minutes=number / 100)
    once = iter([True, False])
    first = store.sweep(TENANT, at(50), at(60), actor="retention", goes_on=lambda: next(once))
    assert first.inferences == INFERENCES
    assert sweep(store, 50).inferences == 5
    entries = [entry for entry in store.audit_entries(TENANT) if entry.action == "retention.sweep"]
    assert len(entries) == 2


def test_other_tenants_are_left_alone(store: SqlStore) -> None:
    shown(store, "i1", None, minutes=1)
    assert store.sweep("other", at(50), at(60), actor="retention") == Swept()
    assert store.inference(TENANT, "i1") is not None


def test_a_retention_is_kept_for_each_tenant_and_logged(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    store.create_tenant("other", at(0))
    store.set_retention(TENANT, 30, at(1), actor="operator")
    store.set_retention(TENANT, 30, at(2), actor="operator")
    assert store.retentions() == {TENANT: 30, "other": None}
    assert [entry.action for entry in store.audit_entries(TENANT)] == ["retention.set"]
    store.set_retention(TENANT, None, at(3), actor="operator")
    assert store.retentions()[TENANT] is None


@pytest.mark.parametrize("days", [0, -1, 3_651])
def test_a_retention_that_is_none_is_refused(store: SqlStore, days: int) -> None:
    store.create_tenant(TENANT, at(0))
    with pytest.raises(InvalidInputError, match="retention"):
        store.set_retention(TENANT, days, at(1), actor="operator")
    assert store.retentions() == {TENANT: None}


def test_an_unknown_tenant_has_no_retention(store: SqlStore) -> None:
    with pytest.raises(NotFoundError):
        store.set_retention("nobody", 30, at(1), actor="operator")
    with pytest.raises(NotFoundError):
        store.retention("nobody")


def test_of_two_who_change_it_at_once_one_is_told(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    seen = etag_of(store.retention(TENANT))

    def tries(days: int) -> bool:
        try:
            store.set_retention(TENANT, days, at(1), actor="operator", if_match=seen)
        except PreconditionError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(tries, range(10, 14))) == 1
    assert store.retention(TENANT) in range(10, 14)


def test_a_day_is_24_hours_back_from_now() -> None:
    assert oldest_kept(at(0), 2) == at(0) - timedelta(hours=48)
