"""Texts stored once under their digest, items (pairs of texts) under theirs; both go when nothing refers to them.

A text of a named person is stored once for that person and domain: sealed, under a reference that only their key makes.
Whatever refers to it does so by that reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, bindparam, delete, exists, select

from idiolect.ids import text_digest
from idiolect.signals.comparison import Item
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import chunks, insert
from idiolect.stores.sql.look_ups import LookUp
from idiolect.stores.sql.sealing import sealed_texts, with_keys
from idiolect.subject_keys import SubjectKey


def item_key(domain: str, prompt: str, text: str) -> bytes:
    """`prompt` and `text` are digests in hex; a domain can't hold NUL-free hex of that length by accident."""
    return hashlib.sha256("\0".join((domain, prompt, text)).encode("utf-8", "surrogatepass")).digest()


def store_texts(connection: Connection, tenant: str, bodies: Iterable[str]) -> None:
    by_digest = {bytes.fromhex(text_digest(body)): body for body in bodies}
    rows: list[dict[str, Any]] = [
        {"tenant": tenant, "digest": digest, "body": encoded(by_digest[digest])} for digest in sorted(by_digest)
    ]
    _insert_texts(connection, rows)


def store_sealed_texts(connection: Connection, tenant: str, key: SubjectKey, bodies: Iterable[str]) -> None:
    sealed = sealed_texts(key, {bytes.fromhex(text_digest(body)): encoded(body) for body in bodies})
    rows: list[dict[str, Any]] = [
        {"tenant": tenant, "digest": name, "body": b"", "sealed": sealed[name]} for name in sorted(sealed)
    ]
    _insert_texts(connection, rows)


def _insert_texts(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    statement = insert(connection, schema.texts).on_conflict_do_nothing()
    for chunk in chunks(rows):
        connection.execute(statement, chunk)


def encoded(body: str) -> bytes:
    return body.encode("utf-8", "surrogatepass")


def store_items(connection: Connection, tenant: str, rows: Sequence[tuple[str, str, str, str, str]]) -> list[int]:
    """Ids of (domain, prompt digest, text digest, language, task) rows, in their order; the texts are stored already.

    An item that is there keeps the language and task that it came with first.
    """
    keys = [item_key(domain, prompt, text) for domain, prompt, text, *_ in rows]
    values = {
        key: {
            "tenant": tenant,
            "key": key,
            "domain": domain,
            "prompt": bytes.fromhex(prompt),
            "text": bytes.fromhex(text),
            "language": language,
            "task": task,
        }
        for key, (domain, prompt, text, language, task) in zip(keys, rows, strict=True)
    }
    statement = insert(connection, schema.items).on_conflict_do_nothing()
    for chunk in chunks([values[key] for key in sorted(values)]):
        connection.execute(statement, chunk)
    ids = _item_ids(connection, tenant, sorted(values))
    return [ids[key] for key in keys]


def _item_ids(connection: Connection, tenant: str, keys: Sequence[bytes]) -> dict[bytes, int]:
    table = schema.items.c
    ids: dict[bytes, int] = {}
    for chunk in chunks(keys):
        query = select(table.key, table.id).where(table.tenant == tenant, table.key.in_(chunk))
        ids.update((key, id_) for key, id_ in connection.execute(query))
    return ids


def load_items(
    connection: Connection, keys: Callable[[], SubjectKeys], tenant: str, ids: Sequence[int]
) -> tuple[Item, ...]:
    """The items in the order of `ids`. The keys of them all are there: see `sealing`."""
    table = schema.items.c
    rows: dict[int, tuple[str, bytes, bytes, str, str]] = {}
    for chunk in chunks(ids):
        columns = (table.id, table.domain, table.prompt, table.text, table.language, table.task)
        for id_, *row in connection.execute(select(*columns).where(table.tenant == tenant, table.id.in_(chunk))):
            rows[id_] = tuple(row)
    bodies = load_texts(
        connection, keys, tenant, {digest for _, prompt, text, *_ in rows.values() for digest in (prompt, text)}
    )
    return tuple(
        Item(domain, bodies[prompt], bodies[text], language, task)
        for domain, prompt, text, language, task in map(rows.__getitem__, ids)
    )


def load_texts(
    connection: Connection, keys: Callable[[], SubjectKeys], tenant: str, digests: Collection[bytes]
) -> dict[bytes, str]:
    """Without those whose key is gone."""
    table = schema.texts.c
    bodies: dict[bytes, str] = {}
    for chunk in chunks(sorted(digests)):
        query = select(table.digest, table.body, table.sealed).where(table.tenant == tenant, table.digest.in_(chunk))
        for row, key in with_keys(keys, tenant, connection.execute(query).all()):
            body = row.body if key is None else key.open("text", row.digest, row.sealed)
            bodies[row.digest] = body.decode("utf-8", "surrogatepass")
    return bodies


def digests_of_items(connection: Connection, tenant: str, ids: Collection[int]) -> set[bytes]:
    return {digest for row in _ITEM_TEXTS.rows(connection, ids, {"tenant": tenant}) for digest in row}


def collect_items(connection: Connection, tenant: str, ids: Collection[int]) -> int:
    """Delete those of `ids` that no data set and no feedback refers to any more. Needs Hold.ERASE."""
    return _UNUSED_ITEMS.delete(connection, ids, {"tenant": tenant})


def collect_texts(connection: Connection, tenant: str, digests: Collection[bytes]) -> int:
    """Delete those of `digests` that no item and no inference refers to any more. Needs Hold.ERASE."""
    return _UNUSED_TEXTS.delete(connection, digests, {"tenant": tenant})


def _unused_items() -> ColumnElement[bool]:
    items, links, rows = schema.items.c, schema.dataset_items.c, schema.comparisons.c
    feedback = rows.dataset.is_(None)
    return ~(
        exists().where(links.item == items.id)
        | exists().where(rows.chosen == items.id, feedback)
        | exists().where(rows.rejected == items.id, feedback)
    )


def _unused_texts() -> ColumnElement[bool]:
    texts, items, shown = schema.texts.c, schema.items.c, schema.inference_texts.c
    return ~(
        exists().where(items.tenant == _TENANT, items.prompt == texts.digest)
        | exists().where(items.tenant == _TENANT, items.text == texts.digest)
        | exists().where(shown.tenant == _TENANT, shown.digest == texts.digest)
    )


_I, _TENANT = schema.items.c, bindparam("tenant", type_=Text)
_ITEM_TEXTS = LookUp(select(_I.prompt, _I.text).where(_I.tenant == _TENANT), _I.id)
_UNUSED_ITEMS = LookUp(delete(schema.items).where(_I.tenant == _TENANT, _unused_items()), _I.id)
_UNUSED_TEXTS = LookUp(
    delete(schema.texts).where(schema.texts.c.tenant == _TENANT, _unused_texts()), schema.texts.c.digest
)
