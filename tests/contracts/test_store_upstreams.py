from __future__ import annotations

from dataclasses import replace

import pytest
from store_samples import TENANT, at

from idiolect.errors import NotFoundError
from idiolect.stores.sql import SqlStore
from idiolect.upstreams import Upstream

SAMPLE = Upstream("https://api.example.com/v1", "tiny", b"\x01sealed", at(1))


def test_a_tenant_has_no_upstream_until_one_is_set(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    assert store.upstream(TENANT) is None
    store.set_upstream(TENANT, SAMPLE)
    assert store.upstream(TENANT) == SAMPLE


def test_a_new_one_replaces_all_of_the_old_one(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    store.set_upstream(TENANT, SAMPLE)
    bare = replace(SAMPLE, model=None, sealed_key=None, updated_at=at(2))
    store.set_upstream(TENANT, bare)
    assert store.upstream(TENANT) == bare


def test_it_belongs_to_one_tenant_and_is_gone_when_removed(store: SqlStore) -> None:
    for tenant in (TENANT, "other"):
        store.create_tenant(tenant, at(0))
        store.set_upstream(tenant, replace(SAMPLE, model=tenant))
    store.remove_upstream(TENANT)
    store.remove_upstream(TENANT)
    assert store.upstream(TENANT) is None
    other = store.upstream("other")
    assert other is not None
    assert other.model == "other"


def test_an_unknown_tenant_gets_none(store: SqlStore) -> None:
    with pytest.raises(NotFoundError):
        store.set_upstream("nobody", SAMPLE)
