"""Budgets that renew, what each release cost a person, and clocks that can't be trusted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from store_samples import EVENT, GLOBAL, TENANT, at, opt_in, publish_domain, publish_user

from idiolect.errors import InvalidInputError
from idiolect.privacy.events import GaussianEvent
from idiolect.privacy.ledger import Account
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store

WINDOW = timedelta(minutes=30)


def granted(store: Store, minutes: float, budget: float = 2.0, **fields: Any) -> bool:
    fields = {"unit": "comparison", "event": EVENT, "window": WINDOW, "person": "ann"} | fields
    unit, event, person = fields.pop("unit"), fields.pop("event"), fields.pop("person")
    reservation = store.reserve(TENANT, unit, "user adapters", event, [person], budget, at(minutes), **fields)
    return reservation.granted == {person}


def test_only_charges_within_the_window_count_towards_a_budget(store: Store) -> None:
    assert [granted(store, minutes) for minutes in (0, 10, 20, 30)] == [True, True, False, False]
    assert granted(store, 30.1)  # the charge at 0 is 30.1 old
    assert not granted(store, 39)
    assert granted(store, 41)
    assert store.account(TENANT, "comparison", "ann") == Account("ann", "comparison", 4.0, 4)
    assert store.account(TENANT, "comparison", "ann", since=at(30.1)) == Account("ann", "comparison", 2.0, 2)
    assert store.account(TENANT, "comparison", "bob", since=at(0)) == Account("bob", "comparison", 0.0, 0)


def test_a_charge_that_left_the_window_still_counts_where_there_is_none(store: Store) -> None:
    assert granted(store, 0)
    assert granted(store, 100)
    assert not granted(store, 200, window=None)


def test_units_people_and_tenants_renew_apart(store: Store) -> None:
    assert granted(store, 0, 1.0)
    assert granted(store, 1, 1.0, unit="subject")
    assert granted(store, 2, 1.0, person="bob")
    assert store.reserve("other", "comparison", "x", EVENT, ["ann"], 1.0, at(3), window=WINDOW).granted == {"ann"}
    assert not granted(store, 4, 1.0)
    assert granted(store, 30.5, 1.0)
    assert not granted(store, 30.6, 1.0, unit="subject")


def test_runs_of_different_costs_add_up_in_a_window(store: Store) -> None:
    half = GaussianEvent(noise_multiplier=2.0, steps=4)
    assert granted(store, 0, event=half)
    assert granted(store, 1)
    assert not granted(store, 2)
    assert granted(store, 3, event=half)
    assert store.account(TENANT, "comparison", "ann", since=at(0)).spent_rho == pytest.approx(2.0, rel=1e-12)


def test_a_clock_that_goes_back_frees_no_budget(store: Store) -> None:
    assert granted(store, 100)
    assert granted(store, 101)
    for minutes in (99, 50, 0, -10_000, 60, 102):
        assert not granted(store, minutes)


def test_a_charge_made_by_a_slow_clock_stays_in_the_window_as_long_as_any_other(store: Store) -> None:
    assert granted(store, 100)
    assert granted(store, 40)
    assert {run.reserved_at for run in store.runs(TENANT)} == {at(100)}
    assert not granted(store, 115)  # at 40 it would have left by now
    assert granted(store, 131)


def test_after_a_clock_that_was_far_ahead_no_charge_ages_until_that_time_has_come(store: Store) -> None:
    assert granted(store, 100)
    assert granted(store, 1_000_000)
    assert not granted(store, 101)
    assert granted(store, 5_000)
    assert not granted(store, 9_000)
    assert granted(store, 1_000_031)


def test_a_window_of_no_time_is_refused_and_leaves_no_trace(store: Store) -> None:
    for window in (timedelta(0), timedelta(days=-1)):
        with pytest.raises(InvalidInputError, match="window"):
            granted(store, 0, window=window)
    assert store.runs(TENANT) == []


def test_a_window_longer_than_the_calendar_counts_everything(store: Store) -> None:
    forever = timedelta(days=999_999_999)
    assert granted(store, 0, 1.0, window=forever)
    assert not granted(store, 10_000_000, 1.0, window=forever)


def test_threads_do_not_spend_the_same_rest_of_a_window(store: Store) -> None:
    def spend(_worker: int) -> int:
        return sum(granted(store, 50, 10.0) for _ in range(5))

    for minutes in range(8):
        granted(store, minutes, 10.0)  # of an earlier window
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(spend, range(6))) == 10


def test_a_reset_does_not_renew_a_window(store: Store) -> None:
    assert granted(store, 0, 1.0)
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(1))
    assert not granted(store, 2, 1.0)


def test_charges_name_the_release_that_each_run_made(store: Store) -> None:
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, "ann")
    crashed = store.reserve(TENANT, "comparison", "user adapters", EVENT, ["ann"], 9.0, at(1)).run
    shared = store.reserve(TENANT, "subject", "domain chat", EVENT, ["ann", "bob"], 9.0, at(2)).run
    own = store.reserve(TENANT, "comparison", "user adapters", EVENT, ["ann"], 9.0, at(3)).run
    store.reserve(TENANT, "comparison", "user adapters", EVENT, ["bob"], 9.0, at(4))
    publish_domain(store, "d1", run=shared)
    publish_user(store, "v1", run=own)
    store.revoke_release(TENANT, "r-v1", at(5), reason="bad", actor="admin")
    found = [(charge.run.id, charge.release, charge.revoked) for charge in store.charges(TENANT, "ann")]
    assert found == [(own, "r-v1", True), (shared, "r-d1", False), (crashed, None, False)]
    assert [charge.run.id for charge in store.charges(TENANT, "ann", unit="subject")] == [shared]
    assert [charge.run.id for charge in store.charges(TENANT, "ann", limit=1)] == [own]
    assert store.charges("other", "ann") == []


def test_someone_who_was_refused_has_no_charge(store: Store) -> None:
    assert granted(store, 0, 1.0)
    assert not granted(store, 1, 1.0)
    assert len(store.charges(TENANT, "ann")) == 1


def test_runs_can_be_listed_of_one_unit(store: Store) -> None:
    assert granted(store, 0)
    assert granted(store, 1, unit="subject")
    assert [run.unit for run in store.runs(TENANT, unit="subject")] == ["subject"]
    assert [run.unit for run in store.runs(TENANT)] == ["subject", "comparison"]


def test_one_release_and_its_versions_can_be_read(store: Store) -> None:
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, "ann")
    publish_user(store, "v1")
    publish_domain(store, "d1")
    found = store.release(TENANT, "r-v1")
    assert found is not None
    assert (found.scope, found.versions, found.revoked) == ("user", 1, False)
    assert [stored.version.id for stored in store.versions(TENANT, release="r-d1")] == ["d1"]
    assert store.release("other", "r-v1") is None
    assert store.release(TENANT, "missing") is None
