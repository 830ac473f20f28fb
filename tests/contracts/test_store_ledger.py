"""The ledger: charges are final, serialised, and per unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import EVENT, TENANT, at

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.privacy.events import GaussianEvent
from idiolect.privacy.ledger import RELATIVE_TOLERANCE, Account, Reservation, fits
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store


def reserve(
    store: Store, people: list[str], budget: float, *, unit: str = "comparison", minutes: float = 0
) -> Reservation:
    return store.reserve(TENANT, unit, "user adapters", EVENT, people, budget, at(minutes))  # type: ignore[arg-type]


def test_a_reservation_charges_whoever_stays_within_the_budget(store: Store) -> None:
    assert EVENT.rho == 1.0
    first = reserve(store, ["ann"], 2.5)
    assert (first.rho, first.granted, first.refused) == (1.0, {"ann"}, frozenset())
    reserve(store, ["ann"], 2.5)
    third = reserve(store, ["ann", "bob"], 2.5)
    assert (third.granted, third.refused) == ({"bob"}, {"ann"})
    assert store.account(TENANT, "comparison", "ann") == Account("ann", "comparison", 2.0, 2)
    assert store.account(TENANT, "comparison", "bob") == Account("bob", "comparison", 1.0, 1)


def test_a_budget_is_spent_to_its_end_in_spite_of_rounding(store: Store) -> None:
    third = GaussianEvent(noise_multiplier=(3.0 / 2.0) ** 0.5, steps=1)
    for _ in range(3):
        granted = store.reserve(TENANT, "comparison", "thirds", third, ["ann"], 1.0, at(0)).granted
        assert granted == {"ann"}
    assert store.reserve(TENANT, "comparison", "thirds", third, ["ann"], 1.0, at(0)).refused == {"ann"}


def test_someone_who_is_listed_twice_is_charged_once(store: Store) -> None:
    reservation = reserve(store, ["ann", "ann"], 5.0)
    assert store.account(TENANT, "comparison", "ann").spent_rho == 1.0
    assert [run.accounts for run in store.runs(TENANT)] == [1]
    assert reservation.granted == {"ann"}


def test_units_and_tenants_have_accounts_of_their_own(store: Store) -> None:
    reserve(store, ["ann"], 1.0)
    assert reserve(store, ["ann"], 1.0, unit="subject").granted == {"ann"}
    other = store.reserve("other", "comparison", "user adapters", EVENT, ["ann"], 1.0, at(0))
    assert other.granted == {"ann"}
    assert reserve(store, ["ann"], 1.0).refused == {"ann"}


def test_an_account_without_a_charge_is_empty(store: Store) -> None:
    assert store.account(TENANT, "subject", "ann") == Account("ann", "subject", 0.0, 0)


def test_a_run_is_reserved_until_it_is_settled(store: Store) -> None:
    run = reserve(store, ["ann", "bob"], 1.0, minutes=1).run
    (reserved,) = store.runs(TENANT)
    assert (reserved.id, reserved.state, reserved.settled_at) == (run, "reserved", None)
    assert (reserved.unit, reserved.purpose, reserved.event) == ("comparison", "user adapters", EVENT)
    assert (reserved.accounts, reserved.reserved_at) == (2, at(1))
    store.settle(TENANT, run, at(2))
    store.settle(TENANT, run, at(3))
    (settled,) = store.runs(TENANT)
    assert (settled.state, settled.settled_at) == ("settled", at(2))


def test_a_run_that_was_refused_to_everyone_is_over_at_once(store: Store) -> None:
    run = reserve(store, ["ann", "bob"], 0.5, minutes=1).run
    (refused,) = store.runs(TENANT)
    assert (refused.id, refused.state, refused.accounts, refused.settled_at) == (run, "refused", 0, at(1))
    store.settle(TENANT, run, at(2))
    assert store.runs(TENANT)[0].state == "refused"


def test_a_run_that_was_refused_to_some_is_reserved_for_the_others(store: Store) -> None:
    reserve(store, ["ann"], 1.0)
    reserve(store, ["ann", "bob"], 1.0, minutes=1)
    assert store.runs(TENANT)[0].state == "reserved"


def test_an_unknown_run_can_not_be_settled(store: Store) -> None:
    run = reserve(store, ["ann"], 1.0).run
    for tenant, name in ((TENANT, "missing"), ("other", run)):
        with pytest.raises(NotFoundError):
            store.settle(tenant, name, at(0))


def test_runs_are_listed_newest_first(store: Store) -> None:
    runs = [reserve(store, [], 1.0, minutes=minutes).run for minutes in range(3)]
    assert [run.id for run in store.runs(TENANT, limit=2)] == [runs[2], runs[1]]


def test_a_reset_never_refunds(store: Store) -> None:
    reserve(store, ["ann"], 1.0)
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(1))
    assert reserve(store, ["ann"], 1.0).refused == {"ann"}


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), -1.0])
def test_a_budget_that_is_no_amount_is_refused(store: Store, budget: float) -> None:
    with pytest.raises(InvalidInputError, match="budget"):
        reserve(store, ["ann"], budget)
    assert store.runs(TENANT) == []


def test_many_people_are_charged_in_one_run(store: Store) -> None:
    people = [f"p{number}" for number in range(6_000)]
    reserve(store, people[:10], 1.0)
    reservation = reserve(store, people, 1.0)
    assert len(reservation.granted) == 5_990
    assert reservation.refused == set(people[:10])


@given(st.floats(1e-6, 1e3), st.integers(1, 1_000))
def test_equal_parts_of_a_budget_fit_and_one_more_does_not(budget: float, parts: int) -> None:
    spent = 0.0
    for _ in range(parts):
        assert fits(spent, budget / parts, budget)
        spent += budget / parts
    assert not fits(spent, max(budget / parts, budget * 3 * RELATIVE_TOLERANCE), budget)
