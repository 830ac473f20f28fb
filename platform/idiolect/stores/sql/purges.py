"""The purge log, which is the tombstones in the order of their commits, and the processes that follow it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, select

from idiolect.resets.purges import FORGET_SECONDS, Purge, Replica
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.times import micros

_T, _R = schema.tombstones.c, schema.replicas.c
_HEAD = select(func.max(_T.seq))


class Purges(Part):
    def purge_head(self) -> int:
        with self._database.point_reading(ALL_TENANTS, single=True) as connection:
            return connection.scalar(_HEAD) or 0

    def purges(self, after: int, *, limit: int = 1000) -> Sequence[Purge]:
        query = select(_T.seq, _T.tenant, _T.subject, _T.generation).where(_T.seq > after)
        with self._database.reading(ALL_TENANTS) as connection:
            return [Purge(*row) for row in connection.execute(query.order_by(_T.seq).limit(limit))]

    def follow(self, replica: str, since: int, cursor: int, now: datetime) -> None:
        table = schema.replicas
        row = {"id": replica, "since": since, "cursor": cursor, "seen_at": micros(now)}
        forgotten = delete(table).where(_R.seen_at < micros(now - timedelta(seconds=FORGET_SECONDS)))

        def write(connection: Connection) -> None:
            statement = insert(connection, table).values(row)
            changes = {"cursor": statement.excluded.cursor, "seen_at": statement.excluded.seen_at}
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changes))
            connection.execute(forgotten)

        self._database.write(NO_TENANT, write, lasting=False)

    def leave(self, replica: str) -> None:
        gone = delete(schema.replicas).where(_R.id == replica)
        self._database.write(NO_TENANT, lambda connection: connection.execute(gone), lasting=False)

    def replicas(self, now: datetime) -> Sequence[Replica]:
        with self._database.reading(NO_TENANT) as connection:
            rows = connection.execute(select(_R.id, _R.since, _R.cursor, _R.seen_at).order_by(_R.id)).all()
        at = micros(now)
        return [Replica(row.id, row.since, row.cursor, max(0.0, (at - row.seen_at) / 1e6)) for row in rows]
