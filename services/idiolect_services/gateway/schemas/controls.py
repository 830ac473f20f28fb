"""What a person controls: consent, strength, reset, explanation."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from idiolect_services.gateway.schemas.common import RequestModel, ResponseModel, Strength


class ConsentRequest(RequestModel):
    """Fields that are not sent stay as they are."""

    opted_in: bool | None = Field(None, description="False withdraws consent: what was learned is erased.")
    paused: bool | None = Field(None, description="True keeps what was learned, and neither uses it nor learns more.")
    strength: Strength | None = None

    @model_validator(mode="after")
    def _something(self) -> ConsentRequest:
        if (self.opted_in, self.paused, self.strength) == (None, None, None):
            raise ValueError("send at least one of opted_in, paused and strength")
        return self


class ConsentState(ResponseModel):
    """Its ETag is the revision."""

    known: bool = Field(description="False: nothing is stored about this person.")
    opted_in: bool
    paused: bool
    strength: float = Field(description="From 0 to 1; scales the personal part only.")
    generation: int = Field(description="Every reset and withdrawal raises it.")
    revision: int
    policy_version: str | None = Field(description="The text that the person agreed to.")
    updated_at: datetime | None


class ResetRequest(RequestModel):
    scope: Literal["adapter", "feedback", "all"] = Field(
        description="`adapter` forgets what was learned and keeps the signals, so that learning starts afresh; "
        "`feedback` also forgets the signals; `all` also withdraws the consent."
    )
    domain: None = Field(
        None, description="Not offered: a person's adapter serves every domain, so it goes as a whole."
    )


class ResetStep(ResponseModel):
    step: str
    state: str


class ResetReceipt(ResponseModel):
    """Signed: Ed25519 over the RFC 8785 form of everything but `key_id` and `signature`."""

    format: str
    id: str
    tenant: str
    subject: str = Field(description="The person's pseudonym.")
    scope: str
    generation: int = Field(description="The new one: nothing older is served any more.")
    steps: list[ResetStep]
    erased: dict[str, int] = Field(description="Rows erased per kind.")
    shared_releases: list[str] = Field(
        description="Releases that had learned from this person among others; their influence is bounded by epsilon."
    )
    completed_at: datetime
    state: str
    key_id: str
    signature: str = Field(description="Hex.")


class AdapterExplanation(ResponseModel):
    version: str
    release: str
    created_at: datetime
    norm: float | None = Field(description="L2 norm of the personal weights; null if they don't verify.")
    privacy: dict[str, Any] = Field(description="The signed privacy statement of this version.")


class SpentPrivacy(ResponseModel):
    unit: str = Field(description="What is protected: `comparison` or `subject`. The two are never added.")
    runs: int
    rho: float = Field(description="Total cost in zCDP.")
    epsilon: float
    delta: float
    budget_epsilon: float


class Explanation(ResponseModel):
    """What is known and why; never a text of the person."""

    state: ConsentState
    adapter: AdapterExplanation | None
    spent: list[SpentPrivacy]
