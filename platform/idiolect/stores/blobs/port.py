"""What a store of blobs does. One contract suite (`tests/contracts`) runs against every implementation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from idiolect.errors import CorruptArtifactError, InvalidInputError, NotFoundError, TooLargeError
from idiolect.ids import sha256_hex

MAX_BYTES = 1 << 30
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """`stored_at`: when it was last put, also if it was there already."""

    digest: str
    bytes: int
    stored_at: datetime


class BlobStore(Protocol):
    def put(self, data: bytes) -> str:
        """The sha256 of `data`, under which it lies. On the disk, or the service's, when it returns; putting it again
        renews its age. Raises TooLargeError, UnavailableError."""
        ...

    def get(self, digest: str) -> bytes:
        """Verified. Raises NotFoundError, CorruptArtifactError if it was changed, UnavailableError."""
        ...

    def delete(self, digest: str) -> None:
        """Idempotent."""
        ...

    def walk(self) -> Iterator[BlobInfo]:
        """All, in no order."""
        ...


def unused(blobs: BlobStore, named: Iterable[str], before: datetime) -> Iterator[BlobInfo]:
    """What nothing names and nobody put since `before`.

    `named` must be read after `before`: a blob is put first and named after, so one that is about to be named is young.
    """
    kept = frozenset(named)
    return (info for info in blobs.walk() if info.digest not in kept and info.stored_at < before)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def check_digest(digest: str) -> str:
    """Raises InvalidInputError: nothing else ever becomes part of a path."""
    if not is_digest(digest):
        raise InvalidInputError(f"{digest[:80]!r} is not the digest of a blob.", mend="Use 64 hex characters.")
    return digest


def check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise TooLargeError(f"a blob of {size} bytes is over the limit of {MAX_BYTES}.", mend="Store it in parts.")


def verified(data: bytes, digest: str) -> bytes:
    if sha256_hex(data) != digest:
        raise CorruptArtifactError(f"the blob {digest} was changed or damaged.", mend="Restore it, or train again.")
    return data


def missing(digest: str) -> NotFoundError:
    return NotFoundError(f"there is no blob {digest}.", mend="Restore it from a backup, or train again.")
