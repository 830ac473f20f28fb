"""Whole releases: read, promoted, compared, carried elsewhere, collected."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from idiolect.registry.garbage import RETENTION
from idiolect_services.gateway.schemas.adapters import REASON
from idiolect_services.gateway.schemas.common import PlainText, RequestModel, ResponseModel


class PromoteRequest(RequestModel):
    reason: PlainText = REASON


class PromoteResponse(ResponseModel):
    id: str
    moved: int = Field(description="How many adapters serve another version than before.")


class ImportResponse(ResponseModel):
    release: str
    global_digest: str = Field(description="The global model that it is bound to, which need not be the live one.")
    versions: int = Field(description="Stored; live for nobody yet.")
    fenced: int = Field(description="Left out: their people were reset or left since.")
    quarantined: int = Field(description="Left out: quarantined here.")
    known: bool = Field(description="It was here already, and nothing changed.")


class Change(ResponseModel):
    name: str
    a: str
    b: str


class WeightsChange(ResponseModel):
    norm_a: float
    norm_b: float
    distance: float
    cosine: float | None


class Probe(ResponseModel):
    prompt: str
    text: str
    a: float = Field(description="What the first one adds to the global score.")
    b: float


class DiffResponse(ResponseModel):
    fields: list[Change] = Field(description="Of the manifests; only what differs.")
    weights: WeightsChange | None = Field(description="Of two releases: medians over `pairs`.")
    pairs: int | None = Field(description="Adapters that both releases hold, at most 1,000; null for two versions.")
    probes: list[Probe] = Field(description="Public texts, scored if both versions are bound to the live global model.")


class CollectRequest(RequestModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"older_than_days": 30, "apply": False}]})

    apply: bool = Field(False, description="Delete; without it this only counts.")
    older_than_days: float = Field(
        float(RETENTION.days), ge=0, le=36_500, description="Keep what was revoked or moved more recently."
    )


class CollectResponse(ResponseModel):
    applied: bool
    releases: int
    versions: int
    bytes: int
