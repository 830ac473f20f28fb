"""Where the keys of people lie: a database of its own, which no backup of the main one carries.

Small: one row for each person and scope. Nothing of it is cached but the tenants' keys, so a key that was destroyed is
gone in every process at once. See deploy/decisions/0018-keys-of-people.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    func,
    inspect,
    select,
    text,
)

from idiolect.ids import new_id
from idiolect.stores.sql.bulk import Columns, insert_columns
from idiolect.stores.sql.engine import Database, among, chunks, queue_up
from idiolect.stores.sql.look_ups import FEW, LookUp
from idiolect.stores.sql.opening import connect
from idiolect.stores.sql.tenant_wall import NO_TENANT
from idiolect.subject_keys import (
    ADAPTERS,
    Ending,
    SubjectKey,
    TenantKey,
    new_tenant_key,
    unwrap_tenant_key,
    wrap_tenant_key,
)

metadata = MetaData()

# One row: tells one key store from another.
_identities = Table("idiolect_key_store", metadata, Column("id", Text, primary_key=True))

_tenant_keys = Table(
    "tenant_keys",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
)

subject_keys = Table(
    "subject_keys",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    UniqueConstraint("tenant", "subject", "scope"),
)
_ON_POSTGRES = (
    # It overwrites a deleted row only when it vacuums: here within minutes of the first, not after a fifth of all.
    "ALTER TABLE subject_keys SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1)",
    # New ids come last, and new people come many at once: room between them would stay empty.
    "ALTER INDEX subject_keys_pkey SET (fillfactor = 100)",
    "ALTER INDEX subject_keys_tenant_subject_scope_key SET (fillfactor = 100)",
)

_K, _T = subject_keys.c, _tenant_keys.c
_KEY = (_K.id, _K.subject, _K.scope, _K.wrapped)
_OF_PEOPLE = LookUp(select(*_KEY).where(_K.tenant == bindparam("tenant")), _K.subject)
_OF_PEOPLE_THERE = LookUp(
    select(*_KEY).where(_K.tenant == bindparam("tenant"), _K.scope == bindparam("scope")), _K.subject
)
_BY_ID = LookUp(select(*_KEY).where(_K.tenant == bindparam("tenant")), _K.id)
_DESTROY_ALL = delete(subject_keys).where(_K.tenant == bindparam("tenant"), _K.subject == bindparam("subject"))
_DESTROY_SIGNALS = _DESTROY_ALL.where(_K.scope != ADAPTERS)
_DESTROY_SOME = _DESTROY_ALL.where(_K.scope.in_([bindparam("first"), bindparam("last")]))

Wanted = tuple[str, str]  # (subject, scope)


class KeyStore:
    """Safe to use from many threads and processes; on Postgres from many machines."""

    def __init__(self, database: Database, wrapping_key: Callable[[str], bytes]) -> None:
        """`wrapping_key`: of a tenant, made from the installation's master key."""
        self._database = database
        self._wrapping_key = wrapping_key
        self._tenants: dict[str, TenantKey] = {}
        self.where = database.where
        self.identity = _identity_of(database)
        database.rest()

    @property
    def embedded(self) -> bool:
        return self._database.is_sqlite

    def ensure(
        self, tenant: str, wanted: Iterable[Wanted], *, spread: bool = False, new: bool = False
    ) -> dict[Wanted, SubjectKey]:
        """The key of each, made now where there is none. On the disk before anything is sealed with it. One journey for
        few people if they have keys, or if it is known that they have none."""
        asked = set(wanted)
        found = {} if new else self.find(tenant, asked)
        missing = sorted(asked - found.keys())
        if missing:
            wrapping = self._tenant_key(tenant)
            for chunk in chunks(missing):
                made = [wrapping.new_subject_key(*one) for one in chunk]
                columns = _columns_of(made, [wrapping.wrap(key) for key in made])
                insert = partial(_insert_new, table=subject_keys, columns=columns, spread=spread)
                few = len(chunk) <= FEW  # one statement, and done twice it does nothing the second time
                write = self._database.lasting_statements if few else self._database.lasting_write
                # Another process may have been first.
                mine = write(NO_TENANT, insert) == len(made)
                found |= zip(chunk, made, strict=True) if mine else self.find(tenant, chunk)
        return found

    def find(self, tenant: str, wanted: Collection[Wanted]) -> dict[Wanted, SubjectKey]:
        """Of those that there are."""
        people, scopes = ({one[part] for one in wanted} for part in (0, 1))
        if len(scopes) == 1 and len(people) <= FEW:  # as for what is shown in one domain: all others stay unread
            (scope,) = scopes
            with self._database.point_reading(NO_TENANT, single=True) as connection:
                rows = _OF_PEOPLE_THERE.rows(connection, people, {"tenant": tenant, "scope": scope})
        else:
            found = self._of_people(tenant, sorted(people))
            rows = [row for row in found if (row.subject, row.scope) in wanted]
        return {(key.subject, key.scope): key for key in self._unwrapped(tenant, rows)}

    def by_id(self, tenant: str, ids: Collection[bytes]) -> dict[bytes, SubjectKey]:
        """Of those that were not destroyed."""
        rows: list[Any] = []
        if len(ids) <= FEW:
            with self._database.point_reading(NO_TENANT, single=True) as connection:
                rows += _BY_ID.rows(connection, ids, {"tenant": tenant})
        else:
            with self._database.reading(NO_TENANT) as connection:
                for chunk in chunks(sorted(ids)):
                    rows += connection.execute(select(*_KEY).where(_K.tenant == tenant, _K.id.in_(chunk))).all()
        return {key.id: key for key in self._unwrapped(tenant, rows)}

    def destroy(self, tenant: str, subject: str, ending: Ending) -> int:
        """How many. For good once it returns; harmless to repeat. One statement, since a whole tenant may wait."""
        names = {"tenant": tenant, "subject": subject}
        statement = _DESTROY_ALL if ending.adapters else _DESTROY_SIGNALS
        if not ending.signals or ending.scope is not None:
            scopes = [ADAPTERS] * ending.adapters + [ending.scope or ""] * ending.signals
            if not scopes:
                return 0
            statement, names = _DESTROY_SOME, names | {"first": scopes[0], "last": scopes[-1]}
        return self._database.lasting_statements(
            NO_TENANT, lambda connection: connection.execute(statement, names).rowcount
        )

    def count(self) -> int:
        with self._database.reading(NO_TENANT) as connection:
            return connection.scalar(select(func.count()).select_from(subject_keys)) or 0

    def scrub(self) -> None:
        self._database.scrub()

    def close(self) -> None:
        self._database.close()

    def _of_people(self, tenant: str, people: Sequence[str]) -> list[Any]:
        if len(people) <= FEW:
            with self._database.point_reading(NO_TENANT, single=True) as connection:
                return _OF_PEOPLE.rows(connection, people, {"tenant": tenant})
        rows: list[Any] = []
        with self._database.reading(NO_TENANT) as connection:
            for chunk in chunks(people):
                rows += connection.execute(select(*_KEY).where(_K.tenant == tenant, among(_K.subject, chunk))).all()
        return rows

    def _unwrapped(self, tenant: str, rows: Sequence[Any]) -> list[SubjectKey]:
        if not rows:
            return []
        wrapping = self._tenant_key(tenant)
        return [wrapping.unwrap(row.subject, row.scope, row.id, row.wrapped) for row in rows]

    def _tenant_key(self, tenant: str) -> TenantKey:
        """Made on first use. Kept, since it never changes."""
        known = self._tenants.get(tenant)
        if known is None:
            wrapping = self._wrapping_key(tenant)
            fresh = wrap_tenant_key(new_tenant_key(tenant), wrapping)
            stored = self._database.write(NO_TENANT, lambda connection: _tenant_row(connection, tenant, fresh))
            known = self._tenants[tenant] = unwrap_tenant_key(tenant, stored, wrapping)
        return known


def open_key_store(url: str, wrapping_key: Callable[[str], bytes], *, lock_timeout_s: float = 10.0) -> KeyStore:
    """Raises ConfigurationError for a URL, file or server that can't be used."""
    database = connect(url, lock_timeout_s)
    try:
        return KeyStore(database, wrapping_key)
    except BaseException:
        database.close()
        raise


def _identity_of(database: Database) -> str:
    with database.reading(NO_TENANT) as connection:
        known = inspect(connection).has_table(_identities.name)
        found = connection.scalar(select(_identities.c.id)) if known else None
    return found or database.write(NO_TENANT, _prepare)


def _prepare(connection: Connection) -> str:
    """The tables and the identity, whoever comes first."""
    queue_up(connection, "keys")
    metadata.create_all(connection)
    if connection.dialect.name != "sqlite":
        for statement in _ON_POSTGRES:
            connection.execute(text(statement))
    found: str | None = connection.scalar(select(_identities.c.id))
    if found is None:
        found = new_id()
        connection.execute(_identities.insert().values(id=found))
    return found


def _tenant_row(connection: Connection, tenant: str, fresh: bytes) -> bytes:
    _insert_new(connection, _tenant_keys, {"tenant": [tenant], "wrapped": [fresh]})
    stored: bytes = connection.scalar(select(_T.wrapped).where(_T.tenant == tenant)) or b""
    return stored


def _columns_of(keys: Sequence[SubjectKey], wrapped: Sequence[bytes]) -> Columns:
    return {
        "id": [key.id for key in keys],
        "tenant": [key.tenant for key in keys],
        "subject": [key.subject for key in keys],
        "scope": [key.scope for key in keys],
        "wrapped": wrapped,
    }


def _insert_new(connection: Connection, table: Table, columns: Columns, *, spread: bool = False) -> int:
    return insert_columns(connection, table, columns, unless_taken=True, spread=spread)()
