"""Adapters, releases and the privacy ledger, for a tenant's admins."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from idiolect_services.gateway.schemas.common import PlainText, RequestModel, ResponseModel


class AdapterSummary(ResponseModel):
    id: str
    adapter: str = Field(description="Whose version it is: `user:<pseudonym>` or `domain:<name>`.")
    release: str
    scope: str = Field(description="`user` or `domain`.")
    subject: str | None = Field(description="Pseudonym of the person, in user scope.")
    domain: str | None
    generation: int
    revoked: bool
    withheld: str | None = Field(description="Why it is not served although published: quarantined or rolled back.")
    weights_sha256: str
    created_at: datetime
    kind: str = Field(description="`head_lora`: a few numbers in the model's own basis. `lora`: any layers.")
    epsilon: float | None = Field(description="null where nothing is claimed: it was trained elsewhere.")
    unit: str | None


class AdapterPage(ResponseModel):
    adapters: list[AdapterSummary]
    next_page_token: str | None = Field(description="Send it as `page_token` for the next page; null on the last.")


class AdapterDetail(ResponseModel):
    id: str
    revoked: bool
    withheld: str | None
    manifest: dict[str, Any] = Field(description="Ed25519-signed in its RFC 8785 form.")
    key_id: str
    signature: str = Field(description="Hex.")


class ReleaseEntry(ResponseModel):
    id: str
    scope: str
    created_at: datetime
    versions: int
    revoked: bool
    epsilon: float | None = Field(description="null where nothing is claimed.")
    unit: str | None


class ReleaseList(ResponseModel):
    releases: list[ReleaseEntry] = Field(description="Newest first.")


class RevokeRequest(RequestModel):
    reason: PlainText = Field(min_length=1, max_length=500, description="Kept in the history.")


class RevokeResponse(ResponseModel):
    id: str
    revoked: bool


class LedgerEntry(ResponseModel):
    id: str
    unit: str
    purpose: str
    state: str = Field(
        description="`reserved` (charged, not known to have finished), `settled`, or `refused` (to everyone)."
    )
    accounts: int = Field(description="How many people were charged.")
    epsilon: float = Field(description="Charged for this run alone, at `delta`.")
    delta: float
    rho: float = Field(description="Cost in zCDP; costs of one unit add up.")
    noise_multiplier: float
    steps: int
    reserved_at: datetime
    settled_at: datetime | None


class LedgerPage(ResponseModel):
    runs: list[LedgerEntry] = Field(description="Newest first.")
