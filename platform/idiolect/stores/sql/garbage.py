"""Collecting garbage by the rules of `registry.garbage`, in batches that let writers through in between."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, or_, select

from idiolect.audit import AuditEvent
from idiolect.registry.garbage import Garbage
from idiolect.registry.pointers import LIVE, PREVIOUS
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import has_come
from idiolect.stores.sql.arriving import SIZE, abandoned, give_up, to_give_up
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import Hold, hold
from idiolect.stores.sql.large_weights import doom, sweep
from idiolect.stores.sql.moves import keep_moves, replaced_by
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.times import micros

_V, _R, _P = schema.versions.c, schema.releases.c, schema.pointers.c
_M, _L, _G = schema.pointer_history.c, schema.ledger_runs.c, schema.global_pointer.c
BATCH = 2_000


class GarbageCollecting(Part):
    def garbage(self, tenant: str, older_than: datetime) -> Garbage:
        found = _unreachable(tenant, micros(older_than)).subquery("found")
        size = func.coalesce(func.sum(found.c.bytes), 0)
        with self._database.reading(tenant) as connection:
            query = select(func.count(found.c.release.distinct()), func.count(), size).select_from(found)
            releases, versions, weight = connection.execute(query).one()
            never = to_give_up(connection, tenant, micros(older_than))
        return Garbage(releases + never.releases, versions + never.versions, int(weight) + never.bytes)

    def collect(self, tenant: str, older_than: datetime, now: datetime, *, actor: str) -> Garbage:
        cutoff, at = micros(older_than), micros(now)
        with self._database.reading(tenant) as connection:
            arrival = abandoned(connection, tenant, cutoff)
        never = Garbage(0, 0, 0) if arrival is None else give_up(self._database, arrival, at, actor)
        releases: set[str] = set()
        versions, weight = never.versions, never.bytes
        while True:
            batch = self._database.write(
                tenant, lambda connection: _collect_batch(connection, tenant, cutoff, at, actor)
            )
            releases |= batch.keys()
            versions += sum(count for count, _ in batch.values())
            weight += sum(size for _, size in batch.values())
            if not batch:
                sweep(self._database)
                return Garbage(len(releases) + never.releases, versions, weight)

    def referenced_models(self) -> Sequence[str]:
        with self._database.reading(ALL_TENANTS) as connection:
            found = set(connection.scalars(select(_G.digest).distinct()))
            found |= set(connection.scalars(select(schema.staged_models.c.digest)))
            return sorted(found | set(connection.scalars(select(_R.global_digest).distinct())))


def _unreachable(tenant: str, cutoff: int) -> Select[tuple[int, str, int]]:
    """(seq, release, bytes) of every version that nothing reaches. Starts from revoked releases, which are few."""
    owner = and_(_M.tenant == tenant, _M.subject == _V.subject, _M.domain == _V.domain)
    moved = exists().where(owner, _M.at >= cutoff, or_(_M.version == _V.id, _M.old_version == _V.id))
    published = and_(_R.moves.is_not(None), _R.published_at >= cutoff)
    named = or_(_P.coming == _V.id, and_(_P.version == _V.id, ~_has_gone_on()))
    pointed = exists().where(_P.tenant == tenant, _P.subject == _V.subject, _P.domain == _V.domain, named)
    running = exists().where(_L.tenant == tenant, _L.id == _R.run, _L.settled_at.is_(None), _L.reserved_at >= cutoff)
    return (
        select(_V.seq, _V.release, SIZE.label("bytes"))
        .select_from(schema.releases)
        .join(schema.versions, and_(_V.tenant == _R.tenant, _V.release == _R.id))
        .where(
            _R.tenant == tenant,
            _R.revoked_at < cutoff,
            ~running,
            ~pointed,
            ~moved,
            ~published,
            ~_replaced_since(tenant, cutoff),
        )
    )


def _has_gone_on() -> ColumnElement[bool]:
    """Whether a row is a `previous` one that is not gone back to any more: what came replaced another since."""
    live = schema.pointers.alias("live_one")
    owner = (live.c.tenant == _P.tenant, live.c.subject == _P.subject, live.c.domain == _P.domain)
    replaced = exists().where(*owner, live.c.name == LIVE, live.c.version != "", has_come(live))
    return and_(_P.name == PREVIOUS, replaced.correlate(schema.pointers))


def _replaced_since(tenant: str, cutoff: int) -> ColumnElement[bool]:
    """Whether a release of `cutoff` or later took a version's place."""
    later, of_later = schema.versions.alias("later"), schema.releases.alias("of_later")
    return (
        exists()
        .where(later.c.tenant == tenant, later.c.subject == _V.subject, later.c.domain == _V.domain)
        .where(replaced_by(later.c) == _V.id)
        .where(of_later.c.tenant == tenant, of_later.c.id == later.c.release)
        .where(of_later.c.moves.is_not(None), of_later.c.published_at >= cutoff)
        .correlate(schema.versions)
    )


def _collect_batch(connection: Connection, tenant: str, cutoff: int, at: int, actor: str) -> dict[str, tuple[int, int]]:
    """{release: (versions, bytes)} deleted. No publish and no reset runs beside it; both get in between batches."""
    hold(connection, tenant, Hold.ONE_RUN)
    rows = connection.execute(_unreachable(tenant, cutoff).limit(BATCH)).all()
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        count, size = found.get(row.release, (0, 0))
        found[row.release] = (count + 1, size + row.bytes)
    if rows:
        found_rows = _V.seq.in_([row.seq for row in rows])
        doom(connection, found_rows, at)
        keep_moves(connection, found_rows)
        connection.execute(delete(schema.versions).where(found_rows))
        total = {"versions": len(rows), "bytes": sum(size for _, size in found.values()), "releases": sorted(found)}
        append(connection, tenant, AuditEvent(actor, "registry.gc", "registry", "unreachable", total), at)
    return found
