"""Publishing a release: who is fenced is decided here, then everything is written or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Select, Table, and_, bindparam, select, update

from idiolect.audit import AuditEvent
from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError, TooLargeError
from idiolect.ids import sha256_hex
from idiolect.registry.manifest import GLOBAL_OWNER, LORA, ReleaseTemplate, Version, template_bytes
from idiolect.registry.strict import check_template
from idiolect.registry.weights import INLINE_MAX_BYTES, shared_head
from idiolect.stores.blobs.port import MAX_BYTES
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.ports import PublishOutcome
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.bulk import Columns, insert_columns
from idiolect.stores.sql.engine import AnyRow, Hold, among, chunks, hold
from idiolect.stores.sql.large_weights import Large, blob_digest, doom_unused
from idiolect.stores.sql.moves import number_of_release, replaced
from idiolect.stores.sql.sealing import keys_of_adapters, sealed_weights

Owner = tuple[str, str]  # (subject, domain), one of them empty
Rows = tuple[Table, Columns, str]  # and the column that counts, as `insert_columns` takes it

# Statements over more rows gain nothing and hold all of them in memory.
_BATCH = 5_000
FEW = 8  # versions whose people are looked up one by one, by constant statements

_S, _T, _P, _R = schema.subjects.c, schema.tombstones.c, schema.pointers.c, schema.releases.c
_TENANT: BindParameter[str] = bindparam("tenant")
_EARLIER = select(_R.content, _R.versions, _R.fenced).where(_R.tenant == _TENANT, _R.id == bindparam("release"))
_FENCES = (
    select(_S.subject, _S.opted_in, _S.generation, _T.generation.label("tombstone"))
    .select_from(schema.subjects)
    .outerjoin(schema.tombstones, and_(_T.tenant == _S.tenant, _T.subject == _S.subject))
    .where(_S.tenant == _TENANT)
)
_FENCE = _FENCES.where(_S.subject == bindparam("subject"))
_NEW_RELEASE = schema.releases.insert().values(
    {column.name: bindparam(column.name) for column in _R if not column.name.startswith(("revoke", "moves"))}
)
_NUMBERED = (
    update(schema.releases)
    .where(_R.tenant == bindparam("of_tenant"), _R.id == bindparam("of_release"))
    .values(moves=bindparam("number"))
)
# Locked, so that a promotion can't slip in between what is read here and what is written after.
_LIVE = (
    select(_P.subject, _P.domain, _P.version)
    .where(_P.tenant == _TENANT, _P.name == "live")
    .order_by(_P.subject, _P.domain)
    .with_for_update()
)
_LIVE_OF_ONE = _LIVE.where(_P.subject == bindparam("subject"))


@dataclass(frozen=True, slots=True)
class Publication:
    """The call, checked."""

    release: str
    template: ReleaseTemplate
    versions: Sequence[Version]
    at: int
    reason: str
    actor: str
    staged: bool = False  # no pointer moves


@dataclass(frozen=True, slots=True)
class Fence:
    """Where a person stands now."""

    opted_in: bool
    generation: int
    tombstone: int  # generation of the tombstone; -1 without one


def check_publication(publication: Publication) -> None:
    """Check everything before anything changes. Raises InvalidInputError or CorruptArtifactError naming the version."""
    check_template(publication.template)
    if publication.template.scope == "global" and not publication.staged:
        raise InvalidInputError(
            f"the release {publication.release} is of the global model and becomes live with it alone.",
            mend="Publish it staged.",
        )
    owners: set[Owner] = set()
    ids: set[str] = set()
    for version in publication.versions:
        _check_version(publication, version)
        owners.add((version.subject, version.domain))
        ids.add(version.id)
    if len(owners) != len(publication.versions) or len(ids) != len(publication.versions):
        raise InvalidInputError(
            f"the release {publication.release} holds two versions of one id, person or domain.",
            mend="Publish one version for each.",
        )


def _check_version(publication: Publication, version: Version) -> None:
    is_user = publication.template.scope == "user"
    is_global = publication.template.scope == "global"
    owned = bool(version.subject) == is_user and bool(version.domain) != is_user
    if version.release != publication.release or not owned or is_global != (version.domain == GLOBAL_OWNER):
        raise InvalidInputError(
            f"version {version.id} does not belong to the {publication.template.scope} release {publication.release}.",
            mend="Build it with the release's id; a user version has a subject only, a domain version a domain only.",
        )
    limit = MAX_BYTES if publication.template.kind == LORA else INLINE_MAX_BYTES
    if len(version.weights) > limit:
        raise TooLargeError(
            f"version {version.id} has {len(version.weights)} bytes of weights, the limit is {limit}.",
            mend="Lower the rank or train fewer layers.",
        )
    if sha256_hex(version.weights) != version.weights_sha256:
        raise CorruptArtifactError(
            f"the weights of version {version.id} do not match their digest.", mend="Train again."
        )


def is_fenced(version: Version, fence: Fence | None) -> bool:
    """Whether the person moved on since the snapshot that `version` was trained from."""
    if fence is None:
        return True
    return not fence.opted_in or fence.generation != version.generation or fence.tombstone > version.generation


def content_digest(publication: Publication) -> bytes:
    """sha256 of all that is published: the same release id must always mean the same content."""
    digest = hashlib.sha256(template_bytes(publication.template))
    for version in sorted(publication.versions, key=lambda version: version.id):
        parts = (
            version.id,
            version.subject,
            version.domain,
            version.generation,
            version.parent,
            version.weights_sha256,
            sorted(version.evaluation.items()),
            version.key_id,
            version.signature.hex(),
        )
        digest.update(json.dumps(parts).encode())
    return digest.digest()


def publish(
    connection: Connection, publication: Publication, content: bytes, keys: Callable[[], SubjectKeys], large: Large
) -> PublishOutcome:
    """`large`: what was put into blobs for it."""
    tenant = publication.template.tenant
    hold(connection, tenant, Hold.ONE_RUN)
    earlier = _earlier_outcome(connection, publication, content)
    if earlier is not None:
        doom_unused(connection, large, large.keys(), publication.at)
        return earlier
    kept, fenced = _divide(connection, publication)
    thrown_away = [version.id for version in publication.versions if version.subject in fenced]
    doom_unused(connection, large, thrown_away, publication.at)
    outcome = PublishOutcome(len(kept), tuple(sorted(fenced)))
    head = _head(publication.template, kept, large)
    _insert_release(connection, publication, content, outcome, head)
    _write(connection, publication, kept, head, keys, large)
    if not publication.staged:
        _enter(connection, publication)
    append(connection, tenant, _event(publication, outcome), publication.at)
    return outcome


def _enter(connection: Connection, publication: Publication) -> None:
    """Into the history of pointers, last: they are locked now, and whoever moves one later comes later there too."""
    tenant, release = publication.template.tenant, publication.release
    number = number_of_release(connection, tenant, release, publication.at, publication.reason, publication.actor)
    connection.execute(_NUMBERED, {"of_tenant": tenant, "of_release": release, "number": number})


def _event(publication: Publication, outcome: PublishOutcome) -> AuditEvent:
    """One entry, however many versions: the release's own rows say which."""
    template = publication.template
    details = {
        "scope": template.scope,
        "run": template.run,
        "global": template.global_digest,
        "versions": outcome.published,
        "fenced": len(outcome.fenced),
    }
    return AuditEvent(
        publication.actor, "release.publish", f"release {publication.release}", publication.reason, details
    )


def _earlier_outcome(connection: Connection, publication: Publication, content: bytes) -> PublishOutcome | None:
    names = {"tenant": publication.template.tenant, "release": publication.release}
    row = connection.execute(_EARLIER, names).one_or_none()
    if row is None:
        return None
    if row.content != content:
        raise ConflictError(
            f"the release {publication.release} exists with other content.", mend="Publish under a new id."
        )
    return PublishOutcome(row.versions, tuple(json.loads(row.fenced)))


def _divide(connection: Connection, publication: Publication) -> tuple[list[Version], list[str]]:
    versions = sorted(publication.versions, key=lambda version: (version.subject, version.domain))
    if publication.template.scope != "user":
        return versions, []
    kept: list[Version] = []
    fenced: list[str] = []
    for batch in chunks(versions, _BATCH):
        fences = _fences(connection, publication.template.tenant, [version.subject for version in batch])
        for version in batch:
            if is_fenced(version, fences.get(version.subject)):
                fenced.append(version.subject)
            else:
                kept.append(version)
    return kept, fenced


def _fences(connection: Connection, tenant: str, subjects: Sequence[str]) -> Mapping[str, Fence]:
    return {
        row.subject: Fence(row.opted_in, row.generation, -1 if row.tombstone is None else row.tombstone)
        for row in _of_people(connection, _FENCES, _FENCE, _S.subject, tenant, subjects)
    }


def _of_people(
    connection: Connection,
    of_many: Select[Any],
    of_one: Select[Any],
    subject: ColumnElement[str],
    tenant: str,
    subjects: Collection[str],
) -> list[AnyRow]:
    if len(subjects) > FEW:
        return list(connection.execute(of_many.where(among(subject, subjects)), {"tenant": tenant}))
    return [row for one in subjects for row in connection.execute(of_one, {"tenant": tenant, "subject": one})]


def _head(template: ReleaseTemplate, kept: Sequence[Version], large: Large) -> bytes:
    """Of what is sealed in rows."""
    return shared_head(
        [version.weights for version in kept if version.subject and version.id not in large], template.tensors
    )


def _insert_release(
    connection: Connection, publication: Publication, content: bytes, outcome: PublishOutcome, head: bytes
) -> None:
    template = publication.template
    row = {
        "tenant": template.tenant,
        "id": publication.release,
        "scope": template.scope,
        "global_digest": template.global_digest,
        "run": template.run,
        "template": json.dumps(template.to_json()),
        "content": content,
        "versions": outcome.published,
        "fenced": json.dumps(outcome.fenced),
        "published_at": publication.at,
        "reason": publication.reason,
        "actor": publication.actor,
        "staged": publication.staged,
        "weights_head": head or None,
    }
    connection.execute(_NEW_RELEASE, row)


def _write(
    connection: Connection,
    publication: Publication,
    kept: Sequence[Version],
    head: bytes,
    keys: Callable[[], SubjectKeys],
    large: Large,
) -> None:
    """A batch is written while the next one is sealed: in another thread, since what writes it hardly needs the
    interpreter. The connection is never used by both at once, and no more than two batches are in memory."""
    with ExitStack() as stack:
        beside = stack.enter_context(ThreadPoolExecutor(1)) if len(kept) > _BATCH else None
        written: Future[None] | None = None
        for batch in chunks(kept, _BATCH):
            versions = _version_columns(publication, batch, head, keys, large)
            if written is not None:
                written.result()
            if publication.staged:
                tables: list[Rows] = [(schema.versions, versions, "")]
            else:
                live = _live(connection, publication.template.tenant, batch)
                tables = _moved(publication, batch, versions, live)
            if beside is None:
                _insert(connection, tables)
            else:
                written = beside.submit(_insert, connection, tables)
        if written is not None:
            written.result()


def _insert(connection: Connection, tables: Iterable[Rows]) -> None:
    for table, columns, counter in tables:
        insert_columns(connection, table, columns, counter=counter)


def _version_columns(
    publication: Publication, batch: Sequence[Version], head: bytes, keys: Callable[[], SubjectKeys], large: Large
) -> Columns:
    """Those of people are sealed. No reset runs beside this, so the keys stay until it is committed."""
    tenant = publication.template.tenant
    people = [version.subject for version in batch if version.subject]
    found = keys_of_adapters(keys(), tenant, people) if people else {}
    blobs = [large.get(version.id) for version in batch]
    weights = [version.weights if blob is None else b"" for version, blob in zip(batch, blobs, strict=True)]
    sealed = [
        sealed_weights(found[version.subject], version.id, version.generation, plain[len(head) :])
        if version.subject and plain
        else None
        for version, plain in zip(batch, weights, strict=True)
    ]
    return {
        "tenant": [tenant] * len(batch),
        "id": [version.id for version in batch],
        "release": [version.release for version in batch],
        "subject": [version.subject for version in batch],
        "domain": [version.domain for version in batch],
        "generation": [version.generation for version in batch],
        "parent": [version.parent for version in batch],
        "weights": [plain if closed is None else b"" for plain, closed in zip(weights, sealed, strict=True)],
        "sealed": sealed,
        "weights_sha256": [bytes.fromhex(version.weights_sha256) for version in batch],
        "blob": [None if blob is None else blob_digest(blob) for blob in blobs],
        "evaluation": [json.dumps(dict(version.evaluation)) if version.evaluation else None for version in batch],
        "key_id": [version.key_id for version in batch],
        "signature": [version.signature for version in batch],
    }


def _moved(
    publication: Publication, batch: Sequence[Version], versions: Columns, live: Mapping[Owner, str]
) -> list[Rows]:
    """`live` moves to the new version and `previous` to what was live; the version says what that was."""
    before = [(version, live.get((version.subject, version.domain))) for version in batch]
    replaces = [(version, old) for version, old in before if old is not None]
    names = ["live"] * len(batch) + ["previous"] * len(replaces)
    owners = [*batch, *[version for version, _ in replaces]]
    told = {**versions, "replaced": [replaced(old, version.parent) for version, old in before]}
    pointers: Columns = {
        "tenant": [publication.template.tenant] * len(names),
        "subject": [version.subject for version in owners],
        "domain": [version.domain for version in owners],
        "name": names,
        "version": [*[version.id for version in batch], *[old for _, old in replaces]],
        "revision": [1] * len(names),
    }
    return [(schema.versions, told, ""), (schema.pointers, pointers, "revision")]


def _live(connection: Connection, tenant: str, batch: Sequence[Version]) -> dict[Owner, str]:
    """Live version ids by owner, of `batch` or more: a domain's batch has one subject, "", and few domains."""
    subjects = sorted({version.subject for version in batch})
    rows = _of_people(connection, _LIVE, _LIVE_OF_ONE, _P.subject, tenant, subjects)
    return {(row.subject, row.domain): row.version for row in rows}
