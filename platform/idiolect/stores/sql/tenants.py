"""Tenants and their keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from idiolect.errors import ConflictError, NotFoundError
from idiolect.ids import new_id
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.times import micros
from idiolect.tenancy import ApiKey, Caller, Scope

_KEYS = schema.api_keys.c
_AUTHENTICATE = select(_KEYS.tenant, _KEYS.scopes).where(
    _KEYS.secret_hash == bindparam("secret_hash"), _KEYS.revoked_at.is_(None)
)


class Tenants(Part):
    def create_tenant(self, tenant: str, now: datetime) -> None:
        row = {"name": tenant, "created_at": micros(now)}
        self._database.write(
            lambda connection: connection.execute(
                insert(connection, schema.tenants).values(row).on_conflict_do_nothing()
            )
        )

    def create_key(self, tenant: str, scopes: Iterable[Scope], secret_hash: bytes, now: datetime) -> ApiKey:
        key = ApiKey(new_id(), tenant, frozenset(scopes), now)
        row = {
            "id": key.id,
            "tenant": tenant,
            "scopes": json.dumps(sorted(key.scopes)),
            "secret_hash": secret_hash,
            "created_at": micros(now),
        }
        self._database.write(lambda connection: _insert_key(connection, tenant, row))
        return key

    def revoke_key(self, key_id: str, now: datetime) -> None:
        at = micros(now)
        self._database.write(lambda connection: _revoke(connection, key_id, at))

    def authenticate(self, secret_hash: bytes) -> Caller | None:
        with self._database.reading() as connection:
            row = connection.execute(_AUTHENTICATE, {"secret_hash": secret_hash}).one_or_none()
        return None if row is None else Caller(row.tenant, frozenset(map(Scope, json.loads(row.scopes))))


def _insert_key(connection: Connection, tenant: str, row: dict[str, object]) -> None:
    if connection.scalar(select(schema.tenants.c.name).where(schema.tenants.c.name == tenant)) is None:
        raise NotFoundError(f"the tenant {tenant[:80]!r} does not exist.", mend="Create it first.")
    try:
        connection.execute(insert(connection, schema.api_keys).values(row))
    except IntegrityError as error:
        raise ConflictError("this key is in use already.", mend="Draw a new secret.") from error


def _revoke(connection: Connection, key_id: str, at: int) -> None:
    if connection.scalar(select(_KEYS.id).where(_KEYS.id == key_id)) is None:
        raise NotFoundError(f"the key {key_id[:80]!r} does not exist.", mend="List the tenant's keys.")
    connection.execute(
        update(schema.api_keys).where(_KEYS.id == key_id, _KEYS.revoked_at.is_(None)).values(revoked_at=at)
    )
