"""Deleting what is older than a tenant's retention, a batch at a time, so that nobody waits for long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from idiolect.audit import AuditEvent
from idiolect.errors import NotFoundError, PreconditionError
from idiolect.retention import Swept, check_days, etag_of
from idiolect.stores.retention_ports import for_ever
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import AnyRow, Hold, chunks, hold
from idiolect.stores.sql.erasure import items_prompted_by
from idiolect.stores.sql.inference_rows import HOUR_MICROS, hour_of, unpack_digests
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import requeue
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.texts import collect_items, collect_texts, digests_of_items
from idiolect.stores.sql.times import micros

_I, _S, _C, _T = schema.inferences.c, schema.signals.c, schema.comparisons.c, schema.tenants.c
_L = schema.inference_texts

INFERENCES = 50  # in a batch; each brings up to a thousand texts
COMPARISONS = 2_000


class Retention(Part):
    def set_retention(
        self, tenant: str, days: int | None, now: datetime, *, actor: str, if_match: str | None = None
    ) -> None:
        """Saying it again changes nothing, and is not logged."""
        if days is not None:
            check_days(days)
        self._database.write(tenant, lambda connection: _set(connection, tenant, days, micros(now), actor, if_match))

    def retention(self, tenant: str) -> int | None:
        with self._database.reading(tenant) as connection:
            return _own_days(connection, tenant)

    def retentions(self) -> Mapping[str, int | None]:
        with self._database.reading(ALL_TENANTS) as connection:
            rows = connection.execute(select(_T.name, _T.retention_days).order_by(_T.name)).all()
        return {row.name: row.retention_days for row in rows}

    def sweep(
        self,
        tenant: str,
        older_than: datetime,
        now: datetime,
        *,
        actor: str,
        goes_on: Callable[[], bool] = for_ever,
    ) -> Swept:
        cutoff, at = micros(older_than), micros(now)
        done = Swept()
        while goes_on():
            if not self._has_older(tenant, cutoff):  # without the lock that keeps every other writer out
                break
            done += self._database.write(tenant, lambda connection: _sweep_batch(connection, tenant, cutoff, at, actor))
        if done != Swept():
            self._database.scrub()
        return done

    def _has_older(self, tenant: str, cutoff: int) -> bool:
        with self._database.reading(tenant) as connection:
            return any(
                connection.scalar(query.limit(1)) is not None
                for query in (
                    select(_I.id).where(_I.tenant == tenant, _I.created_at < cutoff),
                    select(_C.id).where(_C.tenant == tenant, _C.shown_at < cutoff),
                )
            )


def _own_days(connection: Connection, tenant: str, *, lock: bool = False) -> int | None:
    query = select(_T.retention_days).where(_T.name == tenant)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFoundError(f"the tenant {tenant[:80]!r} does not exist.", mend="Create it first.")
    days: int | None = row.retention_days
    return days


def _set(connection: Connection, tenant: str, days: int | None, at: int, actor: str, if_match: str | None) -> None:
    old = _own_days(connection, tenant, lock=True)
    if if_match is not None and if_match != etag_of(old):
        raise PreconditionError("the retention was changed meanwhile.", mend="Read it again and decide.")
    if old == days:
        return
    connection.execute(update(schema.tenants).where(_T.name == tenant).values(retention_days=days))
    details = {"old": old, "days": days}
    append(connection, tenant, AuditEvent(actor, "retention.set", f"tenant {tenant}", details=details), at)


def _sweep_batch(connection: Connection, tenant: str, cutoff: int, at: int, actor: str) -> Swept:
    hold(connection, tenant, Hold.ERASE)
    comparisons, items = _old_comparisons(connection, tenant, cutoff)
    inferences, signals, prompts, digests = _old_inferences(connection, tenant, cutoff)
    items |= items_prompted_by(connection, tenant, prompts)
    if items:
        digests |= digests_of_items(connection, tenant, items)
        collect_items(connection, tenant, items)
    texts = collect_texts(connection, tenant, digests) if digests else 0
    done = Swept(inferences, signals, comparisons, texts)
    if done != Swept():
        append(connection, tenant, AuditEvent(actor, "retention.sweep", f"tenant {tenant}", details=asdict(done)), at)
    return done


def _old_comparisons(connection: Connection, tenant: str, cutoff: int) -> tuple[int, set[int]]:
    """How many, and the items that they were of. Their people no longer wait for a training with what is gone."""
    old = select(_C.id, _C.subject, _C.chosen, _C.rejected).where(_C.tenant == tenant, _C.shown_at < cutoff)
    rows = connection.execute(old.order_by(_C.shown_at).limit(COMPARISONS)).all()
    if rows:
        connection.execute(delete(schema.comparisons).where(_C.id.in_([row.id for row in rows])))
        requeue(connection, tenant, {row.subject for row in rows})
    return len(rows), {item for row in rows for item in (row.chosen, row.rejected)}


def _old_inferences(connection: Connection, tenant: str, cutoff: int) -> tuple[int, int, set[bytes], set[bytes]]:
    """How many inferences and signals, their queries, and all texts that they referred to."""
    columns = (_I.id, _I.subject, _I.query, _I.documents, _I.sealed, _I.created_at)
    old = select(*columns).where(_I.tenant == tenant, _I.created_at < cutoff)
    rows = connection.execute(old.order_by(_I.created_at).limit(INFERENCES)).all()
    ids = [row.id for row in rows]
    signals = connection.execute(delete(schema.signals).where(_S.tenant == tenant, _S.inference.in_(ids))).rowcount
    connection.execute(delete(schema.inferences).where(_I.tenant == tenant, _I.id.in_(ids)))
    hours: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    for row in rows:
        _unlink(connection, tenant, row.id, _texts_of(row))
        if row.sealed is not None:
            hours[row.subject, row.created_at // HOUR_MICROS] |= _texts_of(row)
    for (subject, hour), digests in hours.items():
        left = _shown_within(connection, tenant, subject, hour * HOUR_MICROS)
        _unlink(connection, tenant, hour_of(hour * HOUR_MICROS), digests - left)
    digests = {digest for row in rows for digest in _texts_of(row)}
    return len(ids), signals, {row.query for row in rows}, digests


def _texts_of(row: AnyRow) -> set[bytes]:
    return {row.query, *unpack_digests(row.documents)}


def _unlink(connection: Connection, tenant: str, holder: str, digests: Collection[bytes]) -> None:
    for chunk in chunks(sorted(digests)):
        links = (_L.c.tenant == tenant, _L.c.inference == holder, _L.c.digest.in_(chunk))
        connection.execute(delete(_L).where(*links))


def _shown_within(connection: Connection, tenant: str, subject: str, since: int) -> set[bytes]:
    """What a person's inferences of the hour that began at `since` still refer to."""
    hour = _I.created_at.between(since, since + HOUR_MICROS - 1)
    left = select(_I.query, _I.documents).where(_I.tenant == tenant, _I.subject == subject, hour)
    return {digest for row in connection.execute(left) for digest in _texts_of(row)}
