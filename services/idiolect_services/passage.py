"""The passage from one global model to another: what writes adapters of the one in the bases of the other, and how such
versions are published.

A passage is two small matrices and what manifests have to name, without either model. It is kept with a staged model,
so that whoever is trained on the live model while the other is being tried can be carried at once: a matrix product.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError
from idiolect.ids import new_id, sha256_hex
from idiolect.registry.manifest import HEAD_LORA, Carried, ReleaseTemplate, TensorSpec, Version
from idiolect.registry.signed import signed_versions
from idiolect.registry.weights import dump_weights, verify_version
from idiolect_adapters.carrying import Carry
from idiolect_adapters.runtime.bank import HEAD_B
from idiolect_adapters.training.tuning import UserRecipes
from idiolect_services.directions import noise_of
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]

ACTOR = "trainer"
MAX_RANK = 4096


@dataclass(frozen=True, slots=True)
class Crossing:
    """Of one scope. `carry`: from the old basis to the new one."""

    old_basis: str
    new_basis: str
    carry: Carry

    @property
    def rank(self) -> int:
        return int(self.carry.matrix_O_N.shape[1])


@dataclass(frozen=True, slots=True)
class Passage:
    old: str  # digests of the models
    new: str
    user: Crossing
    domain: Crossing

    def of(self, template: ReleaseTemplate) -> Crossing | None:
        """None for what is not written in the old model's basis: a LoRA of inner layers can't be carried like this."""
        crossing = self.user if template.scope == "user" else self.domain
        ours = template.global_digest == self.old and template.basis_digest == crossing.old_basis
        return crossing if ours and template.kind == HEAD_LORA else None

    def to_bytes(self) -> bytes:
        said = {"old": self.old, "new": self.new, "user": _said(self.user), "domain": _said(self.domain)}
        return json.dumps(said).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Passage:
        """Raises CorruptArtifactError."""
        try:
            said = json.loads(data)
            return Passage(said["old"], said["new"], _crossing(said["user"]), _crossing(said["domain"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptArtifactError(
                "what carries adapters to the staged global model can't be read.", mend="Run: idiolect train carry --to"
            ) from error


def _said(crossing: Crossing) -> dict[str, object]:
    return {
        "old_basis": crossing.old_basis,
        "new_basis": crossing.new_basis,
        "matrix": crossing.carry.matrix_O_N.tolist(),
        "explained": crossing.carry.explained,
    }


def _crossing(said: dict[str, Any]) -> Crossing:
    """Raises ValueError, KeyError or TypeError."""
    matrix_O_N = np.array(said["matrix"], dtype=np.float64)
    if matrix_O_N.ndim != 2 or not 0 < max(matrix_O_N.shape) <= MAX_RANK or not np.isfinite(matrix_O_N).all():
        raise ValueError
    return Crossing(str(said["old_basis"]), str(said["new_basis"]), Carry(matrix_O_N, float(said["explained"])))


@dataclass(frozen=True, slots=True)
class CarryReport:
    """`passed_over`: not carried, for want of the old model or of a version that verifies; they wait for a training.
    `fenced`: reset or opted out meanwhile. `explained`: see `Carry`, the least of all that were used."""

    carried: int = 0
    fenced: int = 0
    passed_over: int = 0
    explained: float = 1.0

    def __add__(self, other: CarryReport) -> CarryReport:
        return CarryReport(
            self.carried + other.carried,
            self.fenced + other.fenced,
            self.passed_over + other.passed_over,
            min(self.explained, other.explained),
        )


class Ferry:
    """Publishes carried versions, staged: one release for each release that they come from."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def carry(
        self,
        passage: Passage,
        template: ReleaseTemplate,
        sources: Sequence[Version],
        recipes: Callable[[], UserRecipes],
    ) -> tuple[str | None, CarryReport]:
        """The new release, if any. `sources` are of one release; `recipes` those of the old model."""
        crossing = passage.of(template)
        usable = (
            [] if crossing is None else [(one, weights) for one in sources for weights in self._verified(template, one)]
        )
        if crossing is None or not usable:
            return None, CarryReport(passed_over=len(sources))
        adapters_P_N = np.stack([weights for _, weights in usable]) @ crossing.carry.matrix_O_N
        noise = noise_of(template, recipes()) if template.scope == "user" else None
        carried = self._template(passage, crossing, template, usable[0][0].release, noise)
        release = new_id()
        versions = (
            _version(release, source, adapter_N) for (source, _), adapter_N in zip(usable, adapters_P_N, strict=True)
        )
        signed = signed_versions(carried, versions, self._installation.signer)
        now = self._installation.clock.now()
        outcome = self._installation.store.publish(
            release, carried, signed, now, reason="carrying to a new global model", actor=ACTOR, staged=True
        )
        missed = len(sources) - len(usable)
        return release, CarryReport(outcome.published, len(outcome.fenced), missed, crossing.carry.explained)

    def _verified(self, template: ReleaseTemplate, source: Version) -> list[FloatArray]:
        """One [K], alpha / rank included; none if it does not verify: it would not be served either."""
        try:
            tensors = verify_version(template, source, self._installation.signer)
        except CorruptArtifactError:
            return []
        return [tensors[HEAD_B][0].astype(np.float64) * (template.alpha / template.rank)]

    def _template(
        self,
        passage: Passage,
        crossing: Crossing,
        template: ReleaseTemplate,
        source: str,
        noise: tuple[float, ...] | None,
    ) -> ReleaseTemplate:
        """Run and privacy stay: it is the same information about the same people."""
        return replace(
            template,
            global_digest=passage.new,
            basis_digest=crossing.new_basis,
            rank=crossing.rank,
            alpha=float(crossing.rank),
            tensors=(TensorSpec(HEAD_B, (1, crossing.rank)),),
            producer=f"idiolect {package_version('idiolect')}",
            created_at=self._installation.clock.now(),
            carried=Carried(source, template.global_digest, carried_noise(noise, crossing.carry)),
        )


def carried_noise(noise: tuple[float, ...] | None, carry: Carry) -> tuple[float, ...]:
    """Of independent noise with these deviations, after the carrying. Empty if it is not known."""
    if noise is None or len(noise) != len(carry.matrix_O_N):
        return ()
    return tuple(np.sqrt((np.array(noise) ** 2) @ carry.matrix_O_N**2).tolist())


def _version(release: str, source: Version, adapter_N: FloatArray) -> Version:
    """Not signed yet. The generation stays, so whoever was reset since is fenced."""
    weights = dump_weights({HEAD_B: adapter_N[None, :].astype(np.float32)})
    return Version(
        id=new_id(),
        release=release,
        subject=source.subject,
        domain=source.domain,
        generation=source.generation,
        parent=source.id,
        weights=weights,
        weights_sha256=sha256_hex(weights),
    )
