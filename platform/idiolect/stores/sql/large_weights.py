"""Weights that are too large for a row lie in a blob, which the version's row names.

Those of a person are sealed first, so the blob's name is the digest of what is sealed.

Put first and named after, so that a named blob is there. When the last version that names one is deleted, the same
transaction writes it down as doomed, and it is deleted after the commit: a crash in between leaves a note, never a
blob that nobody knows of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, exists, select

from idiolect.errors import ConfigurationError, CorruptArtifactError, IdiolectError, NotFoundError
from idiolect.ids import sha256_hex
from idiolect.registry.manifest import Version
from idiolect.registry.weights import INLINE_MAX_BYTES
from idiolect.stores.blobs.port import BlobStore
from idiolect.stores.ports import StoredVersion
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import Database, chunks, insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.sealing import keys_of_adapters, open_weights, sealed_weights
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.times import micros
from idiolect.subject_keys import key_id_of

log = logging.getLogger("idiolect.blobs")

_V, _D = schema.versions.c, schema.doomed_blobs.c
SWEPT_AT_ONCE = 1_000
_BLOBS_OF_OWNER = (
    select(_V.blob)
    .where(_V.tenant == bindparam("tenant"), _V.subject == bindparam("subject"), _V.blob.is_not(None))
    .distinct()
)
_DOOMED = select(_D.digest).order_by(_D.at).limit(SWEPT_AT_ONCE)


class LargeWeights(Part):
    def keep_blobs(self, blobs: BlobStore) -> None:
        """Without them no version over 16 KiB can be published or read."""
        self._database.blobs = blobs

    def with_weights(self, stored: StoredVersion) -> StoredVersion:
        """As `stored`, whose weights may be empty because they lie in a blob. Raises CorruptArtifactError if they are
        damaged or gone (code `weights_missing`), NotFoundError if the person was reset, UnavailableError."""
        if stored.version.weights:
            return stored
        version, tenant = stored.version, stored.template.tenant
        with self._database.reading(tenant) as connection:
            row = connection.execute(select(_V.blob).where(_V.tenant == tenant, _V.id == version.id)).one_or_none()
        if row is not None and row.blob is None:
            raise CorruptArtifactError(
                f"the weights of version {version.id} do not open: they were changed, or moved here from elsewhere.",
                mend="Restore a backup.",
            )
        name = version.weights_sha256 if row is None else row.blob.hex()
        try:
            data = blobs_of(self._database).get(name)
        except NotFoundError:
            raise CorruptArtifactError(
                f"the weights of version {version.id} are not where blobs lie.",
                mend="Check IDIOLECT_BLOB_URL, or restore a backup.",
                code="weights_missing",  # a wrong setting must not condemn what is whole elsewhere
            ) from None
        if version.subject:
            data = _opened(self._database, tenant, version, data)
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


Large = Mapping[str, bytes]  # what is in blobs, by the id of the version


def put_large(database: Database, tenant: str, versions: Iterable[Version]) -> Large:
    """Of those that are too large for a row. A reset meanwhile fences them, as all that was trained before it."""
    large = [version for version in versions if len(version.weights) > INLINE_MAX_BYTES]
    people = {version.subject for version in large if version.subject}
    keys = keys_of_adapters(database.keys(), tenant, people) if people else {}
    contents: dict[str, bytes] = {}
    for version in large:
        weights = version.weights
        if version.subject:
            weights = sealed_weights(keys[version.subject], version.id, version.generation, weights)
        blobs_of(database).put(weights)
        contents[version.id] = weights
    return contents


def keep_large(database: Database, large: Large) -> None:
    """After the commit: a sweep that had looked before it may have deleted what was just named."""
    for content in large.values():
        try:
            blobs_of(database).get(sha256_hex(content))
        except NotFoundError:
            blobs_of(database).put(content)


def doom(connection: Connection, mine: ColumnElement[bool], at: int) -> int:
    """Before the versions that `mine` describes are deleted: note their blobs. How many those are."""
    return _doom(connection, connection.scalars(select(_V.blob).where(mine, _V.blob.is_not(None)).distinct()).all(), at)


def blobs_of_owner(connection: Connection, tenant: str, subject: str) -> Callable[[], Any]:
    """For `doom_of_owner`: asked ahead."""
    return ahead(connection, _BLOBS_OF_OWNER, {"tenant": tenant, "subject": subject})


def doom_of_owner(connection: Connection, blobs: Callable[[], Any], at: int) -> int:
    """As `doom`, of what a person has."""
    return _doom(connection, [row.blob for row in blobs()], at)


def _doom(connection: Connection, digests: Collection[bytes], at: int) -> int:
    for chunk in chunks(sorted(digests)):
        rows = [{"digest": digest, "at": at} for digest in chunk]
        connection.execute(insert(connection, schema.doomed_blobs).on_conflict_do_nothing(), rows)
    return len(digests)


def doom_unused(connection: Connection, large: Large, unused: Collection[str], at: int) -> None:
    """Of versions, by id, that were thrown away when their release was published, or that it had published before."""
    rows = [{"digest": blob_digest(large[id_]), "at": at} for id_ in unused if id_ in large]
    if rows:
        connection.execute(insert(connection, schema.doomed_blobs).on_conflict_do_nothing(), rows)


def blob_digest(content: bytes) -> bytes:
    return bytes.fromhex(sha256_hex(content))


def _opened(database: Database, tenant: str, version: Version, sealed: bytes) -> bytes:
    key = database.keys().by_id(tenant, [key_id_of(sealed)]).get(key_id_of(sealed))
    if key is None:
        raise NotFoundError(f"the weights of version {version.id} were forgotten with their person's key.")
    return open_weights(key, version.subject, version.id, version.generation, sealed)


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
    with database.point_reading(NO_TENANT, single=True) as connection:
        doomed = connection.scalars(_DOOMED).all()
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
