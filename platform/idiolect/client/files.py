"""A file that is written while it arrives: whole or not at all, never over another one, readable by its owner alone."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any


class Incoming:
    """In a `with`: what was not kept by its end is gone. Raises FileExistsError, and any OSError."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._path = path
        handle, self._staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
        self._file = os.fdopen(handle, "wb")

    def write(self, block: bytes) -> None:
        self._file.write(block)

    def keep(self) -> dict[str, Any]:
        """Where it is now, and how many bytes it has."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.link(self._staging, self._path)  # unlike a rename, it never replaces what somebody else wrote meanwhile
        return {"path": self._path, "size": self._file.tell()}

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Path(self._staging).unlink(missing_ok=True)
        self._file.close()
