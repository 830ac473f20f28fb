"""The signed receipt of a reset: what was erased, and which shared releases had learned from the person before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from idiolect.canonical import canonical_json
from idiolect.registry.signing import Signer
from idiolect.resets.plan import ResetScope


@dataclass(frozen=True, slots=True)
class ResetRecord:
    """A reset as stored. `erased` counts rows per table; `shared_releases` keep an influence bounded by their
    epsilon.
    """

    id: str
    tenant: str
    subject: str  # pseudonym
    scope: ResetScope
    generation: int  # the new one: everything older is fenced
    steps: tuple[str, ...]
    erased: Mapping[str, int]
    shared_releases: tuple[str, ...]
    completed_at: datetime
    state: str = "completed"

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "idiolect-reset-receipt/1",
            "id": self.id,
            "tenant": self.tenant,
            "subject": self.subject,
            "scope": self.scope,
            "generation": self.generation,
            "steps": [{"step": step, "state": "done"} for step in self.steps],
            "erased": dict(self.erased),
            "shared_releases": list(self.shared_releases),
            "completed_at": self.completed_at.isoformat(),
            "state": self.state,
        }


def signed_receipt(record: ResetRecord, signer: Signer) -> dict[str, Any]:
    """The record with `key_id` and a hex Ed25519 `signature` over the canonical JSON of everything else."""
    body = record.to_json()
    return body | {"key_id": signer.key_id, "signature": signer.sign(canonical_json(body)).hex()}
