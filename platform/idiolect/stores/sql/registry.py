"""Releases, versions and the live global model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect.errors import ConflictError, CorruptArtifactError, NotFoundError
from idiolect.registry.manifest import ReleaseTemplate, Version
from idiolect.registry.resolution import ReleaseSummary
from idiolect.stores.ports import PublishOutcome, StoredVersion
from idiolect.stores.sql import arriving, schema
from idiolect.stores.sql.arrivals import IS_HERE, RELEASE_IS_HERE
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import AnyRow, queue_up
from idiolect.stores.sql.large_weights import keep_large, put_large
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.publishing import FEW, Publication, check_publication, content_digest, publish
from idiolect.stores.sql.sealing import open_weights, with_keys
from idiolect.stores.sql.stored_templates import template_of
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.times import micros
from idiolect.stores.sql.withheld import KEY_WITHDRAWN
from idiolect.subject_keys import SubjectKey

_G, _V, _R = schema.global_pointer.c, schema.versions.c, schema.releases.c
_LIVE_GLOBAL = select(_G.digest).order_by(_G.id.desc()).limit(1)
_STORED = select(
    schema.versions,
    _R.template,
    _R.weights_head,
    _R.key_id.label("signed_by"),
    _R.revoked_at,
    KEY_WITHDRAWN.label("key_withdrawn"),
).join(schema.releases, (_R.tenant == _V.tenant) & (_R.id == _V.release))
_STORED = _STORED.where(IS_HERE)
_STORED_ONE = _STORED.where(_V.tenant == bindparam("tenant"), _V.id == bindparam("id"))
_SUMMARY = select(_R.id, _R.scope, _R.template, _R.versions, _R.revoked_at).where(RELEASE_IS_HERE)


class Registry(Part):
    def set_global(self, digest: str, now: datetime, *, reason: str, actor: str) -> None:
        """Naming the live one again changes nothing, and writes no history."""
        row = {"digest": digest, "at": micros(now), "reason": reason, "actor": actor}
        self._database.write(ALL_TENANTS, lambda connection: set_live_global(connection, row))

    def live_global(self) -> str | None:
        with self._database.reading(NO_TENANT) as connection:
            return connection.scalar(_LIVE_GLOBAL)

    def publish(
        self,
        release: str,
        template: ReleaseTemplate,
        versions: Sequence[Version],
        now: datetime,
        *,
        reason: str,
        actor: str,
        staged: bool = False,
    ) -> PublishOutcome:
        publication = Publication(release, template, versions, micros(now), reason, actor, staged)
        check_publication(publication)
        content = content_digest(publication)
        keys = self._database.keys
        large = put_large(self._database, template.tenant, versions)
        is_small = len(versions) <= FEW and not large
        write = self._database.lasting_write if is_small else self._database.write
        if len(versions) > arriving.BATCH:
            outcome = arriving.publish_in_batches(self._database, publication, content, large)
        else:
            outcome = write(template.tenant, lambda connection: publish(connection, publication, content, keys, large))
        keep_large(self._database, large)
        return outcome

    def version(self, tenant: str, version_id: str) -> StoredVersion | None:
        with self._database.point_reading(tenant, single=True) as connection:
            row = connection.execute(_STORED_ONE, {"tenant": tenant, "id": version_id}).one_or_none()
        return next(iter(self._stored(tenant, [] if row is None else [row])), None)

    def versions(
        self,
        tenant: str,
        *,
        subject: str | None = None,
        domain: str | None = None,
        release: str | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[StoredVersion]:
        query = _STORED.where(_V.tenant == tenant, _V.id > after).order_by(_V.id).limit(limit)
        if subject is not None:
            query = query.where(_V.subject == subject)
        if domain is not None:
            query = query.where(_V.domain == domain)
        if release is not None:
            query = query.where(_V.release == release)
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query).all()
        return self._stored(tenant, rows)

    def _stored(self, tenant: str, rows: Sequence[AnyRow]) -> list[StoredVersion]:
        """A version whose key was destroyed does not exist any more."""
        templates: dict[str, ReleaseTemplate] = {}
        return [_stored_of(row, key, templates) for row, key in with_keys(self._database.keys, tenant, rows)]

    def releases(self, tenant: str, *, limit: int = 100) -> Sequence[ReleaseSummary]:
        query = _SUMMARY.where(_R.tenant == tenant)
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query.order_by(_R.published_at.desc(), _R.id.desc()).limit(limit)).all()
        return [_summary_of(row) for row in rows]

    def release(self, tenant: str, release: str) -> ReleaseSummary | None:
        with self._database.reading(tenant) as connection:
            row = connection.execute(_SUMMARY.where(_R.tenant == tenant, _R.id == release)).one_or_none()
        return None if row is None else _summary_of(row)

    def revoke_release(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> None:
        values = {"revoked_at": micros(now), "revoke_reason": reason, "revoke_actor": actor}
        self._database.write(tenant, lambda connection: _revoke(connection, tenant, release, values))


def set_live_global(connection: Connection, row: dict[str, Any]) -> None:
    queue_up(connection, "the live global model")
    old = connection.scalar(_LIVE_GLOBAL)
    if old == row["digest"]:
        return
    connection.execute(schema.global_pointer.insert(), row)
    event = AuditEvent(row["actor"], "global.set", f"global model {row['digest']}", row["reason"], {"old": old})
    append(connection, INSTALLATION, event, row["at"])


def _revoke(connection: Connection, tenant: str, release: str, values: dict[str, Any]) -> None:
    mine = (_R.tenant == tenant, _R.id == release, RELEASE_IS_HERE)
    scope = connection.scalar(select(_R.scope).where(*mine))
    if scope is None:
        raise NotFoundError(f"the release {release[:80]!r} does not exist.", mend="List the tenant's releases.")
    if scope == "global":
        raise ConflictError(
            f"the release {release[:80]} is of the global model, which every tenant is served with.",
            mend="Train another global model: idiolect train global.",
        )
    if connection.execute(update(schema.releases).where(*mine, _R.revoked_at.is_(None)).values(values)).rowcount:
        event = AuditEvent(values["revoke_actor"], "release.revoke", f"release {release}", values["revoke_reason"])
        append(connection, tenant, event, values["revoked_at"])


def _stored_of(row: AnyRow, key: SubjectKey | None, templates: dict[str, ReleaseTemplate]) -> StoredVersion:
    """`templates` holds those read before: a page of versions mostly comes from one release."""
    if row.release not in templates:
        templates[row.release] = template_of(row.template, row.release)
    version = Version(
        id=row.id,
        release=row.release,
        subject=row.subject,
        domain=row.domain,
        generation=row.generation,
        parent=row.parent,
        weights=row.weights if key is None else _weights(row, key),
        weights_sha256=row.weights_sha256.hex(),
        evaluation={} if row.evaluation is None else json.loads(row.evaluation),
        key_id=row.key_id or row.signed_by or "",
        signature=row.signature,
    )
    return StoredVersion(templates[row.release], version, row.revoked_at is not None, _withheld(row))


def _weights(row: AnyRow, key: SubjectKey) -> bytes:
    """Empty if they do not open: no check of their digest passes that, and a list shows the other versions."""
    try:
        opened = open_weights(key, row.subject, row.id, row.generation, row.sealed)
    except CorruptArtifactError:
        return b""
    return (row.weights_head or b"") + opened


def _withheld(row: AnyRow) -> str | None:
    if row.withheld is not None:
        return f"{row.withheld}: {row.withheld_reason}"
    return "the key that signed it was withdrawn" if row.key_withdrawn else None


def _summary_of(row: AnyRow) -> ReleaseSummary:
    template = template_of(row.template, row.id)
    return ReleaseSummary(
        id=row.id,
        scope=row.scope,
        created_at=template.created_at.isoformat(),
        versions=row.versions,
        revoked=row.revoked_at is not None,
        epsilon=None if template.privacy is None else template.privacy.epsilon,
        unit=None if template.privacy is None else template.privacy.unit,
    )
