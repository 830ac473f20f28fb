"""The signed description of one immutable adapter version.

All versions of one training run share most of their manifest, so it is stored once per release (`ReleaseTemplate`) and
a version adds only what is its own. A million versions are a million short rows. `manifest_bytes` joins the two
into the canonical JSON that is signed and verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from idiolect.canonical import canonical_json
from idiolect.privacy.budget import PrivacyStatement

AdapterScope = Literal["domain", "user"]
MANIFEST_FORMAT = "idiolect-manifest/1"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: Literal["F32"] = "F32"
    max_norm: float = 1e3  # an L2 norm above this is refused at publish and at load


@dataclass(frozen=True, slots=True)
class ReleaseTemplate:
    """What all versions of one training run share."""

    tenant: str
    scope: AdapterScope
    global_digest: str
    basis_digest: str  # the frozen A that the trained B is written in
    kind: str  # "head_lora": W_head + (alpha / rank) * B A
    rank: int
    alpha: float
    targets: tuple[str, ...]
    tensors: tuple[TensorSpec, ...]
    privacy: PrivacyStatement
    data_window: str
    producer: str
    run: str  # the ledger's run
    created_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "format": MANIFEST_FORMAT,
            "tenant": self.tenant,
            "scope": self.scope,
            "global": self.global_digest,
            "basis": self.basis_digest,
            "kind": self.kind,
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": list(self.targets),
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "max_norm": t.max_norm} for t in self.tensors
            ],
            "privacy": self.privacy.to_json(),
            "data_window": self.data_window,
            "producer": self.producer,
            "run": self.run,
            "created_at": self.created_at.isoformat(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ReleaseTemplate:
        return ReleaseTemplate(
            tenant=data["tenant"],
            scope=data["scope"],
            global_digest=data["global"],
            basis_digest=data["basis"],
            kind=data["kind"],
            rank=data["rank"],
            alpha=data["alpha"],
            targets=tuple(data["targets"]),
            tensors=tuple(TensorSpec(t["name"], tuple(t["shape"]), t["dtype"], t["max_norm"]) for t in data["tensors"]),
            privacy=PrivacyStatement.from_json(data["privacy"]),
            data_window=data["data_window"],
            producer=data["producer"],
            run=data["run"],
            created_at=datetime.fromisoformat(data["created_at"]),
        )


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable adapter. `subject` is a pseudonym, empty for domain scope; `domain` is empty for user scope."""

    id: str
    release: str
    subject: str
    domain: str
    generation: int
    parent: str | None
    weights: bytes = field(repr=False)  # safetensors, <= 16 KiB: small weights live in the row
    weights_sha256: str
    evaluation: Mapping[str, float] = field(default_factory=dict)
    key_id: str = ""
    signature: bytes = field(default=b"", repr=False)


def manifest_bytes(template: ReleaseTemplate, version: Version) -> bytes:
    """The canonical JSON (RFC 8785) of the version's whole manifest, without its signature."""
    return canonical_json(
        template.to_json()
        | {
            "version": version.id,
            "release": version.release,
            "subject": version.subject,
            "domain": version.domain,
            "generation": version.generation,
            "parent": version.parent,
            "weights_sha256": version.weights_sha256,
            "evaluation": dict(version.evaluation),
        }
    )
