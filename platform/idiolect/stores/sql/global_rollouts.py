"""Global models that wait for a rollout, and how the adapters of people follow when one is completed.

The model becomes live in one small write; from then on `resolve` finds everybody's counterpart by what it was carried
from. The pointers follow one release at a time, each move with its history, while all serve: a million people are five
hundred short transactions, and a kill in between leaves nobody worse off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, exists, select, update
from sqlalchemy.sql.elements import ColumnElement

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect.registry.pointers import LIVE, ROLLED_BACK, Adapter
from idiolect.rollouts.plan import LATEST
from idiolect.stores.rollout_ports import GlobalTrial, StagedModel
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import IS_HERE, LIVE_TO_JOIN, LIVE_VERSION, RELEASE_IS_HERE, WHAT_ARRIVES, is_here
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import Hold, hold, insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.pointers import PointerChange, beyond, move_all
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.times import micros, moment
from idiolect.stores.sql.withheld import key_withdrawn

_P, _V, _R = schema.pointers.c, schema.versions.c, schema.releases.c
_T, _M = schema.global_trials.c, schema.staged_models.c
_LATE = "it was not what its owner was served when its model became live"


class GlobalRollouts(Part):
    def stage_model(self, model: StagedModel) -> None:
        row: dict[str, object] = {
            "digest": model.digest,
            "base": model.base,
            "passage": model.passage,
            "at": micros(model.at),
            "reason": model.reason,
            "actor": model.actor,
        }
        self._database.write(ALL_TENANTS, lambda connection: _stage(connection, row))

    def staged_model(self, digest: str) -> StagedModel | None:
        query = select(schema.staged_models).order_by(_M.at.desc(), _M.digest).limit(1)
        with self._database.reading(NO_TENANT) as connection:
            row = connection.execute(query if digest == LATEST else query.where(_M.digest == digest)).one_or_none()
        if row is None:
            return None
        return StagedModel(row.digest, row.base, row.passage, moment(row.at), row.reason, row.actor)

    def global_trial(self) -> GlobalTrial | None:
        with self._database.point_reading(NO_TENANT, single=True) as connection:
            row = connection.execute(_TRIAL).one_or_none()
        if row is None:
            return None
        return GlobalTrial(row.rollout, row.candidate, row.base, served=row.state in ("running", "held"))

    def left_behind(
        self, tenant: str, digest: str, *, after: str = "", limit: int = 1000
    ) -> Sequence[tuple[Adapter, str]]:
        """No more than a read: what is published meanwhile is found the next time."""
        query = (
            select(_P.subject, _P.domain, _V.id.label("version"))
            .select_from(schema.pointers)
            .outerjoin(schema.arrivals, WHAT_ARRIVES)
            .join(schema.versions, and_(_V.tenant == _P.tenant, _V.id == LIVE_TO_JOIN))
            .join(schema.releases, and_(_R.tenant == _V.tenant, _R.id == _V.release))
            .where(_P.tenant == tenant, _P.name == LIVE, _R.global_digest != digest)
            .where(~exists().where(*_carried_to(tenant, digest, _V.id)).correlate(schema.pointers, schema.versions))
        )
        if after:
            query = query.where(beyond(Adapter.parse(after)))
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query.order_by(_P.subject, _P.domain).limit(limit)).all()
        return [(Adapter.of(row.subject, row.domain), row.version) for row in rows]

    def is_carried(self, tenant: str, version_id: str, digest: str) -> bool:
        with self._database.reading(tenant) as connection:
            owner = select(_V.subject, _V.domain).where(_V.tenant == tenant, _V.id == version_id, IS_HERE)
            row = connection.execute(owner).one_or_none()
            if row is None:
                return False
            found = exists().where(*_carried_to(tenant, digest, version_id, row.subject, row.domain))
            return bool(connection.scalar(select(found)))

    def waiting_releases(self, digest: str) -> Sequence[tuple[str, str]]:
        query = select(_R.tenant, _R.id, _R.template).where(
            _R.global_digest == digest, _R.staged, _R.revoked_at.is_(None), _R.scope != "global", RELEASE_IS_HERE
        )
        with self._database.reading(ALL_TENANTS) as connection:
            rows = connection.execute(query.order_by(_R.tenant, _R.published_at, _R.id)).all()
        return [(row.tenant, row.id) for row in rows if "carried" in json.loads(row.template)]

    def follow_model(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> int:
        move = PointerChange(tenant, micros(now), reason, actor, None)
        return self._database.write(tenant, lambda connection: _follow(connection, move, release))

    def end_global_trial(self, rollout_id: str) -> None:
        mine = (_T.rollout == rollout_id, _T.state == "completed")
        self._database.write(
            ALL_TENANTS, lambda connection: connection.execute(schema.global_trials.delete().where(*mine))
        )


_TRIAL = select(_T.rollout, _T.candidate, _T.base, _T.state)


def _carried_to(
    tenant: str,
    digest: str,
    source: ColumnElement[Any] | str,
    subject: ColumnElement[str] | str = _P.subject,
    domain: ColumnElement[str] | str = _P.domain,
) -> tuple[ColumnElement[bool], ...]:
    """Versions that may be served on the model and were carried from `source`, found by their owner's index."""
    copy, of = schema.versions.alias("copy"), schema.releases.alias("of_copy")
    bound = and_(of.c.tenant == copy.c.tenant, of.c.id == copy.c.release)
    usable = exists().where(bound, of.c.global_digest == digest, of.c.revoked_at.is_(None)).correlate(copy)
    mine = (copy.c.tenant == tenant, copy.c.subject == subject, copy.c.domain == domain)
    return (*mine, copy.c.parent == source, copy.c.withheld.is_(None), usable, is_here(copy))


def _served_before() -> ColumnElement[str]:
    """Of a row of `pointers`: its version, or if that may not be served the newest of the same model that may."""
    live, of_live = schema.versions.alias("live_one"), schema.releases.alias("of_live")
    older, of_older = schema.versions.alias("older"), schema.releases.alias("of_older")
    return (
        select(older.c.id)
        .select_from(live)
        .join(of_live, and_(of_live.c.tenant == live.c.tenant, of_live.c.id == live.c.release))
        .join(older, and_(older.c.tenant == live.c.tenant, older.c.subject == live.c.subject))
        .join(of_older, and_(of_older.c.tenant == older.c.tenant, of_older.c.id == older.c.release))
        .where(live.c.tenant == _P.tenant, live.c.subject == _P.subject, live.c.domain == _P.domain)
        .where(live.c.id == LIVE_VERSION, older.c.domain == live.c.domain)
        .where(of_older.c.global_digest == of_live.c.global_digest, of_older.c.revoked_at.is_(None), ~of_older.c.staged)
        .where(is_here(older), older.c.withheld.is_(None), older.c.generation == live.c.generation)
        .where(~key_withdrawn(older))
        .order_by((older.c.id == live.c.id).desc(), older.c.seq.desc())
        .limit(1)
        .correlate(schema.pointers)
        .scalar_subquery()
    )


def _stage(connection: Connection, row: dict[str, object]) -> None:
    statement = insert(connection, schema.staged_models)
    changed = {name: statement.excluded[name] for name in row if name != "digest"}
    connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=changed), row)
    event = AuditEvent(
        str(row["actor"]), "global.stage", f"global model {row['digest']}", str(row["reason"]), {"base": row["base"]}
    )
    append(connection, INSTALLATION, event, int(str(row["at"])))


def _follow(connection: Connection, move: PointerChange, release: str) -> int:
    """Pointers that still name what a version was carried from move to it. The release's other versions are withheld:
    nobody would be served them, and nothing may fall back to them."""
    tenant = move.tenant
    hold(connection, tenant, Hold.ONE_RUN)
    moved = move_all(connection, move, release, _V.withheld.is_(None), _V.parent == _served_before())
    pointed = exists().where(
        _P.tenant == tenant, _P.subject == _V.subject, _P.domain == _V.domain, _V.id == LIVE_VERSION, _P.name == LIVE
    )
    late = (
        _V.tenant == tenant,
        _V.release == release,
        IS_HERE,
        _V.withheld.is_(None),
        ~pointed.correlate(schema.versions),
    )
    connection.execute(update(schema.versions).where(*late).values(withheld=ROLLED_BACK, withheld_reason=_LATE))
    connection.execute(
        update(schema.releases).where(_R.tenant == tenant, _R.id == release, RELEASE_IS_HERE).values(staged=False)
    )
    if moved:
        append(connection, tenant, move.event("release.promote", f"release {release}", pointers=moved), move.at)
    return moved
