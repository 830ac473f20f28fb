"""Versions that are not served although they were published: quarantined ones, and those of a withdrawn key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select, update

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect.registry.pointers import QUARANTINED, ROLLED_BACK
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import IS_HERE
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.times import micros

_V, _R, _K = schema.versions.c, schema.releases.c, schema.withdrawn_keys.c


def key_withdrawn(versions: Any = schema.versions) -> ColumnElement[bool]:
    """For a row of `versions`, or an alias of it. The table is all but empty, so asking costs next to nothing."""
    release = schema.releases.alias("that_was_signed")
    of_release = select(release.c.key_id).where(
        release.c.tenant == versions.c.tenant, release.c.id == versions.c.release, versions.c.key_id == ""
    )
    signed_by = (versions.c.key_id, of_release.correlate(versions).scalar_subquery())
    return exists().where(_K.key_id.in_(signed_by)).correlate(versions)


KEY_WITHDRAWN = key_withdrawn()


class Withholding(Part):
    def quarantine(self, tenant: str, version_id: str, reason: str, now: datetime, *, actor: str) -> bool:
        event = AuditEvent(actor, "version.quarantine", f"version {version_id}", reason)
        at = micros(now)
        return self._database.write(tenant, lambda connection: _quarantine(connection, tenant, version_id, event, at))

    def withdraw_signing_key(self, key_id: str, now: datetime, *, reason: str, actor: str) -> int:
        event = AuditEvent(actor, "signing_key.withdraw", f"signing key {key_id}", reason)
        at = micros(now)
        return self._database.write(ALL_TENANTS, lambda connection: _withdraw(connection, key_id, event, at))

    def withdrawn_signing_keys(self) -> Sequence[str]:
        with self._database.reading(NO_TENANT) as connection:
            return list(connection.scalars(select(_K.key_id).order_by(_K.key_id)))


def _quarantine(connection: Connection, tenant: str, version_id: str, event: AuditEvent, at: int) -> bool:
    mine = (_V.tenant == tenant, _V.id == version_id, IS_HERE, or_(_V.withheld.is_(None), _V.withheld == ROLLED_BACK))
    values = {"withheld": QUARANTINED, "withheld_reason": event.reason}
    if not connection.execute(update(schema.versions).where(*mine).values(values)).rowcount:
        return False
    append(connection, tenant, event, at)
    return True


def _withdraw(connection: Connection, key_id: str, event: AuditEvent, at: int) -> int:
    row = {"key_id": key_id, "at": at, "reason": event.reason, "actor": event.actor}
    statement = insert(connection, schema.withdrawn_keys).values(row).on_conflict_do_nothing()
    if connection.scalar(statement.returning(_K.key_id)) is not None:
        append(connection, INSTALLATION, event, at)
    of_release = select(_R.id).where(_R.tenant == _V.tenant, _R.id == _V.release, _R.key_id == key_id)
    signed = or_(_V.key_id == key_id, and_(_V.key_id == "", of_release.correlate(schema.versions).exists()))
    return connection.scalar(select(func.count()).select_from(schema.versions).where(signed)) or 0
