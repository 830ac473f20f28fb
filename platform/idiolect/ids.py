"""Identifiers: random ones (UUIDv7), digests of content, and pseudonyms of people."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Iterable
from functools import lru_cache

from idiolect.errors import InvalidInputError

# Names become parts of keys, log lines and file names, so they are plain: lower case, no separators that mean
# something.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
SUBJECT_ID_MAX_CHARS = 128

_VERSION, _VARIANT = 7 << 76, 0b10 << 62
_latest = 0


def new_id() -> str:
    """A UUIDv7 (RFC 9562): unique, and sorted by time of creation."""
    text = f"{_uuid7():032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_id_bytes() -> bytes:
    """The same as 16 bytes."""
    return _uuid7().to_bytes(16)


def _uuid7() -> int:
    """Milliseconds, then 12 bits of their fractions, then chance. Later ones of this process are larger, also where the
    clock stands still or goes back; two threads may get the same time, which chance tells apart."""
    global _latest
    now = _latest = max(time.time_ns() * 4096 // 1_000_000, _latest + 1)
    return now >> 12 << 80 | _VERSION | (now & 0xFFF) << 64 | _VARIANT | int.from_bytes(os.urandom(8)) >> 2


def check_name(what: str, name: str) -> str:
    """Return `name` if it can name a tenant or a domain.

    Raises InvalidInputError otherwise; `what` says which of the two the caller meant.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInputError(
            f"{what} {name[:80]!r} is not a valid name.",
            mend="Use 1 to 64 of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit.",
        )
    return name


def check_subject_id(subject_id: str) -> str:
    """Return `subject_id` if it can be a tenant's own id of a person: 1..128 printable characters."""
    if not 1 <= len(subject_id) <= SUBJECT_ID_MAX_CHARS or not subject_id.isprintable():
        raise InvalidInputError(
            f"user id {subject_id[:40]!r} is not usable.",
            mend=f"Send 1 to {SUBJECT_ID_MAX_CHARS} printable characters.",
        )
    return subject_id


def pseudonym(tenant_key: bytes, subject_id: str) -> str:
    """The only name under which a person is stored: keyed per tenant, so tenants can't be joined.

    32 hex characters of HMAC-SHA256: collisions need about 2^64 people in one tenant.
    """
    keyed = _keyed(tenant_key).copy()  # which leaves less than half of the work
    keyed.update(check_subject_id(subject_id).encode())
    return keyed.hexdigest()[:32]


@lru_cache(maxsize=1024)
def _keyed(tenant_key: bytes) -> hmac.HMAC:
    return hmac.new(tenant_key, digestmod="sha256")


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def text_digest(text: str) -> str:
    """The identity of a text: sha256 of its UTF-8 bytes, in hex."""
    (digest,) = text_digests((text,))
    return digest


def text_digests(texts: Iterable[str]) -> list[str]:
    """Of each, in their order."""
    return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
