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

from sqlalchemy import ColumnElement, Connection, Table, Text, and_, bindparam, delete, exists, select, update

from idiolect.resets.plan import ResetPlan
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import STANDING, standing
from idiolect.stores.sql.inference_rows import unpack_digests
from idiolect.stores.sql.large_weights import blobs_of_owner, doom_of_owner
from idiolect.stores.sql.look_ups import LookUp
from idiolect.stores.sql.moves import keeping
from idiolect.stores.sql.prepared import Rows, ahead
from idiolect.stores.sql.texts import collect_items, collect_texts, digests_of_items
from idiolect.stores.sql.times import micros


@dataclass(slots=True)
class Erasure:
    """Rows erased per table, and what may have lost its last reference."""

    erased: dict[str, int | Rows] = field(default_factory=dict)  # how many, or what knows it
    items: set[int] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)

    def counts(self) -> dict[str, int]:
        """By table."""
        return {table: found if isinstance(found, int) else found.rowcount for table, found in self.erased.items()}


def erase(
    connection: Connection,
    keys: Callable[[], SubjectKeys],
    tenant: str,
    subject: str,
    plan: ResetPlan,
    at: datetime,
    adapters: Adapters | None = None,
    *,
    reason: str,
    actor: str,
) -> Erasure:
    """Carry out the erasing steps of `plan`. `adapters`: of `adapters_of`, where that was asked ahead."""
    keys().destroy(tenant, subject, plan.ending)
    erasure = Erasure()
    if plan.erase_adapters:
        found = adapters or adapters_of(connection, tenant, subject)
        _erase_adapters(connection, tenant, subject, found, micros(at), reason, actor, erasure)
    if plan.erase_inferences:
        _gather_inferences(connection, tenant, subject, plan.domain, erasure)
    if plan.erase_signals:
        _erase_signals(connection, tenant, subject, plan.domain, erasure)
    if plan.erase_inferences:
        erasure.erased["inferences"] = _delete(connection, schema.inferences, tenant, subject, plan.domain)
    if plan.erase_traces:
        _erase_traces(connection, tenant, subject, erasure)
    if erasure.items:
        erasure.digests |= digests_of_items(connection, tenant, erasure.items)
        erasure.erased["items"] = collect_items(connection, tenant, erasure.items)
    if erasure.digests:
        erasure.erased["texts"] = collect_texts(connection, tenant, erasure.digests)
    return erasure


def _delete(connection: Connection, table: Table, tenant: str, subject: str, domain: str | None = None) -> Any:
    """With a `domain` only what is of it."""
    statement = (_DELETE_ALL if domain is None else _DELETE_OF_DOMAIN)[table]
    return connection.execute(statement, _person(tenant, subject, domain))


def _person(tenant: str, subject: str, domain: str | None = None) -> dict[str, Any]:
    return {"tenant": tenant, "subject": subject} | ({} if domain is None else {"domain": domain})


def _mine(table: Table) -> ColumnElement[bool]:
    return and_(table.c.tenant == bindparam("tenant"), table.c.subject == bindparam("subject"))


def _about(table: Table, item: str) -> ColumnElement[bool]:
    """Rows of `table` whose `item` is one of the domain."""
    items = schema.items.c
    return table.c[item].in_(select(items.id).where(items.tenant == table.c.tenant, items.domain == _DOMAIN))


def _on_inferences() -> ColumnElement[bool]:
    """Signals that refer to what was shown in the domain."""
    shown, signals = schema.inferences.c, schema.signals.c
    return exists().where(shown.tenant == signals.tenant, shown.id == signals.inference, shown.domain == _DOMAIN)


# What is done at each reset is constant, so that it may be prepared: nothing else of the tenant goes on meanwhile.
_DOMAIN = bindparam("domain", type_=Text)
_OF_DOMAIN = {
    schema.comparisons: _about(schema.comparisons, "chosen"),
    schema.ratings: _about(schema.ratings, "item"),
    schema.evaluation_pairs: _about(schema.evaluation_pairs, "chosen"),
    schema.signals: _on_inferences(),
    schema.inferences: schema.inferences.c.domain == _DOMAIN,
}
_DELETE_ALL = {
    table: delete(table).where(_mine(table))
    for table in (*_OF_DOMAIN, schema.pointers, schema.versions, schema.pointer_history)
}
_DELETE_OF_DOMAIN = {table: _DELETE_ALL[table].where(only) for table, only in _OF_DOMAIN.items()}

_C, _I, _L = schema.comparisons.c, schema.inferences.c, schema.inference_texts.c
_POINTERS = select(*STANDING).where(_mine(schema.pointers))
_PAIRS = select(_C.chosen, _C.rejected).where(_mine(schema.comparisons))
_PAIRS_OF_DOMAIN = _PAIRS.where(_OF_DOMAIN[schema.comparisons])
_SHOWN = select(_I.id, _I.query, _I.documents, _I.sealed).where(_mine(schema.inferences))
_SHOWN_IN_DOMAIN = _SHOWN.where(_OF_DOMAIN[schema.inferences])
_UNLINK = LookUp(delete(schema.inference_texts).where(_L.tenant == bindparam("tenant")), _L.digest)
_UNLINK_ONE = LookUp(
    delete(schema.inference_texts).where(_L.tenant == bindparam("tenant"), _L.inference == bindparam("inference")),
    _L.digest,
)
_PROMPTED = LookUp(select(schema.items.c.id).where(schema.items.c.tenant == bindparam("tenant")), schema.items.c.prompt)
_KEEP_MOVES = keeping(_mine(schema.versions))
_MOVES = schema.pointer_history.insert().values(
    {
        name: bindparam(name)
        for name in ("tenant", "subject", "domain", "name", "old_version", "version", "at", "reason", "actor")
    }
)


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a person has, asked ahead."""

    pointers: Callable[[], Any]
    blobs: Callable[[], Any]


def adapters_of(connection: Connection, tenant: str, subject: str) -> Adapters:
    pointers = ahead(connection, _POINTERS, _person(tenant, subject))
    return Adapters(pointers, blobs_of_owner(connection, tenant, subject))


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
    connection: Connection,
    tenant: str,
    subject: str,
    adapters: Adapters,
    at: int,
    reason: str,
    actor: str,
    erasure: Erasure,
) -> None:
    """The versions go with their weights. Of the pointers the history stays: ids, times and reasons."""
    entries: list[dict[str, Any]] = [
        {
            "tenant": tenant,
            "subject": subject,
            "domain": "",
            "name": pointer.name,
            "old_version": pointer.version,
            "version": None,
            "at": at,
            "reason": reason,
            "actor": actor,
        }
        for pointer in standing(adapters.pointers().all()).values()
    ]
    connection.execute(_KEEP_MOVES, _person(tenant, subject))
    if entries:
        connection.execute(_MOVES, entries)
    blobs = doom_of_owner(connection, adapters.blobs, at)
    if blobs:
        erasure.erased["blobs"] = blobs
    erasure.erased["pointers"] = _delete(connection, schema.pointers, tenant, subject)
    erasure.erased["versions"] = _delete(connection, schema.versions, tenant, subject)


def _erase_signals(connection: Connection, tenant: str, subject: str, domain: str | None, erasure: Erasure) -> None:
    """Before the inferences, which say in which domain a signal was given."""
    for pair in connection.execute(_PAIRS if domain is None else _PAIRS_OF_DOMAIN, _person(tenant, subject, domain)):
        erasure.items.update(pair)
    for table in (schema.comparisons, schema.ratings, schema.evaluation_pairs, schema.signals):
        erasure.erased[table.name] = _delete(connection, table, tenant, subject, domain)


def _gather_inferences(connection: Connection, tenant: str, subject: str, domain: str | None, erasure: Erasure) -> None:
    """Drop the references of the person's inferences to texts, remembering which texts and items those were.

    Items of feedback that fell out of its bound are found by their prompt, which is the query of an inference.
    """
    found = connection.execute(_SHOWN if domain is None else _SHOWN_IN_DOMAIN, _person(tenant, subject, domain)).all()
    sealed: set[bytes] = set()  # nobody else's, nor of another domain: whatever links to them goes
    for row in found:
        digests = {row.query, *unpack_digests(row.documents)}
        erasure.digests |= digests
        if row.sealed is not None:
            sealed |= digests
        else:
            _UNLINK_ONE.delete(connection, digests, {"tenant": tenant, "inference": row.id})
    _UNLINK.delete(connection, sealed, {"tenant": tenant})
    erasure.items |= items_prompted_by(connection, tenant, {row.query for row in found})


def items_prompted_by(connection: Connection, tenant: str, prompts: Collection[bytes]) -> set[int]:
    return {row.id for row in _PROMPTED.rows(connection, prompts, {"tenant": tenant})}
