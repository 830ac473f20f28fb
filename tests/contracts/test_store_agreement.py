"""All processes of an installation have the same keys, or they are told so before they spoil anything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from idiolect.errors import ConfigurationError
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS


def agreements(store: SqlStore) -> set[tuple[str, str]]:
    with store._database.reading(ALL_TENANTS) as connection:
        return {(row.name, row.value) for row in connection.execute(select(schema.agreements))}


def test_the_first_one_decides_and_whoever_has_the_same_keys_is_welcome(store: SqlStore) -> None:
    store.agree("master-1", "signing-1", ())
    agreed = agreements(store)
    assert len(agreed) == 2
    store.agree("master-1", "signing-1", ())
    assert agreements(store) == agreed


def test_another_master_key_is_refused(store: SqlStore) -> None:
    store.agree("master-1", "signing-1", ())
    with pytest.raises(ConfigurationError, match="master key is not the one") as refused:
        store.agree("master-2", "signing-1", ("signing-1",))
    assert "same secrets" in refused.value.mend


def test_a_signing_key_that_the_others_do_not_know_is_refused_by_name(store: SqlStore) -> None:
    store.agree("master-1", "signing-1", ())
    with pytest.raises(ConfigurationError, match="signing-2 is not the installation's, which is signing-1"):
        store.agree("master-1", "signing-2", ("signing-0",))
    store.agree("master-1", "signing-1", ())


def test_after_a_rotation_the_new_key_counts_and_whoever_kept_the_old_one_is_refused(store: SqlStore) -> None:
    store.agree("master-1", "signing-1", ())
    store.agree("master-1", "signing-2", ("signing-1",))
    with pytest.raises(ConfigurationError, match="signing-1 is not the installation's, which is signing-2"):
        store.agree("master-1", "signing-1", ())
    store.agree("master-1", "signing-2", ())


def test_of_several_that_start_at_once_with_other_keys_exactly_one_stays(store: SqlStore) -> None:
    def agrees(number: int) -> bool:
        try:
            store.agree(f"master-{number}", "signing-1", ())
        except ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(agrees, range(4))) == 1
