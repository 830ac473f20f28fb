"""Row-level security on Postgres: what one tenant's transaction can see and change, whatever its SQL says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from postgres_server import PostgresServer
from sqlalchemy import UpdateBase, func, select, text, update
from sqlalchemy.exc import ProgrammingError
from store_samples import (
    EVENT,
    GLOBAL,
    OPTED_IN,
    TENANT,
    at,
    dataset,
    opt_in,
    pairs,
    publish_domain,
    publish_user,
    tampering,
)

from idiolect.consent import ConsentChange
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import NO_TENANT, Behind, beyond_the_wall, stand_behind
from people_keys import open_with_keys

OTHER = "other"
# No tenant's, and without anything of one.
OF_THE_INSTALLATION = {
    "agreements",
    "doomed_blobs",
    "global_pointer",
    "global_trials",
    "key_store",
    "replicas",
    "staged_models",
    "withdrawn_keys",
}
WALLED = sorted(set(schema.metadata.tables) - OF_THE_INSTALLATION)


@pytest.fixture
def store(postgres_url: str) -> Iterator[SqlStore]:
    opened = open_with_keys(postgres_url)
    opened.create_tenant(TENANT, at(0))
    opened.create_tenant(OTHER, at(0))
    opened.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opened.import_dataset(TENANT, dataset(adaptation=tuple(pairs("ann", 2))), OPTED_IN, at(0))
    opened.reserve(TENANT, "comparison", "training", EVENT, ["ann"], 10.0, at(1))
    publish_user(opened, "v1")
    publish_domain(opened, "d1")
    opt_in(opened, "bob")
    opened.apply_reset(TENANT, "bob", "r1", plan_reset("adapter"), at(2))
    yield opened
    opened.close()


def rows_seen(store: SqlStore, whom: Behind | None) -> dict[str, int]:
    """By raw SQL that names no tenant. `whom` None: a transaction that does not say whose rows it is about."""
    with store._database.engine.begin() as connection:
        if whom is not None:
            stand_behind(connection, whom)
        counts = {name: connection.scalar(text(f"SELECT count(*) FROM {name}")) or 0 for name in WALLED}
    return {name: count for name, count in counts.items() if count}


def execute(store: SqlStore, whom: Behind, change: UpdateBase) -> int:
    """How many rows it changed."""
    with store._database.engine.begin() as connection:
        stand_behind(connection, whom)
        return connection.execute(change).rowcount


def test_every_table_of_tenants_is_behind_the_wall_and_its_owner_too(store: SqlStore) -> None:
    """A new table: let its migration execute `tenant_wall.raising`, or name it above if it holds nothing of tenants."""
    with tampering(store) as connection:
        forced = text("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity ORDER BY relname")
        assert list(connection.scalars(forced)) == WALLED
        policies = dict(connection.execute(text("SELECT tablename, count(*) FROM pg_policies GROUP BY 1")).all())
    assert policies == dict.fromkeys(WALLED, 2)


def test_a_transaction_that_names_no_tenant_sees_nothing(store: SqlStore) -> None:
    assert rows_seen(store, None) == {}
    assert rows_seen(store, NO_TENANT) == {}


def test_a_transaction_of_another_tenant_sees_nothing_of_this_one(store: SqlStore) -> None:
    mine = rows_seen(store, TENANT)
    assert {"versions", "texts", "dataset_items", "ledger_charges", "tombstones", "audit_entries"} <= mine.keys()
    assert rows_seen(store, OTHER) == {"tenants": 1}


def test_what_one_transaction_said_does_not_hold_for_the_next_of_its_connection(store: SqlStore) -> None:
    """Afterwards the setting is empty rather than unset, and so is the name of the installation's audit chain."""
    with store._database.engine.connect() as connection:
        with connection.begin():
            stand_behind(connection, TENANT)
            assert connection.scalar(select(func.count()).select_from(schema.versions)) == 2
        with connection.begin():
            assert connection.scalar(select(func.count()).select_from(schema.versions)) == 0
            assert connection.scalar(select(func.count()).select_from(schema.audit_entries)) == 0


@pytest.mark.parametrize("whom", [OTHER, NO_TENANT])
def test_nothing_of_another_tenant_can_be_written(store: SqlStore, whom: Behind) -> None:
    for change in (update(schema.versions).values(withheld="quarantined"), schema.pointers.delete()):
        assert execute(store, whom, change) == 0
    row = {"tenant": TENANT, "subject": "eve", "generation": 0, "at": 0, "upto": 0, "seq": 9}
    for new in (schema.tombstones.insert().values(row), schema.dataset_items.insert().values(dataset=1, item=10**6)):
        with pytest.raises(ProgrammingError, match="row-level security"):
            execute(store, whom, new)
    assert store.resolve(TENANT, "ann", "chat").user is not None


def test_a_row_can_not_be_moved_to_another_tenant(store: SqlStore) -> None:
    with pytest.raises(ProgrammingError, match="row-level security"):
        execute(store, TENANT, update(schema.tombstones).values(tenant=OTHER))


def test_a_look_beyond_the_wall_ends_with_its_statement(store: SqlStore) -> None:
    store.change_subject(OTHER, "ann", ConsentChange(opted_in=True), at(0))
    count = select(func.count()).select_from(schema.subjects)
    with store._database.engine.begin() as connection:
        stand_behind(connection, OTHER)
        with beyond_the_wall(connection):
            assert connection.scalar(count) == 3
        assert connection.scalar(count) == 1


def test_a_reset_takes_its_place_behind_those_of_all_tenants(store: SqlStore) -> None:
    store.change_subject(OTHER, "ann", ConsentChange(opted_in=True), at(3))
    head = store.purge_head()
    record = store.apply_reset(OTHER, "ann", "r2", plan_reset("adapter"), at(4))
    assert record.purge_sequence == head + 1


def test_a_store_says_whether_the_wall_binds_its_user(store: SqlStore, postgres: PostgresServer) -> None:
    assert store.tenants_walled is True
    superuser = open_with_keys(postgres.admin_url("contracts"))
    assert superuser.tenants_walled is False
    superuser.close()


def test_a_connection_of_another_program_sees_nothing_either(store: SqlStore, postgres_url: str) -> None:
    """Such as psql's, though it is the tables' owner."""
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM versions").fetchone() == (0,)


def test_the_user_that_compose_makes_is_bound_and_owns_an_empty_database(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text('it\'s "secret"; $HOME')
    script = Path(__file__).parents[2] / "deploy" / "postgres-role.sh"
    postgres.run("sh", str(script), POSTGRES_PASSWORD_FILE=str(password))
    opened = open_with_keys(postgres.url("idiolect").replace("app@", "idiolect@"))
    assert opened.tenants_walled is True
    opened.check()
    opened.close()
