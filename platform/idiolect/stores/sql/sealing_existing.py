"""Sealing what was stored in the clear: by an Idiolect that had no keys of people, or in a backup of it.

A pass over the tables, in batches that let other writers through. Each batch is one transaction and leaves out what is
sealed, so a pass that is cut off goes on with the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Table, delete, select, tuple_, update

from idiolect.stores.key_ports import SubjectKeys, Wanted
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow, Hold, hold
from idiolect.stores.sql.inference_rows import unpack_digests
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.sealing import sealed_comparison, sealed_inference, sealed_signal, sealed_version
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.texts import (
    collect_items,
    collect_texts,
    digests_of_items,
    load_texts,
    store_items,
    store_sealed_texts,
)
from idiolect.stores.sql.times import micros
from idiolect.subject_keys import ADAPTERS, SubjectKey, signals_in

_I, _S, _C, _V = schema.inferences.c, schema.signals.c, schema.comparisons.c, schema.versions.c
_T, _L, _B = schema.items.c, schema.inference_texts, schema.key_store.c

Keys = Callable[[], SubjectKeys]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Over the rows of one table: what they are ordered by, how many are in a batch, and how they are sealed."""

    table: Table
    order: tuple[str, ...]
    rows: int
    work: Callable[[Connection, Keys, str, Sequence[AnyRow]], None]


class SealingExisting(Part):
    def is_all_sealed(self) -> bool:
        with self._database.reading(NO_TENANT) as connection:
            return connection.scalar(select(_B.sealed_at)) is not None

    def seal_existing(self, now: datetime, *, goes_on: Callable[[], bool] = lambda: True) -> int:
        """How many rows of people were in the clear. Nothing is looked at again once a pass has come to its end."""
        if self.is_all_sealed():
            return 0
        sealed = sum(self._pass(one, goes_on) for one in _PASSES)
        if goes_on():
            done = update(schema.key_store).values(sealed_at=micros(now))
            self._database.write(NO_TENANT, lambda connection: connection.execute(done))
            self._database.scrub()
        return sealed

    def _pass(self, one: _Pass, goes_on: Callable[[], bool]) -> int:
        keys, sealed = self._database.keys, 0
        after: tuple[Any, ...] | None = None
        while goes_on() and (rows := self._next(one, after)):
            after = tuple(getattr(rows[-1], name) for name in one.order)
            by_tenant: dict[str, list[Any]] = defaultdict(list)
            for row in rows:
                by_tenant[row.tenant].append(row.id)
            for tenant, ids in by_tenant.items():
                sealed += self._database.write(tenant, partial(_seal, keys, one, tenant, ids))
        return sealed

    def _next(self, one: _Pass, after: tuple[Any, ...] | None) -> Sequence[AnyRow]:
        columns = [one.table.c[name] for name in one.order]
        named = [one.table.c[name] for name in dict.fromkeys(("tenant", "id", *one.order))]
        query = select(*named).where(one.table.c.sealed.is_(None), *_of_people(one.table))
        if after is not None:
            query = query.where(tuple_(*columns) > tuple_(*after))
        with self._database.reading(ALL_TENANTS) as connection:
            return connection.execute(query.order_by(*columns).limit(one.rows)).all()


def _of_people(table: Table) -> tuple[Any, ...]:
    if table is schema.versions:
        return _V.subject != "", _V.blob.is_(None)
    if table is schema.comparisons:
        return (_C.dataset.is_(None),)  # imported ones are what their file says
    return (table.c.subject.is_not(None),)


def _seal(keys: Keys, one: _Pass, tenant: str, ids: Sequence[Any], connection: Connection) -> int:
    """Alone: the rows are read again, since a reset may have been first."""
    hold(connection, tenant, Hold.ERASE)
    table = one.table
    mine = (table.c.tenant == tenant, table.c.id.in_(ids), table.c.sealed.is_(None))
    rows = connection.execute(select(table).where(*mine, *_of_people(table)).order_by(table.c.id)).all()
    one.work(connection, keys, tenant, rows)
    return len(rows)


def _inferences(connection: Connection, keys: Keys, tenant: str, rows: Sequence[AnyRow]) -> None:
    found = keys().ensure(tenant, {(row.subject, signals_in(row.domain)) for row in rows})
    old: set[bytes] = set()
    for row in rows:
        key = found[row.subject, signals_in(row.domain)]
        used = [row.query, *unpack_digests(row.documents)]
        digests = set(used)
        store_sealed_texts(connection, tenant, key, load_texts(connection, keys, tenant, digests).values())
        sealed = sealed_inference(key, row._asdict(), key.references(used))
        columns = ("query", "documents", "shown", "sealed")
        mine = (_I.tenant == tenant, _I.id == row.id)
        connection.execute(update(schema.inferences).where(*mine).values({name: sealed[name] for name in columns}))
        its = (_L.c.tenant == tenant, _L.c.inference == row.id, _L.c.digest.in_(sorted(digests)))
        connection.execute(delete(_L).where(*its))
        links = [{"tenant": tenant, "digest": key.reference(one), "inference": row.id} for one in sorted(digests)]
        connection.execute(_L.insert(), links)
        old |= digests
    collect_texts(connection, tenant, old)


def _signals(connection: Connection, keys: Keys, tenant: str, rows: Sequence[AnyRow]) -> None:
    shown = select(_I.id, _I.domain).where(_I.tenant == tenant, _I.id.in_({row.inference for row in rows}))
    domains = {row.id: row.domain for row in connection.execute(shown)}
    scopes = {row.id: signals_in(domains.get(row.inference)) for row in rows}
    found = keys().ensure(tenant, {(row.subject, scopes[row.id]) for row in rows})
    for row in rows:
        sealed = sealed_signal(found[row.subject, scopes[row.id]], row._asdict())
        values = {name: sealed[name] for name in ("kind", "value", "sealed")}
        connection.execute(update(schema.signals).where(_S.tenant == tenant, _S.id == row.id).values(values))


def _comparisons(connection: Connection, keys: Keys, tenant: str, rows: Sequence[AnyRow]) -> None:
    """Their items are made anew: of references, which are the person's own."""
    ids = {item for row in rows for item in (row.chosen, row.rejected)}
    items = {
        item.id: item
        for item in connection.execute(select(schema.items).where(_T.tenant == tenant, _T.id.in_(sorted(ids))))
    }
    scopes: dict[int, Wanted] = {row.id: (row.subject, signals_in(items[row.chosen].domain)) for row in rows}
    found = keys().ensure(tenant, scopes.values())
    for row in rows:
        key = found[scopes[row.id]]
        chosen, rejected = _own_items(connection, keys, tenant, key, (items[row.chosen], items[row.rejected]))
        sealed = sealed_comparison(key, row._asdict() | {"chosen": chosen, "rejected": rejected})
        values = {name: sealed[name] for name in ("chosen", "rejected", "weight", "source", "sealed")}
        connection.execute(update(schema.comparisons).where(_C.id == row.id).values(values))
    digests = digests_of_items(connection, tenant, ids)
    collect_items(connection, tenant, ids)
    collect_texts(connection, tenant, digests)


def _own_items(
    connection: Connection, keys: Keys, tenant: str, key: SubjectKey, items: Sequence[AnyRow]
) -> Sequence[int]:
    """In one call, so that the order of their ids says nothing."""
    digests = {digest for item in items for digest in (item.prompt, item.text)}
    store_sealed_texts(connection, tenant, key, load_texts(connection, keys, tenant, digests).values())
    rows = [
        (item.domain, key.reference(item.prompt).hex(), key.reference(item.text).hex(), item.language, item.task)
        for item in items
    ]
    return store_items(connection, tenant, rows)


def _versions(connection: Connection, keys: Keys, tenant: str, rows: Sequence[AnyRow]) -> None:
    found = keys().ensure(tenant, {(row.subject, ADAPTERS) for row in rows})
    for row in rows:
        sealed = sealed_version(found[row.subject, ADAPTERS], row._asdict())
        values = {name: sealed[name] for name in ("weights", "sealed")}
        connection.execute(update(schema.versions).where(_V.tenant == tenant, _V.id == row.id).values(values))


# Each inference brings up to a thousand texts.
_PASSES = (
    _Pass(schema.inferences, ("tenant", "id"), 20, _inferences),
    _Pass(schema.signals, ("tenant", "id"), 500, _signals),
    _Pass(schema.comparisons, ("id",), 200, _comparisons),
    _Pass(schema.versions, ("seq",), 500, _versions),
)
