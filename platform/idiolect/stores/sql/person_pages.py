"""All that is stored of one person, a page at a time: what an export is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Select, Table, select

from idiolect.stores.people_ports import PersonPage, PersonPart
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.inference_rows import unpack_digests
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.texts import load_items, load_texts
from idiolect.stores.sql.times import moment

PAGE = 500
SHOWN_PAGE = 8  # each brings up to a thousand documents

Rows = list[Mapping[str, Any]]
Reader = Callable[[Connection, str, str, str | None], tuple[Rows, str | None]]

_D = schema.datasets.c


class PersonPages(Part):
    def person_page(self, tenant: str, subject: str, part: PersonPart, after: str | None = None) -> PersonPage:
        """Each page is one snapshot. What is erased in between is in no later page."""
        if not subject:
            return PersonPage([], None)  # the empty subject owns what belongs to domains
        with self._database.reading(tenant) as connection:
            rows, last = _READERS[part](connection, tenant, subject, after)
        return PersonPage(rows, last)


def _rows(
    connection: Connection, query: Select[Any], key: Any, after: str | None, limit: int, of: type = str
) -> tuple[list[AnyRow], str | None]:
    """The page of `query` after `after`, in order of `key`, and where the next one starts."""
    if after is not None:
        query = query.where(key > of(after))
    found = list(connection.execute(query.order_by(key).limit(limit)))
    return found, str(getattr(found[-1], key.name)) if len(found) == limit else None


def _history(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    entry = schema.audit_entries.c
    query = select(entry.seq, entry.at, entry.actor, entry.action, entry.reason, entry.details)
    mine = query.where(entry.tenant == tenant, entry.object == f"user {subject}")
    found, last = _rows(connection, mine, entry.seq, after, PAGE, int)
    rows: Rows = [
        {
            "at": moment(row.at),
            "actor": row.actor,
            "action": row.action,
            "reason": row.reason,
            "details": json.loads(row.details),
        }
        for row in found
    ]
    return rows, last


def _shown(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    table = schema.inferences.c
    query = select(schema.inferences).where(table.tenant == tenant, table.subject == subject)
    found, last = _rows(connection, query, table.id, after, SHOWN_PAGE)
    digests = {digest for row in found for digest in (row.query, *unpack_digests(row.documents))}
    bodies = load_texts(connection, tenant, digests)
    rows: Rows = [
        {
            "id": row.id,
            "domain": row.domain,
            "query": bodies.get(row.query),
            "documents": [bodies.get(digest) for digest in unpack_digests(row.documents)],
            "shown": json.loads(row.shown),
            "created_at": moment(row.created_at),
        }
        for row in found
    ]
    return rows, last


def _signals(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    table = schema.signals.c
    query = select(schema.signals).where(table.tenant == tenant, table.subject == subject)
    found, last = _rows(connection, query, table.id, after, PAGE)
    rows: Rows = [
        {
            "id": row.id,
            "shown": row.inference,
            "kind": row.kind,
            "value": json.loads(row.value),
            "occurred_at": moment(row.occurred_at),
            "received_at": moment(row.received_at),
        }
        for row in found
    ]
    return rows, last


def _comparisons(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    found, last = _imported(connection, schema.comparisons, tenant, subject, after)
    rows: Rows = [
        pair
        | {
            "source": row.source,
            "data_set": row.name,
            "trains_shared_models": row.shared,
            "occurred_at": moment(row.occurred_at),
            "received_at": moment(row.received_at),
        }
        for row, pair in zip(found, _pairs(connection, tenant, found), strict=True)
    ]
    return rows, last


def _held_out(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    found, last = _imported(connection, schema.evaluation_pairs, tenant, subject, after)
    pairs = _pairs(connection, tenant, found)
    return [pair | {"data_set": row.name, "part": row.part} for row, pair in zip(found, pairs, strict=True)], last


def _ratings(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    found, last = _imported(connection, schema.ratings, tenant, subject, after)
    items = load_items(connection, tenant, [row.item for row in found])
    rows: Rows = [
        {
            "domain": item.domain,
            "prompt": item.prompt,
            "text": item.text,
            "value": row.value,
            "data_set": row.name,
            "occurred_at": moment(row.occurred_at),
        }
        for row, item in zip(found, items, strict=True)
    ]
    return rows, last


def _imported(
    connection: Connection, table: Table, tenant: str, subject: str, after: str | None
) -> tuple[list[AnyRow], str | None]:
    """Rows of `table` with the `name` of the data set that they came with."""
    joined = table.outerjoin(schema.datasets, _D.id == table.c.dataset)
    query = select(*table.c, _D.name).select_from(joined).where(table.c.tenant == tenant, table.c.subject == subject)
    return _rows(connection, query, table.c.id, after, PAGE, int)


def _pairs(connection: Connection, tenant: str, found: list[AnyRow]) -> list[dict[str, Any]]:
    items = load_items(connection, tenant, [item for row in found for item in (row.chosen, row.rejected)])
    return [
        {
            "domain": chosen.domain,
            "prompt": chosen.prompt,
            "chosen": chosen.text,
            "rejected": rejected.text,
            "weight": row.weight,
        }
        for row, chosen, rejected in zip(found, items[::2], items[1::2], strict=True)
    ]


def _live(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    table = schema.pointer_history.c
    query = select(schema.pointer_history).where(table.tenant == tenant, table.subject == subject)
    found, last = _rows(connection, query, table.id, after, PAGE, int)
    rows: Rows = [
        {
            "at": moment(row.at),
            "pointer": row.name,
            "from": row.old_version,
            "to": row.version,
            "reason": row.reason,
            "actor": row.actor,
        }
        for row in found
    ]
    return rows, last


def _resets(connection: Connection, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    table = schema.resets.c
    query = select(table.id, table.record).where(table.tenant == tenant, table.subject == subject)
    found, last = _rows(connection, query, table.id, after, PAGE)
    return [json.loads(row.record) for row in found], last


_READERS: dict[PersonPart, Reader] = {
    "history": _history,
    "shown": _shown,
    "signals": _signals,
    "comparisons": _comparisons,
    "held_out": _held_out,
    "ratings": _ratings,
    "live": _live,
    "resets": _resets,
}
