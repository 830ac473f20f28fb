"""Erasing what a reset plan names, and counting it. Every function needs Hold.ERASE."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, delete, select

from idiolect.resets.plan import ResetPlan
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import chunks
from idiolect.stores.sql.inference_rows import unpack_digests
from idiolect.stores.sql.texts import collect_items, collect_texts, digests_of_items
from idiolect.stores.sql.times import micros


@dataclass(slots=True)
class Erasure:
    """Rows erased per table, and what may have lost its last reference."""

    erased: dict[str, int] = field(default_factory=dict)
    items: set[int] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)


def erase(
    connection: Connection, tenant: str, subject: str, plan: ResetPlan, at: datetime, *, reason: str, actor: str
) -> dict[str, int]:
    """Carry out the erasing steps of `plan`. The result counts rows per table."""
    erasure = Erasure()
    if plan.erase_adapters:
        _erase_adapters(connection, tenant, subject, micros(at), reason, actor, erasure)
    if plan.erase_inferences:
        _gather_inferences(connection, tenant, subject, erasure)
    if plan.erase_signals:
        _erase_signals(connection, tenant, subject, erasure)
    if plan.erase_inferences:
        erasure.erased["inferences"] = _delete(connection, schema.inferences, tenant, subject)
    if erasure.items:
        erasure.digests |= digests_of_items(connection, tenant, erasure.items)
        erasure.erased["items"] = collect_items(connection, tenant, erasure.items)
    if erasure.digests:
        erasure.erased["texts"] = collect_texts(connection, tenant, erasure.digests)
    return erasure.erased


def _delete(connection: Connection, table: Table, tenant: str, subject: str) -> int:
    return connection.execute(delete(table).where(table.c.tenant == tenant, table.c.subject == subject)).rowcount


def _erase_adapters(
    connection: Connection, tenant: str, subject: str, at: int, reason: str, actor: str, erasure: Erasure
) -> None:
    """The versions go with their weights. Of the pointers the history stays: ids, times and reasons."""
    pointers = schema.pointers.c
    moved = connection.execute(
        select(pointers.domain, pointers.name, pointers.version).where(
            pointers.tenant == tenant, pointers.subject == subject
        )
    ).all()
    entries: list[dict[str, Any]] = [
        {
            "tenant": tenant,
            "subject": subject,
            "domain": row.domain,
            "name": row.name,
            "old_version": row.version,
            "version": None,
            "at": at,
            "reason": reason,
            "actor": actor,
        }
        for row in moved
    ]
    if entries:
        connection.execute(schema.pointer_history.insert(), entries)
    erasure.erased["pointers"] = _delete(connection, schema.pointers, tenant, subject)
    erasure.erased["versions"] = _delete(connection, schema.versions, tenant, subject)


def _erase_signals(connection: Connection, tenant: str, subject: str, erasure: Erasure) -> None:
    rows = schema.comparisons.c
    pairs = select(rows.chosen, rows.rejected).where(rows.tenant == tenant, rows.subject == subject)
    for pair in connection.execute(pairs):
        erasure.items.update(pair)
    for table in (schema.comparisons, schema.ratings, schema.evaluation_pairs, schema.signals):
        erasure.erased[table.name] = _delete(connection, table, tenant, subject)


def _gather_inferences(connection: Connection, tenant: str, subject: str, erasure: Erasure) -> None:
    """Drop the references of the person's inferences to texts, remembering which texts and items those were.

    Items of feedback that fell out of its bound are found by their prompt, which is the query of an inference.
    """
    table, links = schema.inferences.c, schema.inference_texts
    found = connection.execute(
        select(table.id, table.query, table.documents).where(table.tenant == tenant, table.subject == subject)
    ).all()
    for row in found:
        digests = {row.query, *unpack_digests(row.documents)}
        mine = (links.c.tenant == tenant, links.c.inference == row.id, links.c.digest.in_(sorted(digests)))
        connection.execute(delete(links).where(*mine))
        erasure.digests |= digests
    erasure.items |= _items_prompted_by(connection, tenant, {row.query for row in found})


def _items_prompted_by(connection: Connection, tenant: str, prompts: Collection[bytes]) -> set[int]:
    table = schema.items.c
    ids: set[int] = set()
    for chunk in chunks(sorted(prompts)):
        ids.update(connection.scalars(select(table.id).where(table.tenant == tenant, table.prompt.in_(chunk))))
    return ids
