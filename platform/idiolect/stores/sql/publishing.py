"""Publishing a release: who is fenced is decided here, then everything is written or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, select

from idiolect.audit import AuditEvent
from idiolect.canonical import canonical_json
from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError, TooLargeError
from idiolect.ids import sha256_hex
from idiolect.registry.manifest import GLOBAL_OWNER, LORA, ReleaseTemplate, Version
from idiolect.registry.strict import check_template
from idiolect.registry.weights import INLINE_MAX_BYTES
from idiolect.stores.blobs.port import MAX_BYTES
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.ports import PublishOutcome
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.bulk import insert_rows
from idiolect.stores.sql.engine import Hold, among, chunks, hold
from idiolect.stores.sql.large_weights import Large, blob_digest, doom_unused
from idiolect.stores.sql.sealing import keys_of_adapters, sealed_version

Owner = tuple[str, str]  # (subject, domain), one of them empty

# An executemany beyond this gains nothing and holds all its rows in memory.
_BATCH = 5_000


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
    digest = hashlib.sha256(canonical_json(publication.template.to_json()))
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
    _insert_release(connection, publication, content, outcome)
    for batch in chunks(kept, _BATCH):
        insert_rows(connection, schema.versions, _version_rows(tenant, batch, keys, large))
        if not publication.staged:
            _move_pointers(connection, publication, batch)
    append(connection, tenant, _event(publication, outcome), publication.at)
    return outcome


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
    table = schema.releases.c
    row = connection.execute(
        select(table.content, table.versions, table.fenced).where(
            table.tenant == publication.template.tenant, table.id == publication.release
        )
    ).one_or_none()
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
    people, stones = schema.subjects.c, schema.tombstones.c
    query = (
        select(people.subject, people.opted_in, people.generation, stones.generation)
        .select_from(schema.subjects)
        .outerjoin(schema.tombstones, and_(stones.tenant == people.tenant, stones.subject == people.subject))
        .where(people.tenant == tenant, among(people.subject, subjects))
    )
    return {
        subject: Fence(opted_in, generation, -1 if tombstone is None else tombstone)
        for subject, opted_in, generation, tombstone in connection.execute(query)
    }


def _insert_release(connection: Connection, publication: Publication, content: bytes, outcome: PublishOutcome) -> None:
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
    }
    connection.execute(schema.releases.insert(), row)


def _version_rows(
    tenant: str, batch: Sequence[Version], keys: Callable[[], SubjectKeys], large: Large
) -> list[dict[str, Any]]:
    """Those of people are sealed. No reset runs beside this, so the keys stay until it is committed."""
    people = [version.subject for version in batch if version.subject]
    found = keys_of_adapters(keys(), tenant, people) if people else {}
    rows = [_version_row(tenant, version, large.get(version.id)) for version in batch]
    return [sealed_version(found[row["subject"]], row) if row["subject"] and row["weights"] else row for row in rows]


def _version_row(tenant: str, version: Version, blob: bytes | None) -> dict[str, Any]:
    """`blob`: what was put into one instead of the weights."""
    return {
        "tenant": tenant,
        "id": version.id,
        "release": version.release,
        "subject": version.subject,
        "domain": version.domain,
        "generation": version.generation,
        "parent": version.parent,
        "weights": version.weights if blob is None else b"",
        "sealed": None,
        "weights_sha256": bytes.fromhex(version.weights_sha256),
        "blob": None if blob is None else blob_digest(blob),
        "evaluation": json.dumps(dict(version.evaluation)) if version.evaluation else None,
        "key_id": version.key_id,
        "signature": version.signature,
    }


def _move_pointers(connection: Connection, publication: Publication, batch: Sequence[Version]) -> None:
    """`live` moves to the new version and `previous` to what was live; the history says who, when and why."""
    tenant = publication.template.tenant
    live = _live(connection, tenant, batch)
    moves: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for version in batch:
        owner = {"tenant": tenant, "subject": version.subject, "domain": version.domain}
        old = live.get((version.subject, version.domain))
        moves.append(owner | {"name": "live", "version": version.id, "revision": 1})
        if old is not None:
            moves.append(owner | {"name": "previous", "version": old, "revision": 1})
        history.append(
            owner
            | {
                "name": "live",
                "old_version": old,
                "version": version.id,
                "at": publication.at,
                "reason": publication.reason,
                "actor": publication.actor,
            }
        )
    insert_rows(connection, schema.pointers, moves, counter="revision")
    insert_rows(connection, schema.pointer_history, history)


def _live(connection: Connection, tenant: str, batch: Sequence[Version]) -> dict[Owner, str]:
    """Live version ids by owner, of `batch` or more: a domain's batch has one subject, "", and few domains.

    Locked, so that a promotion can't slip in between what is read here and what is written after.
    """
    table = schema.pointers.c
    query = select(table.subject, table.domain, table.version).where(
        table.tenant == tenant, among(table.subject, {version.subject for version in batch}), table.name == "live"
    )
    query = query.order_by(table.subject, table.domain).with_for_update()
    return {(subject, domain): version for subject, domain, version in connection.execute(query)}
