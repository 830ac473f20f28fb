"""What a tenant may use at most holds exactly, whoever takes at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from store_samples import EVENT, OPTED_IN, TENANT, at, dataset, opt_in, pairs, shown, signal

from idiolect.consent import ConsentChange
from idiolect.errors import IdiolectError, InvalidInputError, NotFoundError, QuotaExceededError
from idiolect.ids import text_digest
from idiolect.quotas import Quota
from idiolect.signals.events import Inference
from idiolect.stores.ports import ShownInference
from idiolect.stores.sql import SqlStore

MIDNIGHT = datetime(2026, 5, 2, tzinfo=UTC)


@pytest.fixture(autouse=True)
def tenants(store: SqlStore) -> None:
    for tenant in (TENANT, "other"):
        store.create_tenant(tenant, at(0))


def reserve(store: SqlStore, now: datetime, tenant: str = TENANT) -> str:
    return store.reserve(tenant, "comparison", "user adapters", EVENT, ["ann"], 100.0, now).run


def opted_in(store: SqlStore) -> int:
    return sum(state.opted_in for state in store.subjects(TENANT))


def test_without_a_quota_nothing_is_bounded_and_nothing_is_shown(store: SqlStore) -> None:
    opt_in(store, "ann", "bob")
    assert store.quotas(TENANT, at(0)) == []


def test_as_many_people_opt_in_as_the_quota_says_and_the_next_is_told_why(store: SqlStore) -> None:
    store.set_quota(TENANT, "people", 2, at(0))
    opt_in(store, "ann", "bob")
    with pytest.raises(QuotaExceededError, match="quota of 2 people who are opted in") as refused:
        opt_in(store, "cyd")
    assert refused.value.code == "quota_exceeded"
    assert refused.value.retry_after_s is None
    assert not store.subject(TENANT, "cyd").known
    store.change_subject("other", "cyd", ConsentChange(opted_in=True), at(0))


def test_whoever_is_in_may_change_their_settings_and_whoever_leaves_makes_place(store: SqlStore) -> None:
    store.set_quota(TENANT, "people", 1, at(0))
    opt_in(store, "ann")
    store.change_subject(TENANT, "ann", ConsentChange(paused=True, opted_in=True), at(1))
    store.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(2))
    opt_in(store, "bob", minutes=3)
    with pytest.raises(QuotaExceededError):
        opt_in(store, "ann", minutes=4)


def test_people_who_were_in_before_the_quota_count_and_imported_ones_too(store: SqlStore) -> None:
    opt_in(store, "ann", "bob")
    store.set_quota(TENANT, "people", 3, at(0))
    assert store.quotas(TENANT, at(0)) == [Quota("people", 3, 2)]
    opt_in(store, "cyd")
    with pytest.raises(QuotaExceededError):
        opt_in(store, "dan")
    store.set_quota(TENANT, "people", 5, at(0))
    opt_in(store, "dan")
    store.import_dataset(TENANT, dataset(adaptation=pairs("eve", 3)), OPTED_IN, at(0))
    with pytest.raises(QuotaExceededError):
        opt_in(store, "fay")


def test_people_who_opt_in_at_once_do_not_pass_the_quota_together(store: SqlStore) -> None:
    store.set_quota(TENANT, "people", 3, at(0))

    def tries(number: int) -> bool:
        try:
            opt_in(store, f"person-{number}")
        except QuotaExceededError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(tries, range(16))) == 3
    assert opted_in(store) == 3


def test_signals_are_counted_by_the_day_and_one_that_comes_again_is_not_counted(store: SqlStore) -> None:
    store.set_quota(TENANT, "signals", 2, at(0))
    opt_in(store, "ann")
    inference = shown(store)
    for name in ("s1", "s2", "s2", "s1"):
        store.add_feedback(TENANT, "ann", signal(name, inference), at(1))
    with pytest.raises(QuotaExceededError, match="2 signals of feedback in a day") as refused:
        store.add_feedback(TENANT, "ann", signal("s3", inference), MIDNIGHT - timedelta(seconds=90))
    assert refused.value.retry_after_s == 90
    assert store.quotas(TENANT, at(1)) == [Quota("signals", 2, 2)]
    assert store.add_feedback(TENANT, "ann", signal("s3", inference), MIDNIGHT)
    assert store.quotas(TENANT, MIDNIGHT) == [Quota("signals", 2, 1)]


def test_signals_that_come_at_once_do_not_pass_the_quota_together(store: SqlStore) -> None:
    store.set_quota(TENANT, "signals", 5, at(0))
    opt_in(store, "ann", "bob")
    inferences = {name: shown(store, f"of-{name}", name) for name in ("ann", "bob")}

    def tries(number: int) -> bool:
        name = ("ann", "bob")[number % 2]
        try:
            return store.add_feedback(TENANT, name, signal(f"s{number}", inferences[name]), at(1))
        except QuotaExceededError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(tries, range(16))) == 5


def test_a_refused_training_charges_nobody(store: SqlStore) -> None:
    store.set_quota(TENANT, "trainings", 1, at(0))
    reserve(store, at(0))
    with pytest.raises(QuotaExceededError, match="1 trainings in a day"):
        reserve(store, at(1))
    assert store.account(TENANT, "comparison", "ann").runs == 1
    reserve(store, at(1), tenant="other")
    reserve(store, MIDNIGHT)


def test_a_clock_that_goes_back_frees_nothing(store: SqlStore) -> None:
    store.set_quota(TENANT, "trainings", 1, at(0))
    reserve(store, MIDNIGHT)
    with pytest.raises(QuotaExceededError):
        reserve(store, MIDNIGHT - timedelta(hours=1))


def test_a_clock_that_was_far_ahead_for_a_moment_binds_nobody_for_years(store: SqlStore) -> None:
    store.set_quota(TENANT, "trainings", 1, at(0))
    reserve(store, at(0) + timedelta(days=3650))
    assert [quota.used for quota in store.quotas(TENANT, at(0))] == [0]
    reserve(store, at(0))
    with pytest.raises(QuotaExceededError) as refused:
        reserve(store, at(1))
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s < 86_400
    assert [quota.used for quota in store.quotas(TENANT, at(1))] == [1]
    reserve(store, MIDNIGHT)


def test_a_quota_can_be_changed_and_removed_and_the_audit_log_says_so(store: SqlStore) -> None:
    store.set_quota(TENANT, "trainings", 0, at(0))
    with pytest.raises(QuotaExceededError):
        reserve(store, at(0))
    store.set_quota(TENANT, "trainings", 1, at(0))
    reserve(store, at(0))
    store.set_quota(TENANT, "trainings", None, at(0))
    reserve(store, at(0))
    said = [entry.details for entry in store.audit_entries(TENANT) if entry.action == "quota.set"]
    assert said == ['{"most":null}', '{"most":1}', '{"most":0}']


def test_a_quota_that_makes_no_sense_is_refused(store: SqlStore) -> None:
    with pytest.raises(InvalidInputError, match="no quota 'cats'"):
        store.set_quota(TENANT, "cats", 1, at(0))
    with pytest.raises(InvalidInputError, match="-1 is not usable"):
        store.set_quota(TENANT, "people", -1, at(0))
    with pytest.raises(NotFoundError):
        store.set_quota("nobody", "people", 1, at(0))


def recorded(store: SqlStore, name: str, minutes: float = 0.0, subject: str | None = None, text: str = "four") -> str:
    """How it ends for an answer that shows one text of four bytes, to a query of one."""
    texts = ["q", text]
    inference = Inference(name, subject, "chat", text_digest("q"), (text_digest(text),), (0,), at(minutes))
    (outcome,) = store.record_inferences([ShownInference(TENANT, inference, texts)])
    return outcome.code if isinstance(outcome, IdiolectError) else outcome


def test_texts_are_counted_by_the_bytes_that_are_served_and_what_is_over_is_not_kept(store: SqlStore) -> None:
    store.set_quota(TENANT, "text_bytes", 12, at(0))
    assert [recorded(store, name) for name in ("i1", "i2", "i3")] == ["recorded", "recorded", "quota_exceeded"]
    assert store.inference(TENANT, "i3") is None
    assert recorded(store, "i4", text="é") == "quota_exceeded"  # three bytes, and two are left
    assert recorded(store, "i5", text="") == "recorded"
    assert store.quotas(TENANT, at(1)) == [Quota("text_bytes", 12, 11)]


def test_an_answer_that_is_recorded_again_is_counted_once_and_a_new_day_begins_at_nothing(store: SqlStore) -> None:
    store.set_quota(TENANT, "text_bytes", 5, at(0))
    assert [recorded(store, "i1") for _ in range(3)] == ["recorded"] * 3
    assert recorded(store, "i2") == "quota_exceeded"
    day = (MIDNIGHT - at(0)).total_seconds() / 60
    assert recorded(store, "i2", minutes=day) == "recorded"
    assert store.quotas(TENANT, MIDNIGHT) == [Quota("text_bytes", 5, 5)]


def test_of_a_group_what_fits_is_kept_and_other_tenants_are_not_bound(store: SqlStore) -> None:
    store.set_quota(TENANT, "text_bytes", 5, at(0))
    inference = [
        Inference(f"i{n}", None, "chat", text_digest("q"), (text_digest("four"),), (0,), at(0)) for n in (1, 2)
    ]
    group = [ShownInference(tenant, one, ["q", "four"]) for one in inference for tenant in (TENANT, "other")]
    said = [one.code if isinstance(one, IdiolectError) else one for one in store.record_inferences(group)]
    assert said == ["recorded", "recorded", "quota_exceeded", "recorded"]
    assert store.inference("other", "i2") is not None


def test_answers_that_are_recorded_at_once_do_not_pass_the_quota_together(store: SqlStore) -> None:
    store.set_quota(TENANT, "text_bytes", 25, at(0))
    opt_in(store, "ann")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: recorded(store, f"i{number}", subject="ann"), range(16)))
    assert found.count("recorded") == 5
    assert store.quotas(TENANT, at(0)) == [Quota("text_bytes", 25, 25)]


def test_feedback_on_what_was_shown_to_nobody_copies_its_texts_and_they_count(store: SqlStore) -> None:
    opt_in(store, "ann")
    inference = shown(store, "i1", None, texts=("q", "one", "two", "six"))
    store.set_quota(TENANT, "text_bytes", 9, at(0))
    with pytest.raises(QuotaExceededError, match="bytes of served texts"):
        store.add_feedback(TENANT, "ann", signal("s1", inference), at(1))
    assert len(store.personal_snapshot(TENANT).comparisons) == 0
    store.set_quota(TENANT, "text_bytes", 10, at(0))
    assert store.add_feedback(TENANT, "ann", signal("s1", inference), at(1))
    assert store.quotas(TENANT, at(1)) == [Quota("text_bytes", 10, 10)]
