"""Pointers, their history, lineage and the audit log, for a tenant's admins."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from idiolect_services.gateway.schemas.common import PlainText, RequestModel, ResponseModel, UserId

REASON = Field(min_length=1, max_length=500, description="Kept in the history and the audit log.")


class PointerState(ResponseModel):
    name: str = Field(description="`live` or `previous`.")
    version: str | None
    revision: int = Field(description="Counts the moves; with the version it makes the ETag.")


class PointerList(ResponseModel):
    adapter: str = Field(description="`user:<pseudonym>` or `domain:<name>`.")
    pointers: list[PointerState]


class MoveRequest(RequestModel):
    version: PlainText = Field(min_length=1, max_length=128, description="Id of a version of this adapter.")
    reason: PlainText = REASON


class RollbackRequest(RequestModel):
    reason: PlainText = REASON


class LoraUpload(RequestModel):
    """A PEFT LoRA (the two files of its folder) for the layers of the live global model."""

    global_: PlainText = Field(
        alias="global",
        min_length=1,
        max_length=128,
        description="Digest of the global model that it was trained on: the live one, as every ranking names it.",
    )
    adapter_config: dict[str, Any] = Field(
        description="What adapter_config.json holds. Only a plain LoRA is taken; no path or address in it is followed.",
        examples=[{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}],
    )
    weights: PlainText = Field(
        min_length=1,
        description="adapter_model.safetensors in base64 (RFC 4648, section 4).",
        examples=["QAAAAAAAAA=="],
    )
    reason: PlainText = REASON
    staged: bool = Field(False, description="Live for nobody yet: for a rollout, or to be promoted later.")


class AdapterUpload(LoraUpload):
    """The same for an adapter that has no version yet. Name a user or a domain."""

    user: UserId | None = None
    domain: PlainText | None = Field(None, max_length=64, examples=["support-chat"])


class MoveEntry(ResponseModel):
    name: str
    old_version: str | None
    version: str | None = Field(description="null where a reset erased the pointer.")
    at: datetime
    reason: str
    actor: str


class HistoryPage(ResponseModel):
    moves: list[MoveEntry] = Field(description="Newest first.")
    next_page_token: str | None = Field(description="Send it as `page_token` for the next page; null on the last.")


class ContributionEntry(ResponseModel):
    version: str
    release: str
    scope: str
    domain: str | None
    run: str
    published_at: datetime
    revoked: bool
    via: str = Field(description="`own`, or `ledger`: the run charged the person before it read anything.")


class ContributionList(ResponseModel):
    versions: list[ContributionEntry] = Field(description="Every version that may hold what the person said.")


class VersionOrigin(ResponseModel):
    version: str
    release: str
    adapter: str
    run: str
    purpose: str | None
    accounts: int | None = Field(description="How many people the run charged.")
    data_window: str
    global_digest: str
    parents: list[str] = Field(description="Nearest first; the last may have been deleted.")


class AuditEntryModel(ResponseModel):
    seq: int
    at: datetime
    actor: str
    action: str
    object: str
    reason: str
    details: dict[str, Any]
    previous: str = Field(description="Hash of the entry before.")
    hash: str = Field(description="sha256 of the canonical JSON of this entry, `previous` included.")


class AuditPage(ResponseModel):
    entries: list[AuditEntryModel] = Field(description="Newest first.")
    head: str = Field(description="`seq:hash` of the newest entry. Kept elsewhere, it pins down the log up to here.")
    next_page_token: str | None
