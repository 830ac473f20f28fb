"""Whoever is looked up together with others gets what they get alone."""

from __future__ import annotations

from itertools import product

import pytest
from store_samples import GLOBAL, TENANT, at, opt_in, publish_domain, publish_user
from test_store_global_rollouts import begin, carry, carry_chat, stage

from idiolect.consent import ConsentChange, DomainChange, SubjectState
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore
from idiolect.stores.sql.look_ups import FEW

OTHER = "other"
CROWD = [f"crowd {number}" for number in range(FEW + 3)]
PEOPLE = ["served", "plain", "paused", "out", "away", "reset", "fallen", "spoilt", *CROWD]
ASKED = list(product((TENANT, OTHER), (*PEOPLE, "unknown", "", None), ("chat", "voice", "nowhere", "", None)))


@pytest.fixture
def crowd(store: SqlStore) -> SqlStore:
    """People of every kind, some of them also in another tenant, and two domains of which one has an adapter."""
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, *PEOPLE)
    for person in ("served", "paused", "out", "away", "reset", "fallen", "spoilt", *CROWD[::2]):
        publish_user(store, f"v-{person}", person)
    for person in ("fallen", "spoilt"):
        publish_user(store, f"w-{person}", person, minutes=1)
    publish_domain(store, "d1")
    store.change_subject(TENANT, "paused", ConsentChange(paused=True), at(2))
    store.change_subject(TENANT, "out", ConsentChange(opted_in=False), at(2))
    store.change_subject(TENANT, "away", ConsentChange(domains=(DomainChange("voice", opted_in=False),)), at(2))
    store.apply_reset(TENANT, "reset", "r1", plan_reset("adapter"), at(2))
    publish_user(store, "x-reset", "reset", generation=1, minutes=3)
    store.revoke_release(TENANT, "r-w-fallen", at(3), reason="bad", actor="admin")
    for name in ("v-spoilt", "w-spoilt"):
        store.quarantine(TENANT, name, "bad", at(3), actor="serving")
    store.change_subject(OTHER, "served", ConsentChange(opted_in=True, strength=0.5), at(2))
    return store


def check(store: Store) -> None:
    alone = [store.resolve(*one) for one in ASKED]
    assert store.resolve_each(ASKED) == alone
    assert store.resolve_each(ASKED[::-1]) == alone[::-1]
    assert [store.resolve_each([one, one]) for one in ASKED[::7]] == [[one, one] for one in alone[::7]]


def test_resolved_together_each_is_served_what_they_are_served_alone(crowd: SqlStore) -> None:
    check(crowd)
    found = dict(zip(PEOPLE, crowd.resolve_each([(TENANT, person, "chat") for person in PEOPLE]), strict=True))
    served = {person: one.user.id for person, one in found.items() if one.user is not None}
    of_crowd = {person: f"v-{person}" for person in CROWD[::2]}
    assert served == {"served": "v-served", "reset": "x-reset", "fallen": "v-fallen", **of_crowd}
    assert found["spoilt"].user_withheld
    assert crowd.resolve_each([]) == []


def test_without_a_global_model_nobody_is_served_together_either(store: SqlStore) -> None:
    opt_in(store, "served", "plain")
    check(store)


def test_while_a_global_model_is_rolled_out_each_is_on_the_same_model_together_and_alone(crowd: SqlStore) -> None:
    carry(crowd, "r-v-served", [])  # a release that nobody was carried in
    carry_chat(crowd, "d1")
    stage(crowd)
    begin(crowd)
    check(crowd)


def test_the_states_of_people_are_read_together_as_they_are_alone(crowd: SqlStore) -> None:
    asked = list(product((TENANT, OTHER), (*PEOPLE, "unknown", "")))
    alone = [crowd.subject(*one) for one in asked]
    assert crowd.subject_each(asked) == alone
    assert crowd.subject_each(asked[: FEW - 1]) == alone[: FEW - 1]
    assert crowd.subject_each([asked[0], asked[0]]) == [alone[0]] * 2
    assert crowd.subject_each([(OTHER, "served"), (TENANT, "nobody")])[1] == SubjectState("nobody")
    assert crowd.subject_each([]) == []
