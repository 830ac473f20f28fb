"""Publishing a release: who is fenced is decided here, then everything is written or nothing.

This is one transaction; a release that does not fit a batch comes in several, by the same rules (`arriving`). It
keeps resets of its tenant waiting, so for few people it makes as few journeys as a reset: what is there is asked
together, what is new is written together, and only the keys of people, which lie elsewhere, are looked up in between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Select, and_, bindparam, select, update

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
from idiolect.stores.sql.arrivals import (
    HAS_COME,
    LIVE_VERSION,
    RELEASE_IS_HERE,
    REPLACED,
    ask_arriving,
    tell_arriving,
)
from idiolect.stores.sql.audit import append, ask_head
from idiolect.stores.sql.bulk import Columns, insert_columns
from idiolect.stores.sql.engine import AnyRow, Hold, among, hold
from idiolect.stores.sql.large_weights import Large, blob_digest, doom_unused
from idiolect.stores.sql.moves import ask_number, replaced
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.sealing import keys_of_adapters, sealed_weights
from idiolect.subject_keys import SubjectKey

Owner = tuple[str, str]  # (subject, domain), one of them empty
FEW = 8  # versions whose people are looked up one by one, by constant statements

_S, _T, _P, _R = schema.subjects.c, schema.tombstones.c, schema.pointers.c, schema.releases.c
_TENANT: BindParameter[str] = bindparam("tenant")
_EARLIER = select(_R.content, _R.versions, _R.fenced, RELEASE_IS_HERE.label("is_here")).where(
    _R.tenant == _TENANT, _R.id == bindparam("release")
)
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
    select(_P.subject, _P.domain, LIVE_VERSION.label("version"), HAS_COME.label("has_come"), _P.version.label("before"))
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
class Shared:
    """What the versions of a release have in common, and their rows leave to the release's own."""

    weights_head: bytes  # of what is sealed in rows
    key_id: str  # that signed all of them; empty if it was not one


@dataclass(frozen=True, slots=True)
class Before:
    """What stands as a release comes that is not staged."""

    live: Mapping[Owner, AnyRow]
    arriving: str | None  # another release


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
    tenant, versions = publication.template.tenant, in_order(publication)
    hold(connection, tenant, Hold.ONE_RUN)
    asked = ask_earlier(connection, publication, content)
    divided = ask_divided(connection, publication, versions)
    standing = None if publication.staged else _ask_before(connection, tenant, versions)
    earlier = asked()
    if earlier is not None:
        doom_unused(connection, large, large.keys(), publication.at)
        return earlier
    kept, fenced = divided()
    before = None if standing is None else standing()
    thrown_away = [version.id for version in publication.versions if version.subject in fenced]
    doom_unused(connection, large, thrown_away, publication.at)
    outcome = PublishOutcome(len(kept), tuple(sorted(fenced)))
    shared = shared_by(publication.template, kept, large)
    insert_release(connection, publication, content, outcome, shared)
    _write(connection, publication, kept, shared, keys, large, before)
    number = None if publication.staged else _ask_number(connection, publication)
    head = ask_head(connection, tenant)
    if number is not None:
        named = {"of_tenant": tenant, "of_release": publication.release, "number": number()}
        connection.execute(_NUMBERED, named)
    append(connection, tenant, event_of(publication, outcome), publication.at, head=head)
    return outcome


def in_order(publication: Publication) -> list[Version]:
    return sorted(publication.versions, key=lambda version: (version.subject, version.domain))


def _ask_number(connection: Connection, publication: Publication) -> Callable[[], int]:
    """In the history of pointers, last: they are locked now, and whoever moves one later comes later there too."""
    tenant, release = publication.template.tenant, publication.release
    return ask_number(connection, tenant, release, publication.at, publication.reason, publication.actor)


def _ask_before(connection: Connection, tenant: str, versions: Sequence[Version]) -> Callable[[], Before]:
    live, coming = _ask_live(connection, tenant, versions), ask_arriving(connection, tenant)
    return lambda: Before(live(), coming())


def event_of(publication: Publication, outcome: PublishOutcome) -> AuditEvent:
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


def earlier_outcome(connection: Connection, publication: Publication, content: bytes) -> PublishOutcome | None:
    """None too if it is arriving. Raises ConflictError if its id means something else."""
    return ask_earlier(connection, publication, content)()


def ask_earlier(
    connection: Connection, publication: Publication, content: bytes
) -> Callable[[], PublishOutcome | None]:
    """As `earlier_outcome`, asked ahead."""
    names = {"tenant": publication.template.tenant, "release": publication.release}
    asked = ahead(connection, _EARLIER, names)

    def outcome() -> PublishOutcome | None:
        row = asked().one_or_none()
        if row is None:
            return None
        if row.content != content:
            raise ConflictError(
                f"the release {publication.release} exists with other content.", mend="Publish under a new id."
            )
        return PublishOutcome(row.versions, tuple(json.loads(row.fenced))) if row.is_here else None

    return outcome


Divided = tuple[list[Version], list[str]]


def divide(connection: Connection, publication: Publication, versions: Sequence[Version]) -> Divided:
    """Those of `versions` that may be published, and the people of the others."""
    return ask_divided(connection, publication, versions)()


def ask_divided(connection: Connection, publication: Publication, versions: Sequence[Version]) -> Callable[[], Divided]:
    """As `divide`, asked ahead: where they stand is kept so by the lock."""
    if publication.template.scope != "user":
        return lambda: (list(versions), [])
    people = [version.subject for version in versions]
    asked = _ask_people(connection, _FENCES, _FENCE, _S.subject, publication.template.tenant, people)

    def divided() -> Divided:
        fences = {row.subject: _fence_of(row) for row in asked()}
        kept: list[Version] = []
        fenced: list[str] = []
        for version in versions:
            if is_fenced(version, fences.get(version.subject)):
                fenced.append(version.subject)
            else:
                kept.append(version)
        return kept, fenced

    return divided


def _fence_of(row: AnyRow) -> Fence:
    return Fence(row.opted_in, row.generation, -1 if row.tombstone is None else row.tombstone)


def _ask_people(
    connection: Connection,
    of_many: Select[Any],
    of_one: Select[Any],
    subject: ColumnElement[str],
    tenant: str,
    subjects: Collection[str],
) -> Callable[[], list[AnyRow]]:
    if len(subjects) > FEW:
        asked = [ahead(connection, of_many.where(among(subject, subjects)), {"tenant": tenant})]
    else:
        asked = [ahead(connection, of_one, {"tenant": tenant, "subject": one}) for one in subjects]
    return lambda: [row for rows in asked for row in rows()]


def shared_by(template: ReleaseTemplate, kept: Sequence[Version], large: Large) -> Shared:
    head = shared_head(
        [version.weights for version in kept if version.subject and version.id not in large], template.tensors
    )
    signed_by = {version.key_id for version in kept}
    return Shared(head, signed_by.pop() if len(signed_by) == 1 else "")


def insert_release(
    connection: Connection, publication: Publication, content: bytes, outcome: PublishOutcome, shared: Shared
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
        "weights_head": shared.weights_head or None,
        "key_id": shared.key_id or None,
    }
    connection.execute(_NEW_RELEASE, row)


def _write(
    connection: Connection,
    publication: Publication,
    kept: Sequence[Version],
    shared: Shared,
    keys: Callable[[], SubjectKeys],
    large: Large,
    before: Before | None,
) -> None:
    """`before`: None for what is staged, which moves no pointer."""
    if not kept:
        return
    tenant = publication.template.tenant
    columns = version_columns(publication, kept, shared, keys_for(keys, tenant, kept), large)
    if before is None:
        insert_columns(connection, schema.versions, columns)
        return
    insert_columns(connection, schema.versions, columns | {"replaced": replaced_of(kept, before.live)})
    insert_columns(connection, schema.pointers, _pointers(tenant, kept, before.live), instead=REPLACED)
    if before.arriving is not None:
        tell_arriving(connection, tenant, schema.versions.c.subject.in_({version.subject for version in kept}))


def keys_for(
    keys: Callable[[], SubjectKeys], tenant: str, versions: Sequence[Version], *, spread: bool = False
) -> Mapping[str, SubjectKey]:
    """To seal them with. Asked for while no reset runs, or a person would get a new one after it."""
    of_people = [version for version in versions if version.subject]
    people = [version.subject for version in of_people]
    # Most likely they have no key where they have no parent: a reset takes both. Of many it pays to look.
    new = len(people) <= FEW and all(version.parent is None for version in of_people)
    return keys_of_adapters(keys(), tenant, people, spread=spread, new=new) if people else {}


def version_columns(
    publication: Publication,
    batch: Sequence[Version],
    shared: Shared,
    found: Mapping[str, SubjectKey],
    large: Large,
) -> dict[str, list[Any]]:
    """Those of people are sealed, with the keys that were `found`."""
    blobs = [large.get(version.id) for version in batch]
    weights = [version.weights if blob is None else b"" for version, blob in zip(batch, blobs, strict=True)]
    sealed = [
        sealed_weights(found[version.subject], version.id, version.generation, plain[len(shared.weights_head) :])
        if version.subject and plain
        else None
        for version, plain in zip(batch, weights, strict=True)
    ]
    return {
        "tenant": [publication.template.tenant] * len(batch),
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
        "key_id": [version.key_id if version.key_id != shared.key_id else "" for version in batch],
        "signature": [version.signature for version in batch],
    }


def replaced_of(batch: Sequence[Version], live: Mapping[Owner, AnyRow]) -> list[str | None]:
    """What was live, as the versions' own rows say it."""
    return [replaced(_version_in(live, version), version.parent) for version in batch]


def _version_in(live: Mapping[Owner, AnyRow], version: Version) -> str | None:
    row = live.get((version.subject, version.domain))
    return None if row is None else row.version


def _pointers(tenant: str, batch: Sequence[Version], live: Mapping[Owner, AnyRow]) -> Columns:
    """`live` moves to the new version and `previous` to what was live."""
    moved = [(version, "live", version.id) for version in batch]
    moved += [(version, "previous", old) for version in batch if (old := _version_in(live, version)) is not None]
    return pointer_columns(tenant, moved) | {"revision": [1] * len(moved)}


def pointer_columns(tenant: str, pointers: Sequence[tuple[Version, str, str]]) -> dict[str, list[Any]]:
    """Of owners, as a version of theirs names them; names of pointers; and versions."""
    return {
        "tenant": [tenant] * len(pointers),
        "subject": [version.subject for version, _, _ in pointers],
        "domain": [version.domain for version, _, _ in pointers],
        "name": [name for _, name, _ in pointers],
        "version": [version for _, _, version in pointers],
    }


def live_of(connection: Connection, tenant: str, batch: Sequence[Version]) -> dict[Owner, AnyRow]:
    """Live pointers by owner, of `batch` or more: a domain's batch has one subject, "", and few domains."""
    return _ask_live(connection, tenant, batch)()


def _ask_live(connection: Connection, tenant: str, batch: Sequence[Version]) -> Callable[[], dict[Owner, AnyRow]]:
    subjects = sorted({version.subject for version in batch})
    asked = _ask_people(connection, _LIVE, _LIVE_OF_ONE, _P.subject, tenant, subjects)
    return lambda: {(row.subject, row.domain): row for row in asked()}
