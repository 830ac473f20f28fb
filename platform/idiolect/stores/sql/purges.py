"""The purge log, which is the tombstones in the order of their commits, and the processes that follow it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from idiolect.resets.purges import FORGET_SECONDS, Purge, Replica
from idiolect.stores.sql import schema
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.times import micros

_T, _R = schema.tombstones.c, schema.replicas.c
_HEAD = select(func.max(_T.seq))
_AFTER = (
    select(_T.seq, _T.tenant, _T.subject, _T.generation)
    .where(_T.seq > bindparam("after"))
    .order_by(_T.seq)
    .limit(bindparam("limit"))
)
_REPLICAS = select(_R.id, _R.since, _R.cursor, _R.seen_at).order_by(_R.id)
# Also what was said by a clock that was wrong: else a process that is gone would be waited for until then.
_FORGOTTEN = delete(schema.replicas).where(or_(_R.seen_at < bindparam("long_ago"), _R.seen_at > bindparam("far_ahead")))


def _follow(made: sqlite.Insert | postgresql.Insert) -> Insert:
    """Of a process that may be known."""
    changes = {"cursor": made.excluded.cursor, "seen_at": made.excluded.seen_at}
    named: dict[str, Any] = {column.name: bindparam(column.name) for column in _R}
    return made.values(named).on_conflict_do_update(index_elements=["id"], set_=changes)


_FOLLOW = {
    "sqlite": _follow(sqlite.insert(schema.replicas)),
    "postgresql": _follow(postgresql.insert(schema.replicas)),
}


class Purges(Part):
    def purge_head(self) -> int:
        with self._database.point_reading(ALL_TENANTS, single=True) as connection:
            return connection.scalar(_HEAD) or 0

    def purges(self, after: int, *, limit: int = 1000) -> Sequence[Purge]:
        with self._database.point_reading(ALL_TENANTS, single=True) as connection:
            return [Purge(*row) for row in connection.execute(_AFTER, {"after": after, "limit": limit})]

    def follow(self, replica: str, since: int, cursor: int, now: datetime) -> None:
        row = {"id": replica, "since": since, "cursor": cursor, "seen_at": micros(now)}
        tolerated = timedelta(seconds=FORGET_SECONDS)
        forgotten = {"long_ago": micros(now - tolerated), "far_ahead": micros(now + tolerated)}

        def write(connection: Connection) -> None:
            connection.execute(_FOLLOW[connection.dialect.name], row)
            connection.execute(_FORGOTTEN, forgotten)

        self._database.small_write(NO_TENANT, write)

    def leave(self, replica: str) -> None:
        gone = delete(schema.replicas).where(_R.id == replica)
        self._database.write(NO_TENANT, lambda connection: connection.execute(gone), lasting=False)

    def replicas(self, now: datetime) -> Sequence[Replica]:
        with self._database.point_reading(NO_TENANT, single=True) as connection:
            rows = connection.execute(_REPLICAS).all()
        at = micros(now)
        return [Replica(row.id, row.since, row.cursor, max(0.0, (at - row.seen_at) / 1e6)) for row in rows]
