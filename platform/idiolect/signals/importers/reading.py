"""Reading the files of a data set: bounded, checked row by row, hashed as they are read.

Files come from anywhere, so nothing about them is believed: a line is at most 1 MiB, a data set at most 8 GiB after
decompression, and every error names the file, the line and the mend. A row that real exports contain although nothing
can be learned from it (an unknown id, an empty text) is left out and counted; a file of which more than half is left
out is refused, because it is then more likely the wrong file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from idiolect.errors import InvalidInputError, TooLargeError
from idiolect.signals.importers.rows import CsvRow, Row
from idiolect.stores.ports import Progress

_FETCH_AGAIN = "Fetch the file again from where it is published."
_COMPRESS = "Compress it with gzip, or fetch it again from where it is published."
_GZIP = b"\x1f\x8b"  # RFC 1952
_PROGRESS_EVERY_ROWS = 5_000
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    line_bytes: int = 1 << 20
    document_bytes: int = 64 << 20
    total_bytes: int = 8 << 30  # after decompression, over all files of a data set


class _HashedFile(io.RawIOBase):
    """A file that hashes and counts what is read from it, so that the digest is of exactly the bytes that were used."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._sha256.update(memoryview(buffer)[:count])
        self.bytes_read += count
        return count

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


class DataFiles:
    """The files `names` in `folder`, all of them checked to be there before the first is read.

    `progress` is told compressed bytes. `counts` collects what was read and left out. Raises InvalidInputError for a
    missing file or folder.
    """

    def __init__(self, folder: Path, names: Sequence[str], progress: Progress, limits: Limits | None = None) -> None:
        _check_folder(folder, names)
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.limits = limits or Limits()
        self._bytes_left = self.limits.total_bytes
        self._size = {name: _size_of_regular_file(folder / name) for name in names}
        self._sha256: dict[str, str] = {}
        self._progress = progress

    def source(self, name: str, noun: str) -> Source:
        """The rows of a .jsonl, .jsonl.gz, .csv or .csv.gz file; `noun` says in `counts` what its rows are."""
        return Source(self, name, noun)

    def document(self, name: str) -> Any:
        """A small JSON file as a whole."""
        limit = self.limits.document_bytes
        with self.opened(name) as (stream, _):
            content = self.guarded_read(name, stream.read, limit)
        try:
            return _DECODER.decode(content.decode())
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{self.folder / name} is not valid JSON ({error}).", mend=_FETCH_AGAIN) from error

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[IO[bytes], _HashedFile]]:
        """The unpacked stream, and the hashed file under it. Leaving without an error completes the digest."""
        path = self.folder / name
        try:
            file = io.FileIO(path)
        except OSError as error:
            raise InvalidInputError(f"{path} can't be opened ({error.strerror}).", mend="Check its rights.") from error
        with file:
            hashed = _HashedFile(file)
            plain = io.BufferedReader(hashed, _CHUNK_BYTES)
            if name.endswith(".gz") and plain.peek(2)[:2] not in (_GZIP, b""):
                raise InvalidInputError(f"{path} is not compressed, although its name says so.", mend=_COMPRESS)
            stream: Any = gzip.GzipFile(fileobj=plain) if name.endswith(".gz") else plain
            yield stream, hashed
        self._finished(name, hashed.hexdigest())

    def guarded_read(self, where: str, read: Any, limit: int) -> bytes:
        """`read(limit + 1)`, with decompression errors and bounds turned into errors that name `where`."""
        try:
            content: bytes = read(limit + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise InvalidInputError(f"{self.folder / where} can't be read ({error}).", mend=_FETCH_AGAIN) from error
        if len(content) > limit:
            raise TooLargeError(f"{self.folder / where} is over {limit:,} bytes.", mend=_FETCH_AGAIN)
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            total = self.limits.total_bytes
            raise TooLargeError(f"{self.folder / where}: over {total:,} bytes unpacked.", mend="Import it in parts.")
        return content

    def report_progress(self, bytes_read: int) -> None:
        done = sum(self._size[other] for other in self._sha256) + bytes_read
        total = sum(self._size.values())
        self._progress(min(done, total), total)

    def _finished(self, name: str, sha256: str) -> None:
        self.report_progress(self._size[name])
        self._sha256[name] = sha256

    def digest(self, *options: str) -> str:
        """sha256 over names and contents of all files, and over `options` that change what is made of them."""
        assert set(self._sha256) == set(self._size), "a file was not read to its end"
        lines = [f"{name} {self._sha256[name]}\n" for name in sorted(self._sha256)]
        return hashlib.sha256(
            "".join([*lines, *(f"{option}\n" for option in options)]).encode("utf-8", "surrogatepass")
        ).hexdigest()


class Source:
    """One file of rows. Iterate once; call `leave_out` for the current row when nothing can be learned from it."""

    def __init__(self, files: DataFiles, name: str, noun: str) -> None:
        self.noun = noun
        self._files, self._name = files, name
        self._where = str(files.folder / name)
        self._rows = 0
        self._left_out = 0

    def leave_out(self, reason: str) -> None:
        self._left_out += 1
        self.count(f"left_out_{reason}")

    def count(self, what: str, amount: int = 1) -> None:
        """Count something about a row that is in order, such as a pass: it doesn't make the file suspect."""
        self._files.counts[f"{self.noun}_{what}"] += amount

    def __iter__(self) -> Iterator[Row]:
        csv_like = self._name.removesuffix(".gz").endswith(".csv")
        for row in self._csv_rows() if csv_like else self._json_rows():
            self._rows += 1
            yield row
        self._files.counts[f"{self.noun}_read"] += self._rows
        if 2 * self._left_out > self._rows:
            raise InvalidInputError(
                f"{self._where}: {self._left_out:,} of {self._rows:,} rows had to be left out "
                f"({', '.join(self._reasons())}).",
                mend="Check that the files belong together and are of the expected format.",
            )

    def _reasons(self) -> list[str]:
        prefix = f"{self.noun}_left_out_"
        return sorted(name.removeprefix(prefix) for name in self._files.counts if name.startswith(prefix))

    def _json_rows(self) -> Iterator[Row]:
        for number, line in self._lines():
            if not line.isspace():
                yield Row(parse_object(self._where, number, line), self._where, number)

    def _csv_rows(self) -> Iterator[Row]:
        reader = csv.DictReader((line for _, line in self._lines()), strict=True)
        try:
            for columns in reader:
                yield CsvRow(columns, self._where, reader.line_num)
        except csv.Error as error:
            raise InvalidInputError(
                f"{self._where} line {reader.line_num}: not valid CSV ({error}).", mend='Quote fields with "...".'
            ) from error

    def _lines(self) -> Iterator[tuple[int, str]]:
        files, limit = self._files, self._files.limits.line_bytes
        number = 1
        with files.opened(self._name) as (stream, hashed):
            while line := files.guarded_read(f"{self._name} line {number}", stream.readline, limit):
                yield number, self._decoded(number, line)
                number += 1
                if number % _PROGRESS_EVERY_ROWS == 0:
                    files.report_progress(hashed.bytes_read)

    def _decoded(self, number: int, line: bytes) -> str:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"{self._where} line {number}: not UTF-8 ({error.reason}).", mend="Save the file as UTF-8."
            ) from error
        return text.removeprefix("\ufeff") if number == 1 else text  # spreadsheets write a byte order mark


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def parse_object(where: str, number: int, line: str) -> dict[str, Any]:
    try:
        value = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        # What the decoder counts as lines begins anew with each of ours.
        what = str(error)
        if isinstance(error, json.JSONDecodeError):
            what = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        problem = f"{where} line {number}: not valid JSON ({what})."
        raise InvalidInputError(problem, mend=_FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"{where} line {number}: not a JSON object.", mend='Each line must look like {"column": value, ...}.'
        )
    return value


def stat_or_none(path: Path) -> os.stat_result | None:
    """None if there is nothing at `path`."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # no right to look; an impossible name
        raise InvalidInputError(
            f"{path} can't be looked at ({error}).", mend="Check the path and its rights."
        ) from error


def _check_folder(folder: Path, names: Sequence[str]) -> None:
    mend = f"Give the folder that holds {' and '.join(names)}."
    found = stat_or_none(folder)
    if found is None:
        raise InvalidInputError(f"{folder} does not exist.", mend=mend)
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidInputError(f"{folder} is not a folder.", mend=mend)


def _size_of_regular_file(path: Path) -> int:
    found = stat_or_none(path)
    if found is None:
        plain = path.with_suffix("")
        waits = path.suffix == ".gz" and stat_or_none(plain) is not None
        mend = f"Compress {plain} with gzip." if waits else f"Put {path.name} into {path.parent}."
        raise InvalidInputError(f"{path} does not exist.", mend=mend)
    if not stat.S_ISREG(found.st_mode):  # a folder; or a pipe, which could be waited on forever
        raise InvalidInputError(f"{path} is not a file.", mend=f"Put the file {path.name} there instead.")
    return found.st_size
