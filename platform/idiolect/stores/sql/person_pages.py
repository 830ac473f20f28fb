"""All that is stored of one person, a page at a time: what an export is made of.

What is sealed under a key that is gone is left out: nobody can read it any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table, select

from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.people_ports import PersonPage, PersonPart
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.inference_rows import inference_of, unpack_digests
from idiolect.stores.sql.moves import moves_of
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.sealing import opened_comparison, opened_signal, with_keys
from idiolect.stores.sql.texts import load_items, load_texts
from idiolect.stores.sql.times import moment

PAGE = 500
SHOWN_PAGE = 8  # each brings up to a thousand documents

Rows = list[Mapping[str, Any]]
Keys = Callable[[], SubjectKeys]
Reader = Callable[[Connection, Keys, str, str, str | None], tuple[Rows, str | None]]

_D = schema.datasets.c


class PersonPages(Part):
    def person_page(self, tenant: str, subject: str, part: PersonPart, after: str | None = None) -> PersonPage:
        """Each page is one snapshot. What is erased in between is in no later page."""
        if not subject:
            return PersonPage([], None)  # the empty subject owns what belongs to domains
        with self._database.reading(tenant) as connection:
            rows, last = _READERS[part](connection, self._database.keys, tenant, subject, after)
        return PersonPage(rows, last)


def _rows(
    connection: Connection, query: Select[Any], key: Any, after: str | None, limit: int, of: type = str
) -> tuple[list[AnyRow], str | None]:
    """The page of `query` after `after`, in order of `key`, and where the next one starts."""
    if after is not None:
        query = query.where(key > of(after))
    found = list(connection.execute(query.order_by(key).limit(limit)))
    return found, str(getattr(found[-1], key.name)) if len(found) == limit else None


def _history(
    connection: Connection, _keys: Keys, tenant: str, subject: str, after: str | None
) -> tuple[Rows, str | None]:
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


def _shown(connection: Connection, keys: Keys, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    table = schema.inferences.c
    query = select(schema.inferences).where(table.tenant == tenant, table.subject == subject)
    found, last = _rows(connection, query, table.id, after, SHOWN_PAGE)
    digests = {digest for row in found for digest in (row.query, *unpack_digests(row.documents))}
    bodies = load_texts(connection, keys, tenant, digests)
    rows: Rows = [
        {
            "id": row.id,
            "domain": row.domain,
            "query": bodies.get(row.query),
            "documents": [bodies.get(digest) for digest in unpack_digests(row.documents)],
            "shown": list(inference_of(row, key).shown),
            "created_at": moment(row.created_at),
        }
        for row, key in with_keys(keys, tenant, found)
    ]
    return rows, last


def _signals(
    connection: Connection, keys: Keys, tenant: str, subject: str, after: str | None
) -> tuple[Rows, str | None]:
    table = schema.signals.c
    query = select(schema.signals).where(table.tenant == tenant, table.subject == subject)
    found, last = _rows(connection, query, table.id, after, PAGE)
    rows: Rows = [
        {
            "id": row.id,
            "shown": row.inference,
            "kind": kind,
            "value": json.loads(value),
            "occurred_at": moment(row.occurred_at),
            "received_at": moment(row.received_at),
        }
        for row, key in with_keys(keys, tenant, found)
        for kind, value in [(row.kind, row.value) if key is None else opened_signal(key, row)]
    ]
    return rows, last


def _comparisons(
    connection: Connection, keys: Keys, tenant: str, subject: str, after: str | None
) -> tuple[Rows, str | None]:
    found, last = _imported(connection, schema.comparisons, tenant, subject, after)
    read = [
        (row, (row.chosen, row.rejected, row.weight, row.source) if key is None else opened_comparison(key, row))
        for row, key in with_keys(keys, tenant, found)
    ]
    pairs = _pairs(connection, keys, tenant, [said[:3] for _, said in read])
    rows: Rows = [
        pair
        | {
            "source": said[3],
            "data_set": row.name,
            "trains_shared_models": row.shared,
            "occurred_at": moment(row.occurred_at),
            "received_at": moment(row.received_at),
        }
        for (row, said), pair in zip(read, pairs, strict=True)
    ]
    return rows, last


def _held_out(
    connection: Connection, keys: Keys, tenant: str, subject: str, after: str | None
) -> tuple[Rows, str | None]:
    found, last = _imported(connection, schema.evaluation_pairs, tenant, subject, after)
    pairs = _pairs(connection, keys, tenant, [(row.chosen, row.rejected, row.weight) for row in found])
    return [pair | {"data_set": row.name, "part": row.part} for row, pair in zip(found, pairs, strict=True)], last


def _ratings(
    connection: Connection, keys: Keys, tenant: str, subject: str, after: str | None
) -> tuple[Rows, str | None]:
    found, last = _imported(connection, schema.ratings, tenant, subject, after)
    items = load_items(connection, keys, tenant, [row.item for row in found])
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


def _pairs(
    connection: Connection, keys: Keys, tenant: str, found: Sequence[tuple[int, int, float]]
) -> list[dict[str, Any]]:
    """`found`: (chosen, rejected, weight)."""
    items = load_items(connection, keys, tenant, [item for chosen, rejected, _ in found for item in (chosen, rejected)])
    return [
        {
            "domain": chosen.domain,
            "prompt": chosen.prompt,
            "chosen": chosen.text,
            "rejected": rejected.text,
            "weight": weight,
        }
        for (_, _, weight), chosen, rejected in zip(found, items[::2], items[1::2], strict=True)
    ]


def _live(connection: Connection, _keys: Keys, tenant: str, subject: str, after: str | None) -> tuple[Rows, str | None]:
    moves = moves_of(tenant, subject, "")
    found, last = _rows(connection, select(moves), moves.c.place, after, PAGE, int)
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


def _resets(
    connection: Connection, _keys: Keys, tenant: str, subject: str, after: str | None
) -> tuple[Rows, str | None]:
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
