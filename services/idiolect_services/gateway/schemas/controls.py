"""What a person controls: consent, strength, reset, explanation."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from idiolect.consent import MAX_DOMAINS, ConsentChange, DomainChange
from idiolect_services.gateway.schemas.common import DomainName, RequestModel, ResponseModel, Strength
from idiolect_services.gateway.schemas.ranking import PublicText


class DomainRequest(RequestModel):
    """Fields that are not sent stay as they are."""

    opted_in: bool | None = Field(
        None, description="False: neither personalized nor learned from in this domain. What was learned is erased."
    )
    strength: Strength | None = Field(None, description="Multiplies the person's strength in this domain, 0 to 1.")

    @model_validator(mode="after")
    def _something(self) -> DomainRequest:
        if (self.opted_in, self.strength) == (None, None):
            raise ValueError("send opted_in, strength or both")
        return self


class ConsentRequest(RequestModel):
    """Fields that are not sent stay as they are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"opted_in": True}]})

    opted_in: bool | None = Field(None, description="False withdraws consent: what was learned is erased.")
    paused: bool | None = Field(None, description="True keeps what was learned, and neither uses it nor learns more.")
    strength: Strength | None = None
    domains: dict[DomainName, DomainRequest] = Field(
        default_factory=dict, max_length=MAX_DOMAINS, description="By name. Domains that are not sent stay as they are."
    )

    @model_validator(mode="after")
    def _something(self) -> ConsentRequest:
        if (self.opted_in, self.paused, self.strength) == (None, None, None) and not self.domains:
            raise ValueError("send at least one of opted_in, paused, strength and domains")
        return self

    def change(self) -> ConsentChange:
        """Raises InvalidInputError for a name that no domain can have."""
        domains = tuple(DomainChange(name, one.opted_in, one.strength) for name, one in sorted(self.domains.items()))
        return ConsentChange(self.opted_in, self.paused, self.strength, domains)


class DomainState(ResponseModel):
    opted_in: bool
    strength: float


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
    domains: dict[str, DomainState] = Field(
        default_factory=dict, description="What was decided for single domains; in all others the person is in."
    )


class ConsentReceipt(ResponseModel):
    """What the person agreed to, signed: Ed25519 over the RFC 8785 form of everything but `key_id` and `signature`."""

    format: str
    tenant: str
    subject: str = Field(description="The person's pseudonym.")
    opted_in: bool
    paused: bool
    strength: float
    domains: dict[str, DomainState]
    policy_version: str | None = Field(description="The text that the person agreed to; null without consent.")
    generation: int
    revision: int
    updated_at: datetime
    key_id: str
    signature: str = Field(description="Hex.")


class ResetRequest(RequestModel):
    scope: Literal["adapter", "feedback", "all"] = Field(
        description="`adapter` forgets what was learned and keeps the signals, so that learning starts afresh; "
        "`feedback` also forgets the signals; `all` also withdraws the consent."
    )
    domain: DomainName | None = Field(
        None,
        description="Forget the signals of this domain alone; with `all` also opt out of it. Not with `adapter`: a "
        "person's adapter serves every domain, and always goes as a whole.",
    )


class ResetStep(ResponseModel):
    step: str
    state: str


class CachePurge(ResponseModel):
    replica: str
    state: Literal["confirmed", "pending", "silent"]


class CachePurges(ResponseModel):
    """Of every server process that may have held something of the person in memory."""

    state: Literal["confirmed", "pending", "unknown"] = Field(description="`unknown`: the store could not be asked.")
    confirmed: int | None = Field(None, description="Processes that have purged their caches.")
    pending: int | None = None
    silent: int | None = Field(None, description="Processes that were not heard from lately: stopped, cut off or gone.")
    replicas: list[CachePurge] = Field(default_factory=list)


class ResetReceipt(ResponseModel):
    """Signed: Ed25519 over the RFC 8785 form of everything but `key_id` and `signature`."""

    format: str
    id: str
    tenant: str
    subject: str = Field(description="The person's pseudonym.")
    scope: str = Field(description="`adapter`, `feedback`, `all` or `erasure`.")
    domain: str | None = Field(None, description="There only if the reset was for one domain.")
    generation: int = Field(description="The new one: nothing older is served any more.")
    steps: list[ResetStep]
    erased: dict[str, int] = Field(description="Rows erased per kind.")
    shared_releases: list[str] = Field(
        description="Releases that had learned from this person among others; their influence is bounded by epsilon."
    )
    shared_runs: list[str] = Field(
        default_factory=list,
        description="There only if a shared training had read this person and not published yet: a release of it would "
        "name this run.",
    )
    completed_at: datetime
    state: str
    purge_sequence: int = Field(description="Its place in the purge log that all server processes follow.")
    served: Literal["confirmed"] = Field(description="No process answers under an older generation any more.")
    caches: CachePurges
    key_id: str
    signature: str = Field(description="Hex.")


class DirectionExplanation(ResponseModel):
    """One of the few directions along which people differ, and where the person stands. People are spread with a
    standard deviation of about 1."""

    direction: int
    weight: float
    noise: float | None = Field(description="Standard deviation that privacy noise alone gives; null if not known.")
    uncertainty: float | None = Field(description="The same, with what a typical number of comparisons leaves open.")
    clear: bool | None = Field(description="Whether the weight is beyond what noise alone gives 21 times in 22.")
    says: str = Field(description="The same in words.")
    high: list[PublicText] = Field(description="Public texts that a weight above 0 lifts.")
    low: list[PublicText] = Field(description="Public texts that a weight below 0 lifts.")


class AdapterExplanation(ResponseModel):
    version: str
    release: str
    created_at: datetime
    norm: float | None = Field(description="L2 norm of the personal weights; null if they don't verify.")
    privacy: dict[str, Any] | None = Field(
        description="The signed privacy statement of this version; null of a LoRA that was trained elsewhere."
    )
    carried_from: str | None = Field(
        None, description="The release that these weights were carried from when the global model changed."
    )
    directions: list[DirectionExplanation] = Field(description="Those that matter most come first.")


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
