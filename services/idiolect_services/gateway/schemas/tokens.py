"""Tokens for end users."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from idiolect_services.gateway.schemas.common import RequestModel, ResponseModel, UserId
from idiolect_services.gateway.tokens import DEFAULT_SECONDS, MAX_SECONDS, MIN_SECONDS


class TokenRequest(RequestModel):
    user: UserId
    scopes: list[Literal["infer", "feedback", "controls"]] = Field(
        min_length=1,
        max_length=3,
        description="What it may do, for this person alone; each must be the key's own.",
    )
    ttl_seconds: int = Field(DEFAULT_SECONDS, ge=MIN_SECONDS, le=MAX_SECONDS, description="How long it lasts.")


class TokenResponse(ResponseModel):
    token: str = Field(description="A JWT to send as `Authorization: Bearer ...`. It can't be read again.")
    expires_at: datetime
    scopes: list[str]
