"""Backups: one signed ZIP archive of everything an installation needs, and back. See deploy/decisions/0008-backup.md.

    manifest.json            what there is, with sizes and digests; the schema; whose keys signed
    manifest.sig.json        {key_id, signature}: Ed25519 over the manifest's bytes
    tables/<name>.jsonl      one row per line, in the order of the manifest's columns; bytes as base64
    models/<digest>/<file>   the global models that something refers to
    blobs/<digest>           weights that are too large for a row
    secrets.sealed           only if asked for: the master and signing keys, under a passphrase

Nothing is written before the signature, every name, every size and every digest hold. Names are compared with what an
archive may hold, never used as paths before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from idiolect.canonical import canonical_json, parse_json_object
from idiolect.errors import ConfigurationError, CorruptArtifactError
from idiolect.registry.signing import Signer
from idiolect.staging import staged_folder
from idiolect.stores.sql.snapshots import Row, Snapshot

FORMAT = "idiolect-backup/1"
MANIFEST, SIGNATURE, SEALED = "manifest.json", "manifest.sig.json", "secrets.sealed"
_MEMBER = re.compile(
    r"tables/[a-z_]{1,60}\.jsonl|secrets\.sealed|blobs/[0-9a-f]{64}|models/[0-9a-f]{64}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,100}){1,3}"
)
_MAX_MANIFEST_BYTES = 16 << 20
_BLOCK = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # another may ask for gigabytes before its first byte
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into an archive. `models` are folders named by their digest."""

    snapshot: Snapshot
    models: Iterable[Path]
    blobs: Iterable[bytes]
    log: str  # the name of the recovery log
    public_keys: tuple[bytes, ...]
    key_check: str
    sealed: bytes | None = None


def write_archive(path: Path, contents: Contents, signer: Signer, created_at: str) -> Mapping[str, Any]:
    """Whole or not at all; readable by its owner alone. The manifest. Raises ConfigurationError if there is a file."""
    if path.exists():
        raise ConfigurationError(f"{path} exists already.", mend="Name a new file: a backup never replaces another.")
    handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                manifest = _write_members(archive, contents, created_at)
                said = canonical_json(manifest)
                archive.writestr(MANIFEST, said)
                signature = {"key_id": signer.key_id, "signature": signer.sign(said).hex()}
                archive.writestr(SIGNATURE, json.dumps(signature))
            file.flush()
            os.fsync(file.fileno())
        os.link(staging, path)  # unlike a rename, it never replaces what somebody else wrote meanwhile
        _sync_folder(path.absolute().parent)
    finally:
        Path(staging).unlink(missing_ok=True)
    return manifest


def _write_members(archive: zipfile.ZipFile, contents: Contents, created_at: str) -> dict[str, Any]:
    snapshot = contents.snapshot
    members: dict[str, dict[str, Any]] = {}
    rows: dict[str, int] = {}
    for name in snapshot.columns:
        written = _Counted(archive.open(_member(f"tables/{name}.jsonl"), "w", force_zip64=True))
        rows[name] = 0
        for row in snapshot.rows(name):
            written.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            rows[name] += 1
        members[f"tables/{name}.jsonl"] = written.close()
    for folder in contents.models:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = _member(f"models/{folder.name}/{file.relative_to(folder).as_posix()}")
            written = _Counted(archive.open(name, "w", force_zip64=True))
            with file.open("rb") as source:
                shutil.copyfileobj(source, written, _BLOCK)
            members[name] = written.close()
    for data in contents.blobs:
        name = _member(f"blobs/{hashlib.sha256(data).hexdigest()}")
        if name not in members:
            written = _Counted(archive.open(name, "w", force_zip64=True))
            written.write(data)
            members[name] = written.close()
    if contents.sealed is not None:
        written = _Counted(archive.open(SEALED, "w"))
        written.write(contents.sealed)
        members[SEALED] = written.close()
    return {
        "format": FORMAT,
        "created_at": created_at,
        "schema": snapshot.revision,
        "columns": {name: list(columns) for name, columns in snapshot.columns.items()},
        "rows": rows,
        "counters": dict(snapshot.counters),
        "log": contents.log,
        "public_keys": [public.hex() for public in contents.public_keys],
        "key_check": contents.key_check,
        "members": members,
    }


def _member(name: str) -> str:
    if _MEMBER.fullmatch(name) is None:
        raise ConfigurationError(f"{name[:200]!r} can't be part of a backup.", mend="Remove or rename that file.")
    return name


class _Counted:
    """A member under way: its size and digest."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member, self._size, self._digest = member, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._size += len(data)
        self._digest.update(data)
        return self._member.write(data)

    def close(self) -> dict[str, Any]:
        self._member.close()
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}


class Archive:
    """An archive that is read. Until `check` has passed, only its manifest may be looked at."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError for a file that is none, CorruptArtifactError for a damaged one."""
        try:
            self._zip = zipfile.ZipFile(path)
            if any(member.compress_type not in _METHODS for member in self._zip.infolist()):
                raise zipfile.BadZipFile("it is packed in a way that no backup is")
            self._said = self._small(MANIFEST, _MAX_MANIFEST_BYTES)
            self._signature = parse_json_object(self._small(SIGNATURE, 4096), what="the backup's signature")
        except OSError as error:
            raise ConfigurationError(f"{path} can't be read: {error.strerror}.", mend="Check the path.") from error
        except _DAMAGE as error:
            raise CorruptArtifactError(f"{path} is not a backup: {error}.", mend="Use another copy.") from error
        self.manifest = parse_json_object(self._said, what="the backup's manifest")
        if self.manifest.get("format") != FORMAT or not isinstance(self.manifest.get("key_check"), str):
            raise CorruptArtifactError(f"{path} is no backup that this version knows.", mend="Use another copy.")

    def _small(self, name: str, most: int) -> bytes:
        try:
            if self._zip.getinfo(name).file_size > most:
                raise CorruptArtifactError(f"the backup's {name} is over {most} bytes.")
            return self._zip.read(name)
        except (*_DAMAGE, OSError) as error:
            raise CorruptArtifactError(
                f"the backup's {name} can't be read: {error}.", mend="Use another copy."
            ) from error

    def sealed(self) -> bytes | None:
        return self._small(SEALED, 1 << 16) if SEALED in self._zip.namelist() else None

    def check(self, signer: Signer) -> None:
        """The signature, and every byte. Raises CorruptArtifactError naming what does not hold."""
        try:
            key_id, signature = self._signature["key_id"], bytes.fromhex(self._signature["signature"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError("the backup's signature is malformed.", mend="Use another copy.") from error
        signer.verify(str(key_id), signature, self._said, what="the backup")
        names = self._zip.namelist()
        expected = [*self.manifest["members"], MANIFEST, SIGNATURE]
        if len(set(names)) != len(names) or sorted(names) != sorted(expected):
            raise CorruptArtifactError("the backup does not hold exactly what its manifest names.", mend="Use another.")
        for name, said in self.manifest["members"].items():
            if _MEMBER.fullmatch(name) is None:
                raise CorruptArtifactError(f"the backup names a member {name[:200]!r}.")
            self._check_member(name, said)

    def _check_member(self, name: str, said: Mapping[str, Any]) -> None:
        digest, size = hashlib.sha256(), 0
        try:
            with self._zip.open(name) as member:
                while block := member.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
                    if size > said["bytes"]:
                        break
        except (*_DAMAGE, OSError) as error:
            raise CorruptArtifactError(
                f"{name} of the backup is damaged: {error}.", mend="Use another copy."
            ) from error
        if size != said["bytes"] or digest.hexdigest() != said["sha256"]:
            raise CorruptArtifactError(f"{name} of the backup does not match its digest.", mend="Use another copy.")

    def snapshot(self) -> Snapshot:
        said = self.manifest
        return Snapshot(said["schema"], said["columns"], said["counters"], self._rows)

    def _rows(self, table: str) -> Iterator[Row]:
        if table not in self.manifest["columns"]:
            return
        with self._zip.open(f"tables/{table}.jsonl") as member:
            for line in member:
                yield json.loads(line)

    def write_models(self, root: Path) -> int:
        """How many were not there yet. Each appears whole or not at all."""
        names = [name for name in self.manifest["members"] if name.startswith("models/")]
        digests = sorted({name.split("/")[1] for name in names})
        missing = [digest for digest in digests if not (root / digest).exists()]
        for digest in missing:
            with staged_folder(root) as staging:
                for name in (name for name in names if name.split("/")[1] == digest):
                    self._extract(name, staging.joinpath(*name.split("/")[2:]))
                staging.rename(root / digest)
        if missing:
            _sync_folder(root)
        return len(missing)

    def blobs(self) -> Iterator[bytes]:
        for name in self.manifest["members"]:
            if name.startswith("blobs/"):
                yield self._zip.read(name)

    def _extract(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._zip.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self._zip.close()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
