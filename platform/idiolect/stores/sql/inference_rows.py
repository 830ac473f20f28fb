"""Inferences as rows: digests packed as raw bytes, because one request shows up to a thousand documents."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, bindparam, select

from idiolect.errors import InvalidInputError
from idiolect.signals.events import Inference
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.times import micros, moment

DIGEST_BYTES = 32

_I = schema.inferences.c
_BY_ID = select(_I.id, _I.subject, _I.domain, _I.query, _I.documents, _I.shown, _I.created_at).where(
    _I.tenant == bindparam("tenant"), _I.id == bindparam("id")
)


def digest_bytes(digest: str) -> bytes:
    """Raises InvalidInputError unless `digest` is a sha256 in hex."""
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_BYTES:
        raise InvalidInputError(f"{digest[:80]!r} is not a digest of a text.", mend="Use ids.text_digest.")
    return raw


def unpack_digests(packed: bytes) -> list[bytes]:
    return [packed[start : start + DIGEST_BYTES] for start in range(0, len(packed), DIGEST_BYTES)]


def inference_row(tenant: str, inference: Inference) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "id": inference.id,
        "subject": inference.subject,
        "domain": inference.domain,
        "query": digest_bytes(inference.query),
        "documents": b"".join(map(digest_bytes, inference.documents)),
        "shown": json.dumps(list(inference.shown)),
        "created_at": micros(inference.created_at),
    }


def load_inference(connection: Connection, tenant: str, inference_id: str) -> Inference | None:
    row = connection.execute(_BY_ID, {"tenant": tenant, "id": inference_id}).one_or_none()
    return None if row is None else _inference_of(row)


def _inference_of(row: AnyRow) -> Inference:
    return Inference(
        id=row.id,
        subject=row.subject,
        domain=row.domain,
        query=row.query.hex(),
        documents=tuple(digest.hex() for digest in unpack_digests(row.documents)),
        shown=tuple(json.loads(row.shown)),
        created_at=moment(row.created_at),
    )
