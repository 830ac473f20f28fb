"""The signed receipt of a reset: what was erased, and which shared releases had learned from the person before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from idiolect.canonical import canonical_json
from idiolect.registry.signing import Signer
from idiolect.resets.plan import ErasureScope
from idiolect.resets.purges import Progress

_PENDING = {"state": "pending"}


@dataclass(frozen=True, slots=True)
class ResetRecord:
    """A reset as stored. `erased` counts rows per table; `shared_releases` keep an influence bounded by their
    epsilon.
    """

    id: str
    tenant: str
    subject: str  # pseudonym
    scope: ErasureScope
    generation: int  # the new one: everything older is fenced
    steps: tuple[str, ...]
    erased: Mapping[str, int]
    shared_releases: tuple[str, ...]
    completed_at: datetime
    state: str = "completed"
    domain: str | None = None  # of a reset that was for one domain alone
    shared_runs: tuple[str, ...] = ()  # as shared_releases, of trainings that had read the person and not yet published
    purge_sequence: int = 0  # its place in the purge log; 0 for resets of before there was one

    def to_json(self) -> dict[str, Any]:
        """`domain` and `shared_runs` are there only where there is something to say."""
        domain = {} if self.domain is None else {"domain": self.domain}
        runs = {"shared_runs": list(self.shared_runs)} if self.shared_runs else {}
        return (
            domain
            | runs
            | {
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
                "purge_sequence": self.purge_sequence,
            }
        )


def signed_receipt(
    record: ResetRecord, signer: Signer, progress: Progress | None = None, *, blobs_left: bool = False
) -> dict[str, Any]:
    """The record and how far it has come, with `key_id` and a hex Ed25519 `signature` over the canonical JSON of
    everything else. Without `progress` nothing is known of the caches of server processes. `blobs_left`: weights of
    its adapters may still lie where blobs lie, which nothing names any more."""
    caches = {"state": "unknown"} if progress is None else progress.to_json()
    # That nothing older is served follows from the commit and the wait after it alone, so it is never pending.
    body = record.to_json() | {"served": "confirmed", "caches": caches}
    if progress is None or not progress.done:
        body["steps"] = [step | _PENDING if step["step"] == "purge_memory" else step for step in body["steps"]]
    if blobs_left and record.erased.get("blobs"):
        body["steps"] = [step | _PENDING if step["step"] == "erase_adapters" else step for step in body["steps"]]
    return body | {"key_id": signer.key_id, "signature": signer.sign(canonical_json(body)).hex()}
