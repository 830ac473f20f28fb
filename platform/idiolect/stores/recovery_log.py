"""The recovery log: an append-only file beside the database, on the disk before the change that it tells of commits.

Each line is JSON, and ends with the sha256 of the line's text and of the hash before it. What a crash left half-written
at the end was never answered to anybody, and is cut off by the next writer. Long lists are split over lines of their
own before the line that they belong to. Several processes may write; one file belongs to one database.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from idiolect.errors import CorruptArtifactError
from idiolect.recovery import LoggedChange

_GENESIS = b"0" * 64
_HASH_BYTES = 64
_PART = 10_000  # people on one line
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class RecoveryLog:
    path: Path

    def append(self, changes: Sequence[LoggedChange]) -> None:
        """All of them, on the disk when it returns. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = not self.path.exists()
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            previous = _cut_torn_end(file)
            for body in (body for change in changes for body in _bodies(change)):
                previous = _chained(previous, body)
                file.write(body + b" " + previous + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            _sync_folder(self.path.parent)

    def read(self) -> Iterator[LoggedChange]:
        """In order; nothing if there is no log yet. Raises CorruptArtifactError naming the line."""
        parts: list[Any] = []
        previous = _GENESIS
        for number, line in enumerate(self._lines(), 1):
            body, said = line[: -_HASH_BYTES - 2], line[-_HASH_BYTES - 1 : -1]
            previous = _chained(previous, body)
            if said != previous:
                raise CorruptArtifactError(
                    f"line {number} of the recovery log {self.path} was changed or lost.",
                    mend="Use another copy of it.",
                )
            data = json.loads(body)
            if "part" in data:
                parts += data["part"]
                continue
            change = LoggedChange.from_json(data)
            yield LoggedChange(change.entry, {**change.extra, "subjects": parts}) if parts else change
            parts = []

    def _lines(self) -> Iterator[bytes]:
        """Whole ones."""
        try:
            with self.path.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            return

    def last(self) -> LoggedChange | None:
        """The newest change, without reading all of the log."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            end = _end_of_whole_lines(file)
            if end == 0:
                return None
            start = _after_newline(file, end - 1)
            file.seek(start)
            line = file.read(end - start)
        return LoggedChange.from_json(json.loads(line[: -_HASH_BYTES - 2]))

    @contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Committers hold it together; whoever compares log and database holds it alone, so that no change is in one
        and not yet in the other."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield


def _bodies(change: LoggedChange) -> Iterator[bytes]:
    subjects = list(change.extra.get("subjects", ()))
    for start in range(0, len(subjects), _PART):
        yield json.dumps({"part": subjects[start : start + _PART]}).encode()
    kept = {name: value for name, value in change.extra.items() if name != "subjects"}
    yield json.dumps(LoggedChange(change.entry, kept).to_json()).encode()


def _chained(previous: bytes, body: bytes) -> bytes:
    return hashlib.sha256(previous + body).hexdigest().encode()


def _cut_torn_end(file: IO[bytes]) -> bytes:
    """The hash of the last whole line, with the file cut off and placed after it."""
    end = _end_of_whole_lines(file)
    file.truncate(end)
    previous = _GENESIS
    if end:
        file.seek(end - _HASH_BYTES - 1)
        previous = file.read(_HASH_BYTES)
    file.seek(end)
    return previous


def _end_of_whole_lines(file: IO[bytes]) -> int:
    return _after_newline(file, file.seek(0, os.SEEK_END))


def _after_newline(file: IO[bytes], end: int) -> int:
    """Where the line that holds the byte before `end` begins; 0 if there is no newline before `end`."""
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
