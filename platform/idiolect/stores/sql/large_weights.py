"""Weights that are too large for a row lie in a blob, which the version's row names.

Put first and named after, so that a named blob is there. When the last version that names one is deleted, the same
transaction writes it down as doomed, and it is deleted after the commit: a crash in between leaves a note, never a
blob that nobody knows of.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, select

from idiolect.errors import ConfigurationError, CorruptArtifactError, IdiolectError, NotFoundError
from idiolect.registry.manifest import Version
from idiolect.registry.weights import INLINE_MAX_BYTES
from idiolect.stores.blobs.port import BlobStore
from idiolect.stores.ports import StoredVersion
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import Database, chunks, insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.times import micros

log = logging.getLogger("idiolect.blobs")

_V, _D = schema.versions.c, schema.doomed_blobs.c
SWEPT_AT_ONCE = 1_000


class LargeWeights(Part):
    def keep_blobs(self, blobs: BlobStore) -> None:
        """Without them no version over 16 KiB can be published or read."""
        self._database.blobs = blobs

    def with_weights(self, stored: StoredVersion) -> StoredVersion:
        """As `stored`, whose weights may be empty because they lie in a blob. Raises CorruptArtifactError if they are
        damaged or gone (code `weights_missing`), UnavailableError."""
        if stored.version.weights:
            return stored
        version = stored.version
        try:
            data = blobs_of(self._database).get(version.weights_sha256)
        except NotFoundError:
            raise CorruptArtifactError(
                f"the weights of version {version.id} are not where blobs lie.",
                mend="Check IDIOLECT_BLOB_URL, or restore a backup.",
                code="weights_missing",  # a wrong setting must not condemn what is whole elsewhere
            ) from None
        return replace(stored, version=replace(version, weights=data))

    def named_blobs(self) -> Sequence[str]:
        """The digests of all tenants' blobs."""
        with self._database.reading(ALL_TENANTS) as connection:
            found = connection.scalars(select(_V.blob).where(_V.blob.is_not(None)).distinct())
            return sorted(digest.hex() for digest in found)

    def blobs_left(self, until: datetime) -> bool:
        """Whether blobs that were doomed by then are still there."""
        with self._database.reading(NO_TENANT) as connection:
            return bool(connection.scalar(select(exists().where(_D.at <= micros(until)))))

    def sweep_blobs(self) -> int:
        """Delete what is doomed and that nothing names; how many are left for later."""
        return sweep(self._database)


def blobs_of(database: Database) -> BlobStore:
    if database.blobs is None:
        raise ConfigurationError("this store was given no place for blobs.", mend="Open it with one.")
    return database.blobs


def put_large(database: Database, versions: Iterable[Version]) -> list[Version]:
    """Those that are too large for a row; their weights are in blobs now."""
    large = [version for version in versions if len(version.weights) > INLINE_MAX_BYTES]
    for version in large:
        blobs_of(database).put(version.weights)
    return large


def keep_large(database: Database, large: Iterable[Version]) -> None:
    """After the commit: a sweep that had looked before it may have deleted what was just named."""
    for version in large:
        try:
            blobs_of(database).get(version.weights_sha256)
        except NotFoundError:
            blobs_of(database).put(version.weights)


def doom(connection: Connection, mine: ColumnElement[bool], at: int) -> int:
    """Before the versions that `mine` describes are deleted: note their blobs. How many those are."""
    digests = connection.scalars(select(_V.blob).where(mine, _V.blob.is_not(None)).distinct()).all()
    for chunk in chunks(sorted(digests)):
        rows = [{"digest": digest, "at": at} for digest in chunk]
        connection.execute(insert(connection, schema.doomed_blobs).on_conflict_do_nothing(), rows)
    return len(digests)


def doom_fenced(connection: Connection, versions: Iterable[Version], at: int) -> None:
    """Of versions that were thrown away when their release was published."""
    rows = [{"digest": digest, "at": at} for version in versions if (digest := blob_digest(version)) is not None]
    if rows:
        connection.execute(insert(connection, schema.doomed_blobs).on_conflict_do_nothing(), rows)


def blob_digest(version: Version) -> bytes | None:
    """Which blob a new version's weights lie in; None for those in the row."""
    return bytes.fromhex(version.weights_sha256) if len(version.weights) > INLINE_MAX_BYTES else None


def sweep(database: Database) -> int:
    """What can't be deleted now stays noted. Raises nothing that an erasure before it, which holds, would be blamed
    for."""
    if database.blobs is None:
        return 0
    try:
        return _sweep(database, database.blobs)
    except IdiolectError as error:
        log.warning("blobs that nothing names any more are deleted later: %s", error.message)
        return 0


def _sweep(database: Database, blobs: BlobStore) -> int:
    with database.reading(NO_TENANT) as connection:
        doomed = connection.scalars(select(_D.digest).order_by(_D.at).limit(SWEPT_AT_ONCE)).all()
    if not doomed:
        return 0
    done: list[bytes] = []
    for digest in doomed:
        try:
            _sweep_one(database, blobs, digest)
            done.append(digest)
        except IdiolectError as error:
            log.warning("a blob that nothing names any more is deleted later: %s", error.message)
    database.write(NO_TENANT, lambda connection: _forget(connection, done))
    return len(doomed) - len(done)


def _sweep_one(database: Database, blobs: BlobStore, digest: bytes) -> None:
    """Looks once more after deleting: whoever published the same weights just then must find them. (Who publishes
    after that second look sees that they are gone, and puts them again.)"""
    name = digest.hex()
    if _is_named(database, digest):
        return
    try:
        data = blobs.get(name)
    except (NotFoundError, CorruptArtifactError):
        data = None
    blobs.delete(name)
    if data is not None and _is_named(database, digest):
        blobs.put(data)


def _is_named(database: Database, digest: bytes) -> bool:
    with database.reading(ALL_TENANTS) as connection:
        return bool(connection.scalar(select(exists().where(_V.blob == digest))))


def _forget(connection: Connection, digests: Collection[bytes]) -> None:
    connection.execute(delete(schema.doomed_blobs).where(_D.digest.in_(sorted(digests))))


def of_owner(tenant: str, subject: str) -> ColumnElement[bool]:
    return and_(_V.tenant == tenant, _V.subject == subject)
