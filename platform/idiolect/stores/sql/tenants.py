"""Tenants and their keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect.errors import ConflictError, NotFoundError
from idiolect.ids import new_id
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.times import micros
from idiolect.tenancy import ApiKey, Caller, Scope

_KEYS = schema.api_keys.c
_AUTHENTICATE = select(_KEYS.id, _KEYS.tenant, _KEYS.scopes).where(
    _KEYS.secret_hash == bindparam("secret_hash"), _KEYS.revoked_at.is_(None)
)
_EXISTS = select(schema.tenants.c.name).where(schema.tenants.c.name == bindparam("tenant"))
_HOLDS = select(_KEYS.id).where(
    _KEYS.id == bindparam("key_id"), _KEYS.tenant == bindparam("tenant"), _KEYS.revoked_at.is_(None)
)


class Tenants(Part):
    def create_tenant(self, tenant: str, now: datetime) -> None:
        at = micros(now)
        self._database.write(ALL_TENANTS, lambda connection: _create(connection, tenant, at))

    def tenant_exists(self, tenant: str) -> bool:
        with self._database.point_reading(tenant, single=True) as connection:
            return connection.scalar(_EXISTS, {"tenant": tenant}) is not None

    def create_key(
        self, tenant: str, scopes: Iterable[Scope], secret_hash: bytes, now: datetime, *, actor: str = "operator"
    ) -> ApiKey:
        key = ApiKey(new_id(), tenant, frozenset(scopes), now)
        row = {
            "id": key.id,
            "tenant": tenant,
            "scopes": json.dumps(sorted(key.scopes)),
            "secret_hash": secret_hash,
            "created_at": micros(now),
        }
        event = AuditEvent(actor, "api_key.create", f"api key {key.id}", details={"scopes": sorted(key.scopes)})
        self._database.write(tenant, lambda connection: _insert_key(connection, tenant, row, event))
        return key

    def revoke_key(self, key_id: str, now: datetime, *, actor: str = "operator") -> None:
        at = micros(now)
        event = AuditEvent(actor, "api_key.revoke", f"api key {key_id}")
        self._database.write(ALL_TENANTS, lambda connection: _revoke(connection, key_id, at, event))

    def rotate_key(self, key_id: str, secret_hash: bytes, now: datetime, *, actor: str = "operator") -> ApiKey:
        new = new_id()
        return self._database.write(
            ALL_TENANTS, lambda connection: _rotate(connection, key_id, new, secret_hash, now, actor)
        )

    def key_holds(self, tenant: str, key_id: str) -> bool:
        with self._database.point_reading(tenant, single=True) as connection:
            found = connection.scalar(_HOLDS, {"tenant": tenant, "key_id": key_id})
        return found is not None

    def authenticate(self, secret_hash: bytes) -> Caller | None:
        with self._database.point_reading(ALL_TENANTS, single=True) as connection:
            row = connection.execute(_AUTHENTICATE, {"secret_hash": secret_hash}).one_or_none()
        return None if row is None else Caller(row.tenant, frozenset(map(Scope, json.loads(row.scopes))), row.id)


def _create(connection: Connection, tenant: str, at: int) -> None:
    row = {"name": tenant, "created_at": at}
    statement = insert(connection, schema.tenants).values(row).on_conflict_do_nothing()
    if connection.scalar(statement.returning(schema.tenants.c.name)) is not None:
        append(connection, INSTALLATION, AuditEvent("operator", "tenant.create", f"tenant {tenant}"), at)


def _insert_key(connection: Connection, tenant: str, row: dict[str, Any], event: AuditEvent) -> None:
    if connection.scalar(select(schema.tenants.c.name).where(schema.tenants.c.name == tenant)) is None:
        raise NotFoundError(f"the tenant {tenant[:80]!r} does not exist.", mend="Create it first.")
    try:
        connection.execute(insert(connection, schema.api_keys).values(row))
    except IntegrityError as error:
        raise ConflictError("this key is in use already.", mend="Draw a new secret.") from error
    append(connection, tenant, event, row["created_at"])


def _revoke(connection: Connection, key_id: str, at: int, event: AuditEvent) -> None:
    tenant = connection.scalar(select(_KEYS.tenant).where(_KEYS.id == key_id))
    if tenant is None:
        raise NotFoundError(f"the key {key_id[:80]!r} does not exist.", mend="List the tenant's keys.")
    change = update(schema.api_keys).where(_KEYS.id == key_id, _KEYS.revoked_at.is_(None)).values(revoked_at=at)
    if connection.execute(change).rowcount:
        append(connection, tenant, event, at)


def _rotate(connection: Connection, key_id: str, new: str, secret_hash: bytes, now: datetime, actor: str) -> ApiKey:
    query = select(_KEYS.tenant, _KEYS.scopes, _KEYS.revoked_at).where(_KEYS.id == key_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"the key {key_id[:80]!r} does not exist.", mend="List the tenant's keys.")
    if row.revoked_at is not None:
        raise ConflictError(f"the key {key_id[:80]} is revoked already.", mend="Create a new one.")
    key = ApiKey(new, row.tenant, frozenset(map(Scope, json.loads(row.scopes))), now)
    values = {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": row.scopes,
        "secret_hash": secret_hash,
        "created_at": micros(now),
    }
    event = AuditEvent(actor, "api_key.create", f"api key {key.id}", details={"scopes": sorted(key.scopes)})
    _insert_key(connection, key.tenant, values, event)
    _revoke(connection, key_id, micros(now), AuditEvent(actor, "api_key.revoke", f"api key {key_id}", "rotated"))
    return key
