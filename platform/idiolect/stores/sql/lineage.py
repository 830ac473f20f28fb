"""Lineage, read from what publishing and the ledger wrote anyway."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, and_, exists, select

from idiolect.registry.lineage import Contribution, VersionLineage
from idiolect.registry.pointers import Adapter
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import IS_HERE
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.times import moment

_V, _R, _C, _L = schema.versions.c, schema.releases.c, schema.ledger_charges.c, schema.ledger_runs.c
_MAX_PARENTS = 1_000  # a chain of parents that were signed can't be circular; one that was edited can


class Lineages(Part):
    def contributions(self, tenant: str, subject: str) -> Sequence[Contribution]:
        """Other people's own adapters came of runs that charged this person too, and learned nothing from them."""
        charged = exists().where(_C.tenant == tenant, _C.subject == subject, _C.run == _R.run)
        query = (
            select(_V.id, _V.subject, _V.domain, _R.id.label("release"), _R.scope, _R.run)
            .add_columns(_R.published_at, _R.revoked_at)
            .select_from(schema.releases)
            .join(schema.versions, and_(_V.tenant == _R.tenant, _V.release == _R.id))
            .where(_R.tenant == tenant, IS_HERE)
            .order_by(_R.published_at, _V.id)
        )
        with self._database.reading(tenant) as connection:
            own = connection.execute(query.where(_V.subject == subject)).all() if subject else []
            shared = connection.execute(query.where(_R.scope != "user", charged)).all()
        found = [
            Contribution(
                row.id,
                row.release,
                row.scope,
                None if row.scope == "global" else row.domain or None,
                row.run,
                moment(row.published_at),
                row.revoked_at is not None,
                "own" if row.subject else "ledger",
            )
            for row in [*own, *shared]
        ]
        return sorted(found, key=lambda one: (one.published_at, one.version))

    def version_lineage(self, tenant: str, version_id: str) -> VersionLineage | None:
        query = (
            select(_V.id, _V.subject, _V.domain, _V.release, _V.parent, _R.run, _R.global_digest, _R.template)
            .add_columns(_L.purpose, _L.accounts)
            .select_from(schema.versions)
            .join(schema.releases, and_(_R.tenant == _V.tenant, _R.id == _V.release))
            .outerjoin(schema.ledger_runs, and_(_L.tenant == _R.tenant, _L.id == _R.run))
            .where(_V.tenant == tenant, _V.id == version_id, IS_HERE)
        )
        with self._database.reading(tenant) as connection:
            row = connection.execute(query).one_or_none()
            parents = () if row is None else _parents(connection, tenant, row.parent)
        if row is None:
            return None
        return VersionLineage(
            version=row.id,
            release=row.release,
            adapter=Adapter.of(row.subject, row.domain).id,
            run=row.run,
            purpose=row.purpose,
            accounts=row.accounts,
            data_window=str(json.loads(row.template).get("data_window", "not stated")),
            global_digest=row.global_digest,
            parents=parents,
        )


def _parents(connection: Connection, tenant: str, parent: str | None) -> tuple[str, ...]:
    found: list[str] = []
    while parent is not None and parent not in found and len(found) < _MAX_PARENTS:
        found.append(parent)
        parent = connection.scalar(select(_V.parent).where(_V.tenant == tenant, _V.id == parent))
    return tuple(found)
