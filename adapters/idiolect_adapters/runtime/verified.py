"""From a stored version to a row that may be served: every check, and nothing kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idiolect.errors import CorruptArtifactError
from idiolect.registry.manifest import HEAD_LORA, LORA, ReleaseTemplate
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.signing import Signer
from idiolect.registry.weights import verify_version
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.runtime.features import Projector
from idiolect_adapters.runtime.slab import Digest, Held, Owner

if TYPE_CHECKING:  # it imports torch
    from idiolect_adapters.runtime.loras import Lora, LoraEngine

HEAD_B = "head.lora_B.weight"  # [1, rank]


@dataclass(frozen=True, slots=True)
class VerifiedLora:
    """Of any layers."""

    owner: Digest
    lora: Lora


def verified(
    stored: StoredVersion,
    owner: Owner,
    wanted: ResolvedVersion,
    projector: Projector,
    signer: Signer,
    engine: LoraEngine | None = None,
) -> Held | VerifiedLora:
    """Raises CorruptArtifactError if it does not verify, does not fit or belongs to someone else; for a LoRA of inner
    layers also if it does not do what it did where it was made."""
    if stored.withheld is not None:
        raise CorruptArtifactError(f"version {wanted.id} is withheld: {stored.withheld}.", code="withheld")
    tensors = verify_version(stored.template, stored.version, signer)
    check_belongs(stored, owner, wanted)
    check_bound(stored.template, projector)
    if stored.template.kind == LORA:
        if engine is None:
            raise CorruptArtifactError("LoRAs of inner layers are not served here.", code="not_served_here")
        return VerifiedLora(owner.digest, engine.load(stored.template, tensors, stored.version.weights_sha256))
    check_fits(stored.template, projector)
    tensor = tensors.get(HEAD_B)
    if tensor is None or tensor.shape != (1, stored.template.rank):
        raise CorruptArtifactError(f"version {wanted.id} has no tensor {HEAD_B!r} of shape [1, rank].")
    return Held(owner.digest, tensor[0].copy(), stored.template.alpha / stored.template.rank)


def check_belongs(stored: StoredVersion, owner: Owner, wanted: ResolvedVersion) -> None:
    """The stored version is the one that was resolved, and its signed manifest names the same owner."""
    template, version = stored.template, stored.version
    name = version.subject if owner.scope == "user" else version.domain
    found = (template.tenant, template.scope, name, version.id, version.release, version.generation)
    if found != (*owner, wanted.id, wanted.release, wanted.generation):
        raise CorruptArtifactError(
            f"version {wanted.id} is not the one that was resolved.", mend="Check the registry.", code="misplaced"
        )
    if version.weights_sha256 != wanted.weights_sha256:
        raise CorruptArtifactError(f"version {wanted.id} has other weights than were resolved.")


def check_bound(template: ReleaseTemplate, projector: Projector) -> None:
    """The adapter was made on exactly this model: elsewhere its numbers mean nothing."""
    if template.global_digest != projector.digest:
        raise CorruptArtifactError("the adapter is bound to another global model.", mend="Train it again.")


def check_fits(template: ReleaseTemplate, projector: Projector) -> None:
    """The same of the basis."""
    personal = template.scope == "user"
    if template.basis_digest != (projector.user_basis_digest if personal else projector.domain_basis_digest):
        raise CorruptArtifactError("the adapter is written in another basis.", mend="Train it again.")
    rank = projector.user_rank if personal else projector.domain_rank
    if template.kind != HEAD_LORA or template.rank != rank:
        raise CorruptArtifactError(
            f"the adapter is {template.kind!r} of rank {template.rank}, served is {HEAD_LORA!r} of rank {rank}."
        )
    if not math.isfinite(template.alpha):
        raise CorruptArtifactError(f"the adapter's alpha {template.alpha!r} is not finite.")
