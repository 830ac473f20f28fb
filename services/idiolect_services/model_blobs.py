"""Global models through the blob store, so that every machine of an installation has the live one.

A model's digest is that of its card, and the card names the digest of each file. So the digest alone finds all of it
among content-addressed blobs, and nothing that arrives has to be trusted.
"""

from __future__ import annotations

from pathlib import Path

from idiolect.canonical import parse_json_object
from idiolect.errors import CorruptArtifactError, NotFoundError
from idiolect.staging import staged_folder
from idiolect.stores.blobs import BlobStore

CARD = "model.json"


def share_model(blobs: BlobStore, models: Path, digest: str) -> None:
    """The card last: where it is, the rest is too. Sharing it again changes nothing."""
    folder = models / digest
    card = (folder / CARD).read_bytes()
    for name in _files(card):
        blobs.put((folder / name).read_bytes())
    if blobs.put(card) != digest:
        raise CorruptArtifactError(f"{CARD} of global model {digest[:12]} was changed.", mend="Train it again.")


def fetch_model(blobs: BlobStore, models: Path, digest: str) -> None:
    """Unless it is there: whole or not at all, whoever else fetches it meanwhile. One that nobody shared is left to
    whoever loads it to miss. Raises UnavailableError, CorruptArtifactError."""
    target = models / digest
    if target.is_dir():
        return
    try:
        card = blobs.get(digest)
    except NotFoundError:
        return
    with staged_folder(models) as staging:
        for name, file_digest in _files(card).items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blobs.get(file_digest))
        (staging / CARD).write_bytes(card)
        _take_place(staging, target)


def blobs_of_model(blobs: BlobStore, digest: str) -> set[str]:
    """The digests of all blobs of a model; none if nobody shared it."""
    try:
        card = blobs.get(digest)
    except NotFoundError:
        return set()
    return {digest, *_files(card).values()}


def _take_place(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same bytes
            raise


def _files(card: bytes) -> dict[str, str]:
    """Raises CorruptArtifactError for a name that would leave the model's folder."""
    files: dict[str, str] = parse_json_object(card, what=CARD)["files"]
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
            raise CorruptArtifactError(f"{CARD} names the file {name[:80]!r}.", mend="Train the model again.")
    return files
