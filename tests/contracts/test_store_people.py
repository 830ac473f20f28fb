"""Tenants, keys and consent."""

from __future__ import annotations

import pytest
from store_samples import GLOBAL, TENANT, at, give_feedback, opt_in, publish_user

from idiolect.consent import POLICY_VERSION, ConsentChange, SubjectState
from idiolect.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError
from idiolect.stores.ports import Store
from idiolect.tenancy import Caller, Scope

SCOPES = frozenset({Scope.INFER, Scope.ADMIN})


def test_a_key_authenticates_its_tenant_and_scopes_until_it_is_revoked(store: Store) -> None:
    store.create_tenant(TENANT, at(0))
    key = store.create_key(TENANT, SCOPES, b"hash", at(1))
    assert store.authenticate(b"hash") == Caller(TENANT, SCOPES)
    store.revoke_key(key.id, at(2))
    store.revoke_key(key.id, at(3))
    assert store.authenticate(b"hash") is None


def test_an_unknown_key_is_nobody(store: Store) -> None:
    assert store.authenticate(b"unknown") is None
    with pytest.raises(NotFoundError, match="missing"):
        store.revoke_key("missing", at(0))


def test_creating_a_tenant_twice_is_harmless(store: Store) -> None:
    store.create_tenant(TENANT, at(0))
    key = store.create_key(TENANT, SCOPES, b"hash", at(1))
    store.create_tenant(TENANT, at(2))
    assert key.scopes == SCOPES
    assert store.authenticate(b"hash") is not None


def test_a_key_needs_a_tenant_and_a_secret_of_its_own(store: Store) -> None:
    with pytest.raises(NotFoundError, match=TENANT):
        store.create_key(TENANT, SCOPES, b"hash", at(0))
    store.create_tenant(TENANT, at(0))
    store.create_key(TENANT, SCOPES, b"hash", at(0))
    with pytest.raises(ConflictError):
        store.create_key(TENANT, SCOPES, b"hash", at(0))


def test_an_unknown_person_has_the_default_state(store: Store) -> None:
    assert store.subject(TENANT, "ann") == SubjectState("ann")


def test_opting_in_is_remembered_with_its_policy_and_time(store: Store) -> None:
    state = store.change_subject(TENANT, "ann", ConsentChange(opted_in=True, strength=0.5), at(1))
    assert state == SubjectState("ann", True, True, False, 0.5, 0, 1, POLICY_VERSION, at(1))
    assert store.subject(TENANT, "ann") == state
    assert store.subject("other", "ann").known is False


def test_a_change_from_a_stale_revision_is_refused_and_changes_nothing(store: Store) -> None:
    opt_in(store, "ann")
    with pytest.raises(PreconditionError, match="revision 1"):
        store.change_subject(TENANT, "ann", ConsentChange(paused=True), at(1), if_revision=0)
    assert store.subject(TENANT, "ann").paused is False
    changed = store.change_subject(TENANT, "ann", ConsentChange(paused=True), at(1), if_revision=1)
    assert (changed.paused, changed.revision) == (True, 2)


def test_an_unknown_person_is_at_revision_zero(store: Store) -> None:
    with pytest.raises(PreconditionError):
        store.change_subject(TENANT, "ann", ConsentChange(opted_in=True), at(0), if_revision=1)
    assert store.change_subject(TENANT, "ann", ConsentChange(opted_in=True), at(0), if_revision=0).revision == 1


def test_opting_out_raises_the_generation_and_erases_the_adapters(store: Store) -> None:
    opt_in(store, "ann")
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    publish_user(store, "v1")
    state = store.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(1))
    assert (state.opted_in, state.generation, state.policy_version) == (False, 1, None)
    assert store.version(TENANT, "v1") is None
    opt_in(store, "ann", minutes=2)
    assert store.resolve(TENANT, "ann", None).user is None


def test_opting_out_takes_the_person_out_of_the_training_queue(store: Store) -> None:
    opt_in(store, "ann")
    give_feedback(store)
    assert store.training_queue(min_new=1) == [(TENANT, "ann")]
    store.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(2))
    opt_in(store, "ann", minutes=3)
    assert store.training_queue(min_new=1) == []


def test_the_empty_person_can_not_be_changed_because_that_would_be_the_domains(store: Store) -> None:
    with pytest.raises(InvalidInputError):
        store.change_subject(TENANT, "", ConsentChange(opted_in=False), at(0))


def test_people_are_listed_in_order_page_by_page_and_per_tenant(store: Store) -> None:
    opt_in(store, "cleo", "ann", "bob")
    store.change_subject("other", "zoe", ConsentChange(opted_in=True), at(0))
    assert [state.subject for state in store.subjects(TENANT, limit=2)] == ["ann", "bob"]
    assert [state.subject for state in store.subjects(TENANT, after="bob")] == ["cleo"]
