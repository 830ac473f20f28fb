"""Erasing what a reset plan names, and counting it. Every function needs Hold.ERASE.

The keys go first. From then on nothing that they sealed can be read, also where an old copy of the database still has
it; so also if this is cut off before its end, and then done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, exists, select, update

from idiolect.resets.plan import ResetPlan
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import chunks
from idiolect.stores.sql.inference_rows import unpack_digests
from idiolect.stores.sql.large_weights import doom, of_owner
from idiolect.stores.sql.moves import keep_moves
from idiolect.stores.sql.texts import collect_items, collect_texts, digests_of_items
from idiolect.stores.sql.times import micros


@dataclass(slots=True)
class Erasure:
    """Rows erased per table, and what may have lost its last reference."""

    erased: dict[str, int] = field(default_factory=dict)
    items: set[int] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)


def erase(
    connection: Connection,
    keys: Callable[[], SubjectKeys],
    tenant: str,
    subject: str,
    plan: ResetPlan,
    at: datetime,
    *,
    reason: str,
    actor: str,
) -> dict[str, int]:
    """Carry out the erasing steps of `plan`. The result counts rows per table."""
    keys().destroy(tenant, subject, plan.ends_scope)
    erasure = Erasure()
    if plan.erase_adapters:
        _erase_adapters(connection, tenant, subject, micros(at), reason, actor, erasure)
    if plan.erase_inferences:
        _gather_inferences(connection, tenant, subject, plan.domain, erasure)
    if plan.erase_signals:
        _erase_signals(connection, tenant, subject, plan.domain, erasure)
    if plan.erase_inferences:
        erasure.erased["inferences"] = _delete(connection, schema.inferences, tenant, subject, _shown_in(plan.domain))
    if plan.erase_traces:
        _erase_traces(connection, tenant, subject, erasure)
    if erasure.items:
        erasure.digests |= digests_of_items(connection, tenant, erasure.items)
        erasure.erased["items"] = collect_items(connection, tenant, erasure.items)
    if erasure.digests:
        erasure.erased["texts"] = collect_texts(connection, tenant, erasure.digests)
    return erasure.erased


def _delete(
    connection: Connection, table: Table, tenant: str, subject: str, only: ColumnElement[bool] | None = None
) -> int:
    mine = delete(table).where(table.c.tenant == tenant, table.c.subject == subject)
    return connection.execute(mine if only is None else mine.where(only)).rowcount


def _shown_in(domain: str | None) -> ColumnElement[bool] | None:
    return None if domain is None else schema.inferences.c.domain == domain


def _about(table: Table, item: str, domain: str | None) -> ColumnElement[bool] | None:
    """Rows of `table` whose `item` is one of the domain."""
    if domain is None:
        return None
    items = schema.items.c
    return table.c[item].in_(select(items.id).where(items.tenant == table.c.tenant, items.domain == domain))


def _on_inferences(domain: str | None) -> ColumnElement[bool] | None:
    """Signals that refer to what was shown in the domain."""
    if domain is None:
        return None
    shown, signals = schema.inferences.c, schema.signals.c
    return exists().where(shown.tenant == signals.tenant, shown.id == signals.inference, shown.domain == domain)


def _erase_traces(connection: Connection, tenant: str, subject: str, erasure: Erasure) -> None:
    """What was live for the person and when; where they were left out; answers that are kept to be given again."""
    erasure.erased["pointer_history"] = _delete(connection, schema.pointer_history, tenant, subject)
    kept = schema.idempotency_keys
    connection.execute(delete(kept).where(kept.c.tenant == tenant, kept.c.owner == subject))
    releases = schema.releases.c
    fenced = (releases.tenant == tenant, releases.fenced.contains(subject, autoescape=True))
    for row in connection.execute(select(releases.id, releases.fenced).where(*fenced)).all():
        others = json.dumps([person for person in json.loads(row.fenced) if person != subject])
        mine = (releases.tenant == tenant, releases.id == row.id)
        connection.execute(update(schema.releases).where(*mine).values(fenced=others))


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
    keep_moves(connection, of_owner(tenant, subject))
    if entries:
        connection.execute(schema.pointer_history.insert(), entries)
    blobs = doom(connection, of_owner(tenant, subject), at)
    if blobs:
        erasure.erased["blobs"] = blobs
    erasure.erased["pointers"] = _delete(connection, schema.pointers, tenant, subject)
    erasure.erased["versions"] = _delete(connection, schema.versions, tenant, subject)


def _erase_signals(connection: Connection, tenant: str, subject: str, domain: str | None, erasure: Erasure) -> None:
    """Before the inferences, which say in which domain a signal was given."""
    rows = schema.comparisons.c
    pairs = select(rows.chosen, rows.rejected).where(rows.tenant == tenant, rows.subject == subject)
    here = _about(schema.comparisons, "chosen", domain)
    for pair in connection.execute(pairs if here is None else pairs.where(here)):
        erasure.items.update(pair)
    which = (
        (schema.comparisons, here),
        (schema.ratings, _about(schema.ratings, "item", domain)),
        (schema.evaluation_pairs, _about(schema.evaluation_pairs, "chosen", domain)),
        (schema.signals, _on_inferences(domain)),
    )
    for table, only in which:
        erasure.erased[table.name] = _delete(connection, table, tenant, subject, only)


def _gather_inferences(connection: Connection, tenant: str, subject: str, domain: str | None, erasure: Erasure) -> None:
    """Drop the references of the person's inferences to texts, remembering which texts and items those were.

    Items of feedback that fell out of its bound are found by their prompt, which is the query of an inference.
    """
    table, links = schema.inferences.c, schema.inference_texts
    columns = (table.id, table.query, table.documents, table.sealed)
    mine = select(*columns).where(table.tenant == tenant, table.subject == subject)
    here = _shown_in(domain)
    found = connection.execute(mine if here is None else mine.where(here)).all()
    sealed: set[bytes] = set()  # nobody else's, nor of another domain: whatever links to them goes
    for row in found:
        digests = {row.query, *unpack_digests(row.documents)}
        erasure.digests |= digests
        if row.sealed is not None:
            sealed |= digests
        else:
            its = (links.c.tenant == tenant, links.c.inference == row.id, links.c.digest.in_(sorted(digests)))
            connection.execute(delete(links).where(*its))
    for chunk in chunks(sorted(sealed)):
        connection.execute(delete(links).where(links.c.tenant == tenant, links.c.digest.in_(chunk)))
    erasure.items |= items_prompted_by(connection, tenant, {row.query for row in found})


def items_prompted_by(connection: Connection, tenant: str, prompts: Collection[bytes]) -> set[int]:
    table = schema.items.c
    ids: set[int] = set()
    for chunk in chunks(sorted(prompts)):
        ids.update(connection.scalars(select(table.id).where(table.tenant == tenant, table.prompt.in_(chunk))))
    return ids
