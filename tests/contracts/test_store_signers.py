"""Which key signed a version: said once for a release, by its own row, if it signed all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from postgres_server import PostgresServer
from sqlalchemy import select
from store_samples import GLOBAL, TENANT, at, opt_in, tampering, template, version

from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.upgrading import alembic_config
from people_keys import open_with_keys

ONE, OTHER = "1" * 16, "2" * 16
PEOPLE = ("ann", "bob")


def prepared(store: SqlStore) -> SqlStore:
    store.create_tenant(TENANT, at(0))
    store.set_global(GLOBAL, at(0), reason="trained", actor="trainer")
    for person in PEOPLE:
        opt_in(store, person)
    return store


def publish(store: SqlStore, release: str, *signed_by: str) -> None:
    versions = [
        version(f"{release}-{person}", release, person, key_id=key)
        for person, key in zip(PEOPLE, signed_by, strict=True)
    ]
    store.publish(release, template(), versions, at(0), reason="trained", actor="trainer")


def signers(store: SqlStore, release: str) -> list[str]:
    return [stored.version.key_id for stored in store.versions(TENANT, release=release)]


def written(store: SqlStore) -> list[str]:
    with store._database.reading(ALL_TENANTS) as connection:
        return list(connection.scalars(select(schema.versions.c.key_id).order_by(schema.versions.c.id)))


def served(store: SqlStore) -> list[str | None]:
    found = [store.resolve(TENANT, person, None).user for person in PEOPLE]
    return [None if one is None else one.id for one in found]


@pytest.fixture
def two_people(store: SqlStore) -> SqlStore:
    return prepared(store)


def test_a_key_that_signed_a_whole_release_is_written_once_and_known_of_each_version(two_people: SqlStore) -> None:
    publish(two_people, "r1", ONE, ONE)
    assert written(two_people) == ["", ""]
    assert signers(two_people, "r1") == [ONE, ONE]


def test_of_a_release_that_several_keys_signed_each_version_names_its_own(two_people: SqlStore) -> None:
    publish(two_people, "r1", ONE, OTHER)
    assert signers(two_people, "r1") == [ONE, OTHER]
    assert two_people.withdraw_signing_key(OTHER, at(1), reason="stolen", actor="admin") == 1
    assert served(two_people) == ["r1-ann", None]


def test_a_withdrawn_key_takes_its_releases_along_and_no_others(two_people: SqlStore) -> None:
    publish(two_people, "r1", ONE, ONE)
    publish(two_people, "r2", OTHER, OTHER)
    assert two_people.withdraw_signing_key(OTHER, at(1), reason="stolen", actor="admin") == 2
    assert served(two_people) == ["r1-ann", "r1-bob"]
    assert two_people.promote_release(TENANT, "r2", at(2), reason="try", actor="admin") == 0
    assert two_people.withdraw_signing_key(ONE, at(3), reason="stolen too", actor="admin") == 2
    assert served(two_people) == [None, None]


@pytest.fixture(params=["sqlite", "postgres"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"signers_{abs(hash(tmp_path))}")


def test_an_older_schema_has_the_key_in_every_row_and_the_way_up_again_keeps_it(own_url: str) -> None:
    store = prepared(open_with_keys(own_url))
    publish(store, "r1", ONE, ONE)
    publish(store, "r2", ONE, OTHER)
    with tampering(store) as connection:
        command.downgrade(alembic_config(connection), "0017")
    assert written(store) == [ONE, ONE, ONE, OTHER]
    with tampering(store) as connection:
        command.upgrade(alembic_config(connection), "head")
    assert signers(store, "r1") + signers(store, "r2") == [ONE, ONE, ONE, OTHER]
    publish(store, "r3", OTHER, OTHER)
    assert store.withdraw_signing_key(ONE, at(1), reason="stolen", actor="admin") == 3
    store.close()
