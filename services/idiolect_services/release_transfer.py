"""Releases into signed files and back: `idiolect registry export|import`, and the same over the API.

A file of the same tenant, signed with a key that is trusted here, comes back as it was: its people are the same, and
their versions keep their signatures. Anything else is foreign, and comes in only if whoever imports names the key that
signed it. People's pseudonyms mean nothing elsewhere, so that is for domains' adapters alone; they are signed anew, and
their manifest says where they come from.

Nothing goes live by an import, and nothing that was taken back comes again: people who were reset, left or were erased
since are fenced as at any publish; a revoked release is refused, and quarantined versions are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import BinaryIO

from idiolect.audit import AuditEvent
from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError
from idiolect.ids import check_name
from idiolect.registry.manifest import Imported, ReleaseTemplate, Version, manifest_bytes
from idiolect.registry.portable import Portable, dump_release, read_release
from idiolect.registry.signing import Signer
from idiolect.registry.weights import verify_version
from idiolect.stores.ports import Store, StoredVersion

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class ImportReport:
    """`known`: the release was here already, and nothing changed. `fenced` and `quarantined` were left out."""

    release: str
    global_digest: str
    versions: int
    fenced: int
    quarantined: int
    known: bool
    foreign: bool


def export_release(
    store: Store, signer: Signer, tenant: str, release: str, now: datetime, *, actor: str
) -> Iterator[bytes]:
    """The lines of its file: what may be served of it. Raises NotFoundError and ConflictError before the first line."""
    summary = store.release(tenant, release)
    first = next(_stored(store, tenant, release), None)
    if summary is None or first is None:
        raise NotFoundError(f"there is no version of a release {release[:80]!r}.", mend="See: idiolect registry list.")
    if summary.revoked:
        raise ConflictError(f"the release {release[:80]} is revoked.", mend="Export another one.")
    store.record_audit(tenant, AuditEvent(actor, "release.export", f"release {release}"), now)
    good = (stored for stored in _stored(store, tenant, release) if stored.withheld is None)
    versions = (store.with_weights(stored).version for stored in good)
    return dump_release(release, first.template, versions, signer, now)


def _stored(store: Store, tenant: str, release: str) -> Iterator[StoredVersion]:
    after = ""
    while page := store.versions(tenant, release=release, after=after, limit=_PAGE):
        yield from page
        after = page[-1].version.id


def import_release(
    store: Store,
    signer: Signer,
    tenant: str,
    file: BinaryIO,
    now: datetime,
    *,
    reason: str,
    actor: str,
    from_key: str | None = None,
) -> ImportReport:
    """All of it is checked before anything is written. Harmless to repeat. `from_key`: a foreign public key, in hex.

    Raises CorruptArtifactError (code `untrusted_key` for a file of nobody who is trusted), InvalidInputError for a
    foreign release of people, ConflictError for one that was revoked here.
    """
    found = read_release(file)
    foreign = _is_foreign(found, signer, tenant, from_key)
    template, versions = _adopted(found, signer, tenant) if foreign else (found.template, found.versions)
    _check_not_revoked(store, tenant, found.release)
    if store.release(tenant, found.release) is not None:
        return ImportReport(found.release, template.global_digest, 0, 0, 0, True, foreign)
    bad = store.audited(tenant, "version.quarantine", [_object(version) for version in versions])
    kept = [version for version in versions if _object(version) not in bad]
    outcome = store.publish(found.release, template, kept, now, reason=reason, actor=actor, staged=True)
    fenced = len(outcome.fenced)
    return ImportReport(found.release, template.global_digest, outcome.published, fenced, len(bad), False, foreign)


def _object(version: Version) -> str:
    """How the audit log names it."""
    return f"version {version.id}"


def _is_foreign(found: Portable, signer: Signer, tenant: str, from_key: str | None) -> bool:
    """Raises CorruptArtifactError unless the file, or every version of it, is of somebody whom the caller trusts."""
    if found.template.tenant == tenant and signer.trusts(found.signed_by):
        for version in found.versions:
            verify_version(found.template, version, signer)
        return False
    if from_key != found.signed_by.hex():
        raise CorruptArtifactError(
            f"the file is of the tenant {found.template.tenant!r} and signed with the key {found.signed_by.hex()}; "
            "it is not one of this tenant here.",
            mend="If you know that key to be theirs, import it from the command line with --from-key.",
            code="untrusted_key",
        )
    return True


def _adopted(found: Portable, signer: Signer, tenant: str) -> tuple[ReleaseTemplate, Sequence[Version]]:
    if found.template.scope != "domain":
        raise InvalidInputError(
            "the release is of people, whose pseudonyms mean nothing to another tenant or installation.",
            mend="Export a domain's release; a whole installation moves by idiolect backup.",
        )
    for version in found.versions:
        check_name("domain", version.domain)
    origin = Imported(found.template.tenant, found.signed_by.hex())
    template = replace(found.template, tenant=tenant, imported=origin)
    return template, [_signed(template, version, signer) for version in found.versions]


def _signed(template: ReleaseTemplate, version: Version, signer: Signer) -> Version:
    mine = replace(version, key_id=signer.key_id)
    return replace(mine, signature=signer.sign(manifest_bytes(template, mine)))


def _check_not_revoked(store: Store, tenant: str, release: str) -> None:
    """By the audit log as well: it outlives the release's row, in a restored database."""
    summary = store.release(tenant, release)
    name = f"release {release}"
    if (summary is not None and summary.revoked) or store.audited(tenant, "release.revoke", [name]):
        raise ConflictError(f"the release {release} was revoked here.", mend="Nothing can bring it back: train again.")
