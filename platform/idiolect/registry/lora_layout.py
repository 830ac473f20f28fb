"""What a manifest says of a LoRA of any layers: which, with which rank and alpha, and what it did to a few fixed texts.

y = W x + scale * B (A x)        scale = alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idiolect.errors import CorruptArtifactError

PROOF_FORMAT = "idiolect-load-proof/1"
MAX_PROBES = 64
MAX_LORA_RANK = 256
MAX_LORA_ALPHA = 1e6
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LoadProof:
    """`offsets`: of each probe's score from the edge of its rounding cell, in 1/65536 of a step; see lora/proof.py."""

    global_digest: str
    step: float
    offsets: tuple[int, ...]
    digest: str

    def to_json(self) -> dict[str, Any]:
        return {
            "format": PROOF_FORMAT,
            "global": self.global_digest,
            "step": self.step,
            "offsets": list(self.offsets),
            "digest": self.digest,
        }

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> LoadProof:
        """Raises CorruptArtifactError unless it has exactly the fields of `to_json`, of their types."""
        fields = {"format": (str,), "global": (str,), "step": (float, int), "offsets": (list,), "digest": (str,)}
        typed = set(said) == set(fields) and all(type(said[name]) in kinds for name, kinds in fields.items())
        if not typed or said["format"] != PROOF_FORMAT or not all(type(offset) is int for offset in said["offsets"]):
            raise CorruptArtifactError("the load proof is malformed.")
        return LoadProof(said["global"], float(said["step"]), tuple(said["offsets"]), said["digest"])

    def check(self) -> None:
        """Raises CorruptArtifactError for what can be no proof of any scores."""
        sound = _DIGEST.fullmatch(self.digest) and 0.0 < self.step < math.inf and 1 <= len(self.offsets) <= MAX_PROBES
        if not sound:
            raise CorruptArtifactError("the load proof is malformed.")


@dataclass(frozen=True, slots=True)
class LoraTarget:
    name: str  # full path of a linear layer
    rank: int
    alpha: float

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "rank": self.rank, "alpha": self.alpha}


@dataclass(frozen=True, slots=True)
class LoraLayout:
    """`bare`: what the global model itself said to the probes where the proof was made. A machine on which that differs
    can't tell whether the adapter is damaged."""

    targets: tuple[LoraTarget, ...]
    use_rslora: bool
    saved: tuple[str, ...]  # layers that are replaced as a whole
    bare: LoadProof
    proof: LoadProof

    def to_json(self) -> dict[str, Any]:
        return {
            "targets": [target.to_json() for target in self.targets],
            "use_rslora": self.use_rslora,
            "saved": list(self.saved),
            "bare": self.bare.to_json(),
            "proof": self.proof.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LoraLayout:
        return LoraLayout(
            targets=tuple(LoraTarget(one["name"], one["rank"], one["alpha"]) for one in data["targets"]),
            use_rslora=data["use_rslora"],
            saved=tuple(data["saved"]),
            bare=LoadProof.from_json(data["bare"]),
            proof=LoadProof.from_json(data["proof"]),
        )

    @property
    def layers(self) -> tuple[str, ...]:
        return (*(target.name for target in self.targets), *self.saved)

    def check(self) -> None:
        """Raises CorruptArtifactError naming the field."""
        if type(self.use_rslora) is not bool or not self.layers or len(set(self.layers)) != len(self.layers):
            raise CorruptArtifactError("the manifest's lora names no layer, or one twice.")
        for target in self.targets:
            if type(target.rank) is not int or not 1 <= target.rank <= MAX_LORA_RANK:
                raise CorruptArtifactError(f"the manifest's lora gives {target.name!r} the rank {target.rank!r}.")
            if type(target.alpha) not in (int, float) or not abs(target.alpha) <= MAX_LORA_ALPHA:
                raise CorruptArtifactError(f"the manifest's lora gives {target.name!r} the alpha {target.alpha!r}.")
        self.bare.check()
        self.proof.check()
