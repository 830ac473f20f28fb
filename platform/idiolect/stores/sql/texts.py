"""Texts stored once under their digest, items (pairs of texts) under theirs; both go when nothing refers to them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection, delete, exists, select

from idiolect.ids import text_digest
from idiolect.signals.comparison import Item
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import CHUNK, chunks, insert


def item_key(domain: str, prompt: str, text: str) -> bytes:
    """`prompt` and `text` are digests in hex; a domain can't hold NUL-free hex of that length by accident."""
    return hashlib.sha256("\0".join((domain, prompt, text)).encode("utf-8", "surrogatepass")).digest()


def store_texts(connection: Connection, tenant: str, bodies: Iterable[str]) -> None:
    by_digest = {bytes.fromhex(text_digest(body)): body for body in bodies}
    rows = [
        {"tenant": tenant, "digest": digest, "body": by_digest[digest].encode("utf-8", "surrogatepass")}
        for digest in sorted(by_digest)
    ]
    statement = insert(connection, schema.texts).on_conflict_do_nothing()
    for chunk in chunks(rows):
        connection.execute(statement, chunk)


def known_texts(connection: Connection, tenant: str, digests: Collection[bytes]) -> set[bytes]:
    column = schema.texts.c.digest
    found: set[bytes] = set()
    for chunk in chunks(sorted(digests)):
        query = select(column).where(schema.texts.c.tenant == tenant, column.in_(chunk))
        found.update(connection.scalars(query))
    return found


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


def load_items(connection: Connection, tenant: str, ids: Sequence[int]) -> tuple[Item, ...]:
    """The items in the order of `ids`."""
    table = schema.items.c
    rows: dict[int, tuple[str, bytes, bytes, str, str]] = {}
    for chunk in chunks(ids):
        columns = (table.id, table.domain, table.prompt, table.text, table.language, table.task)
        for id_, *row in connection.execute(select(*columns).where(table.tenant == tenant, table.id.in_(chunk))):
            rows[id_] = tuple(row)
    bodies = load_texts(
        connection, tenant, {digest for _, prompt, text, *_ in rows.values() for digest in (prompt, text)}
    )
    return tuple(
        Item(domain, bodies[prompt], bodies[text], language, task)
        for domain, prompt, text, language, task in map(rows.__getitem__, ids)
    )


def load_texts(connection: Connection, tenant: str, digests: Collection[bytes]) -> dict[bytes, str]:
    table = schema.texts.c
    bodies: dict[bytes, str] = {}
    for chunk in chunks(sorted(digests)):
        query = select(table.digest, table.body).where(table.tenant == tenant, table.digest.in_(chunk))
        bodies.update((digest, body.decode("utf-8", "surrogatepass")) for digest, body in connection.execute(query))
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
