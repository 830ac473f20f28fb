from __future__ import annotations

import pytest
from store_samples import TENANT, at

from idiolect.errors import ConflictError, NotFoundError
from idiolect.stores.sql import SqlStore
from idiolect.tenancy import Scope


@pytest.fixture(autouse=True)
def _tenants(store: SqlStore) -> None:
    for tenant in (TENANT, "other"):
        store.create_tenant(tenant, at(0))


def test_a_key_holds_for_its_own_tenant_until_it_is_revoked(store: SqlStore) -> None:
    key = store.create_key(TENANT, [Scope.INFER], b"a" * 32, at(1))
    assert store.key_holds(TENANT, key.id)
    assert not store.key_holds("other", key.id)
    assert not store.key_holds(TENANT, "nothing")
    store.revoke_key(key.id, at(2))
    assert not store.key_holds(TENANT, key.id)


def test_rotating_moves_the_scopes_to_a_new_key_and_ends_the_old_one(store: SqlStore) -> None:
    old = store.create_key(TENANT, [Scope.INFER, Scope.ADMIN], b"a" * 32, at(1))
    new = store.rotate_key(old.id, b"b" * 32, at(2))
    assert (new.tenant, new.scopes) == (TENANT, old.scopes)
    assert store.authenticate(b"a" * 32) is None
    caller = store.authenticate(b"b" * 32)
    assert caller is not None
    assert (caller.tenant, caller.scopes, caller.key_id) == (TENANT, old.scopes, new.id)


def test_a_key_that_is_unknown_or_revoked_is_not_rotated(store: SqlStore) -> None:
    with pytest.raises(NotFoundError):
        store.rotate_key("nothing", b"b" * 32, at(2))
    old = store.create_key(TENANT, [Scope.INFER], b"a" * 32, at(1))
    store.revoke_key(old.id, at(2))
    with pytest.raises(ConflictError):
        store.rotate_key(old.id, b"b" * 32, at(3))
    assert store.authenticate(b"b" * 32) is None


def test_a_secret_that_is_in_use_rotates_nothing(store: SqlStore) -> None:
    old = store.create_key(TENANT, [Scope.INFER], b"a" * 32, at(1))
    store.create_key("other", [Scope.INFER], b"b" * 32, at(1))
    with pytest.raises(ConflictError):
        store.rotate_key(old.id, b"b" * 32, at(2))
    assert store.authenticate(b"a" * 32) is not None
