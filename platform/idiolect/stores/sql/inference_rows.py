"""Inferences as rows: digests packed as raw bytes, because one request shows up to a thousand documents.

In the row of a named person they are references (see `subject_keys`), and what was shown is sealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, bindparam, select

from idiolect.errors import InvalidInputError
from idiolect.signals.events import Inference
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.sealing import opened_inference, with_keys
from idiolect.stores.sql.times import micros, moment
from idiolect.subject_keys import SubjectKey

DIGEST_BYTES = 32
HOUR_MICROS = 3_600_000_000

_I = schema.inferences.c
INFERENCE = (_I.id, _I.subject, _I.domain, _I.query, _I.documents, _I.shown, _I.sealed, _I.created_at)
_BY_ID = select(*INFERENCE).where(_I.tenant == bindparam("tenant"), _I.id == bindparam("id"))


def digest_bytes(digest: str) -> bytes:
    """Raises InvalidInputError unless `digest` is a sha256 in hex."""
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_BYTES:
        raise InvalidInputError(f"{digest[:80]!r} is not a digest of a text.", mend="Use ids.text_digest.")
    return raw


def _packed(digests: Sequence[str]) -> bytes:
    """All at once where they are right, which they are. Raises InvalidInputError, as for each."""
    if set(map(len, digests)) == {2 * DIGEST_BYTES}:
        with suppress(ValueError):
            packed = bytes.fromhex("".join(digests))
            if len(packed) == DIGEST_BYTES * len(digests):
                return packed
    return b"".join(map(digest_bytes, digests))


def unpack_digests(packed: bytes) -> list[bytes]:
    return [packed[start : start + DIGEST_BYTES] for start in range(0, len(packed), DIGEST_BYTES)]


def hour_of(created_at: int) -> str:
    """The name under which a person's inferences of one hour link to their texts, where others have their id."""
    return f"hour {created_at // HOUR_MICROS}"


def inference_row(tenant: str, inference: Inference) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "id": inference.id,
        "subject": inference.subject,
        "domain": inference.domain,
        "query": digest_bytes(inference.query),
        "documents": _packed(inference.documents),
        "shown": f"[{', '.join(map(str, inference.shown))}]",
        "sealed": None,
        "created_at": micros(inference.created_at),
    }


def find_inference(connection: Connection, tenant: str, inference_id: str) -> AnyRow | None:
    """As it is stored: sealed or not."""
    found: AnyRow | None = connection.execute(_BY_ID, {"tenant": tenant, "id": inference_id}).one_or_none()
    return found


def opened(keys: Callable[[], SubjectKeys], tenant: str, row: AnyRow | None) -> Inference | None:
    """None also if its key is gone. Raises CorruptArtifactError."""
    for found, key in with_keys(keys, tenant, [] if row is None else [row]):
        return inference_of(found, key)
    return None


def inference_of(row: AnyRow, key: SubjectKey | None) -> Inference:
    query, documents, shown = row.query, row.documents, row.shown
    if key is not None:
        query, documents, shown = opened_inference(key, row)
    return Inference(
        id=row.id,
        subject=row.subject,
        domain=row.domain,
        query=query.hex(),
        documents=tuple(digest.hex() for digest in unpack_digests(documents)),
        shown=tuple(json.loads(shown)),
        created_at=moment(row.created_at),
    )
