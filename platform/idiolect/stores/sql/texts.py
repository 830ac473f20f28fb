"""Texts stored once under their digest, items (pairs of texts) under theirs; both go when nothing refers to them.

A text of a named person is stored once for that person and domain: sealed, under a reference that only their key makes.
Whatever refers to it does so by that reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, delete, exists, select

from idiolect.ids import text_digest
from idiolect.signals.comparison import Item
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import CHUNK, chunks, insert
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
    table = schema.items.c
    digests: set[bytes] = set()
    for chunk in chunks(sorted(ids)):
        query = select(table.prompt, table.text).where(table.tenant == tenant, table.id.in_(chunk))
        for prompt, text in connection.execute(query):
            digests.update((prompt, text))
    return digests


def collect_items(connection: Connection, tenant: str, ids: Collection[int]) -> int:
    """Delete those of `ids` that no data set and no feedback refers to any more. Needs Hold.ERASE."""
    table, links, rows = schema.items, schema.dataset_items, schema.comparisons
    feedback = rows.c.dataset.is_(None)
    unused = ~(
        exists().where(links.c.item == table.c.id)
        | exists().where(rows.c.chosen == table.c.id, feedback)
        | exists().where(rows.c.rejected == table.c.id, feedback)
    )
    count = 0
    for chunk in chunks(sorted(ids)):
        where = (table.c.tenant == tenant, table.c.id.in_(chunk), unused)
        count += connection.execute(delete(table).where(*where)).rowcount
    return count


def collect_texts(connection: Connection, tenant: str, digests: Collection[bytes]) -> int:
    """Delete those of `digests` that no item and no inference refers to any more. Needs Hold.ERASE."""
    table, items, shown = schema.texts, schema.items, schema.inference_texts
    unused = ~(
        exists().where(items.c.tenant == tenant, items.c.prompt == table.c.digest)
        | exists().where(items.c.tenant == tenant, items.c.text == table.c.digest)
        | exists().where(shown.c.tenant == tenant, shown.c.digest == table.c.digest)
    )
    count = 0
    for chunk in chunks(sorted(digests), CHUNK):
        where = (table.c.tenant == tenant, table.c.digest.in_(chunk), unused)
        count += connection.execute(delete(table).where(*where)).rowcount
    return count
