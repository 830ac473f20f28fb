"""The audit log in SQL: appended to inside the transaction of the change that it tells of.

Writers of one chain queue at its head row until they commit, so that no two entries follow the same one. On SQLite
writers are alone anyway. On Postgres the queue bounds administrative changes of one tenant by commits in a row, about a
thousand a second with a fast disk; tenants do not wait for each other, and ranking and feedback append nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from idiolect.audit import GENESIS, INSTALLATION, AuditEntry, AuditEvent, Head, entry_after
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow, chunks
from idiolect.stores.sql.logged_changes import note
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, Behind
from idiolect.stores.sql.times import micros

_E, _H = schema.audit_entries.c, schema.audit_heads.c
_PAGE = 1_000  # entries in memory while a chain is walked
_LOCKED_HEAD = select(_H.seq, _H.hash).where(_H.tenant == bindparam("tenant")).with_for_update()
_FIRST_HEAD = {
    dialect.dialect.name: dialect.insert(schema.audit_heads)
    .values({column.name: bindparam(column.name) for column in _H})
    .on_conflict_do_nothing()
    for dialect in (sqlite, postgresql)
}
_NEW_ENTRY = schema.audit_entries.insert().values({column.name: bindparam(column.name) for column in _E})
_NEW_HEAD = (
    update(schema.audit_heads)
    .where(_H.tenant == bindparam("of_tenant"))
    .values(seq=bindparam("new_seq"), hash=bindparam("new_hash"))
)


class Audit(Part):
    def record_audit(self, tenant: str, event: AuditEvent, now: datetime) -> None:
        at = micros(now)
        self._database.write(behind(tenant), lambda connection: append(connection, tenant, event, at))

    def audit_chains(self) -> Sequence[str]:
        """Also chains whose head is gone."""
        with self._database.reading(ALL_TENANTS) as connection:
            heads = set(connection.scalars(select(_H.tenant)))
            return sorted(heads | set(connection.scalars(select(_E.tenant).distinct())))

    def audit_head(self, tenant: str) -> Head:
        with self._database.reading(behind(tenant)) as connection:
            return _head(connection, tenant)

    def audit_entries(self, tenant: str, *, before: int | None = None, limit: int = 100) -> Sequence[AuditEntry]:
        query = _of(tenant).order_by(_E.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(_E.seq < before)
        with self._database.reading(behind(tenant)) as connection:
            return [_entry_of(row) for row in connection.execute(query)]

    def audited(self, tenant: str, action: str, objects: Sequence[str]) -> set[str]:
        found: set[str] = set()
        with self._database.reading(behind(tenant)) as connection:
            for chunk in chunks(objects):
                mine = (_E.tenant == tenant, _E.object.in_(chunk), _E.action == action)
                found.update(connection.scalars(select(_E.object).where(*mine)))
        return found

    def audit_walk(self, tenant: str) -> Iterator[AuditEntry]:
        last = 0
        while True:
            with self._database.reading(behind(tenant)) as connection:
                rows = connection.execute(_of(tenant).where(_E.seq > last).order_by(_E.seq).limit(_PAGE)).all()
            for row in rows:
                yield _entry_of(row)
            if len(rows) < _PAGE:
                return
            last = rows[-1].seq


def behind(tenant: str) -> Behind:
    """No tenant may read or extend the installation's own chain."""
    return ALL_TENANTS if tenant == INSTALLATION else tenant


def append(
    connection: Connection,
    tenant: str,
    event: AuditEvent,
    at: int,
    extra: Mapping[str, Any] | None = None,
    head: Callable[[], Head] | None = None,
) -> None:
    """Take it last, after every other lock of the transaction: then two writers can't wait for each other.

    `extra`: what the recovery log needs to make this change again, and the entry does not say (`idiolect.recovery`).
    `head`: of `ask_head`, where that was asked ahead.
    """
    entry = entry_after((head or ask_head(connection, tenant))(), tenant, event, at)
    put(connection, entry)
    note(connection, entry, extra)


def put(connection: Connection, entry: AuditEntry) -> None:
    """As the new end of its chain, whose head is locked or held by nobody else."""
    connection.execute(_NEW_ENTRY, _row_of(entry))
    head = {"of_tenant": entry.tenant, "new_seq": entry.seq, "new_hash": bytes.fromhex(entry.hash)}
    connection.execute(_NEW_HEAD, head)


def locked_head(connection: Connection, tenant: str) -> Head:
    return ask_head(connection, tenant)()


def ask_head(connection: Connection, tenant: str) -> Callable[[], Head]:
    """As `locked_head`, asked ahead."""
    asked = ahead(connection, _LOCKED_HEAD, {"tenant": tenant})

    def head() -> Head:
        row = asked().one_or_none()
        if row is None:
            first = {"tenant": tenant, "seq": 0, "hash": bytes.fromhex(GENESIS)}
            connection.execute(_FIRST_HEAD[connection.dialect.name], first)
            row = connection.execute(_LOCKED_HEAD, {"tenant": tenant}).one()
        return Head(row.seq, row.hash.hex())

    return head


def _head(connection: Connection, tenant: str) -> Head:
    row = connection.execute(select(_H.seq, _H.hash).where(_H.tenant == tenant)).one_or_none()
    return Head() if row is None else Head(row.seq, row.hash.hex())


def _of(tenant: str) -> Select[tuple[object, ...]]:
    return select(schema.audit_entries).where(_E.tenant == tenant)


def _row_of(entry: AuditEntry) -> dict[str, object]:
    return {
        "tenant": entry.tenant,
        "seq": entry.seq,
        "at": entry.at_us,
        "actor": entry.actor,
        "action": entry.action,
        "object": entry.object,
        "reason": entry.reason,
        "details": entry.details,
        "previous": bytes.fromhex(entry.previous),
        "hash": bytes.fromhex(entry.hash),
    }


def _entry_of(row: AnyRow) -> AuditEntry:
    return AuditEntry(
        row.tenant,
        row.seq,
        row.at,
        row.actor,
        row.action,
        row.object,
        row.reason,
        row.details,
        row.previous.hex(),
        row.hash.hex(),
    )
