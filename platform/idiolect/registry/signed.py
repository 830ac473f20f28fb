"""Signing the versions of a release: what would be refused at load is not signed, and so never published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.registry.manifest import ReleaseTemplate, Version, manifest_bytes
from idiolect.registry.signing import Signer
from idiolect.registry.weights import check_weights


def signed_versions(template: ReleaseTemplate, versions: Iterable[Version], signer: Signer) -> list[Version]:
    """All of `versions`, with signatures by `signer`, after every check of a load but the signature's own.

    A signature that was made here a moment ago is not verified at once, which costs twice as much as making it: the
    bytes that are stored are those that were signed, and every load verifies them. The first one's is, in case the key
    or the library is not what it should be. Raises CorruptArtifactError.
    """
    signed: list[Version] = []
    pending = iter(versions)
    while some := list(islice(pending, _TOGETHER)):
        _check(template, some)
        signed += [_signed(template, version, signer) for version in some]
    for first in signed[:1]:
        signer.verify(first.key_id, first.signature, manifest_bytes(template, first), what=f"version {first.id}")
    return signed


_TOGETHER = 4_096  # unsigned ones in memory, if the caller makes them one by one


def _check(template: ReleaseTemplate, versions: Sequence[Version]) -> None:
    for version in versions:
        if sha256_hex(version.weights) != version.weights_sha256:
            raise CorruptArtifactError(
                f"the weights of version {version.id} do not match their digest.", mend="Train again."
            )
    check_weights([version.weights for version in versions], template.tensors)


def _signed(template: ReleaseTemplate, version: Version, signer: Signer) -> Version:
    """Written out: `dataclasses.replace` takes three times as long."""
    return Version(
        id=version.id,
        release=version.release,
        subject=version.subject,
        domain=version.domain,
        generation=version.generation,
        parent=version.parent,
        weights=version.weights,
        weights_sha256=version.weights_sha256,
        evaluation=version.evaluation,
        key_id=signer.key_id,
        signature=signer.sign(manifest_bytes(template, version)),
    )
