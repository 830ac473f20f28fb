"""How long a tenant's texts are kept."""

from __future__ import annotations

from pydantic import Field

from idiolect.retention import MAX_DAYS, MIN_DAYS
from idiolect_services.gateway.schemas.common import RequestModel, ResponseModel


class RetentionRequest(RequestModel):
    days: int | None = Field(
        ge=MIN_DAYS,
        le=MAX_DAYS,
        description="Whole days, counted from when a text was served; null for the installation's own.",
        examples=[90],
    )


class RetentionState(ResponseModel):
    days: int = Field(
        description="What holds: texts that were served longer ago are deleted within an hour.", examples=[90]
    )
    own_days: int | None = Field(
        description="What this tenant has set; null if the installation's own holds.", examples=[90]
    )
