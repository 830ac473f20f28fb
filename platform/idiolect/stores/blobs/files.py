"""Blobs as files: ab/cd/<digest>, so that no folder holds more than a few hundred of a million."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from idiolect.errors import UnavailableError
from idiolect.ids import sha256_hex
from idiolect.staging import staged_file
from idiolect.stores.blobs.port import MAX_BYTES, BlobInfo, check_digest, check_size, is_digest, missing, verified


@dataclass(frozen=True, slots=True)
class FileBlobs:
    root: Path

    def put(self, data: bytes) -> str:
        """Written aside, synced and renamed into place: what lies under a digest is whole, also after a power cut."""
        check_size(len(data))
        digest = sha256_hex(data)
        target = self._path(digest)
        with _translated(target):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with staged_file(self.root) as staging:
                with staging.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                staging.replace(target)
            for folder in (target.parent, target.parent.parent, self.root):
                _sync(folder)
        return digest

    def get(self, digest: str) -> bytes:
        path = self._path(check_digest(digest))
        with _translated(path):
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_BYTES + 1)
            except FileNotFoundError:
                raise missing(digest) from None
        return verified(data, digest)

    def delete(self, digest: str) -> None:
        path = self._path(check_digest(digest))
        with _translated(path):
            path.unlink(missing_ok=True)

    def walk(self) -> Iterator[BlobInfo]:
        for path in self.root.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            if is_digest(path.name):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    status = path.stat()
                    yield BlobInfo(path.name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def _path(self, digest: str) -> Path:
        return self.root / digest[:2] / digest[2:4] / digest


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"the blob {path} can't be read or written: {error.strerror}.", mend="Check the disk and its rights."
        ) from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
