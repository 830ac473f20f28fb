"""Feedback: what a person did with what they were shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from idiolect.signals.events import SignalKind
from idiolect_services.gateway.schemas.common import DomainName, RequestModel, ResponseModel, UserId

MAX_SIGNALS = 100
MAX_VALUES = 100
MAX_INDEX = 100_000


def _instant(value: object) -> object:
    if not isinstance(value, str) or len(value) > 40:
        raise ValueError("must be an RFC 3339 time such as 2026-05-01T12:00:00Z")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("must be an RFC 3339 time such as 2026-05-01T12:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("must name its zone, such as Z or +02:00")
    if not 1970 < moment.year < 9999:  # in UTC it might be of no year that can be written
        raise ValueError("must lie between the years 1971 and 9998")
    return moment


SignalId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]


class SignalRequest(RequestModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inference_id": "0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
                    "kind": "choice",
                    "value": 1,
                    "user": "ada",
                }
            ]
        }
    )

    inference_id: SignalId = Field(description="The `id` of the rerank response that was shown.")
    kind: SignalKind = Field(description="What the person did.")
    value: Any = Field(
        description="All indices are those of the request's documents. choice, accept, dismiss: an index. "
        "ranking: indices, best first. rating: [index, stars from 0 to 100] pairs.",
        examples=[2],
    )
    user: UserId
    id: SignalId | None = Field(
        None, description="Your id of this signal: sending it again changes nothing. Made for you if you send none."
    )
    domain: DomainName | None = Field(None, description="Must be that of the inference, if sent.")
    occurred_at: Annotated[datetime, BeforeValidator(_instant)] | None = Field(
        None, description="When it happened, with a zone; now if not sent."
    )

    @model_validator(mode="after")
    def _value_fits_kind(self) -> SignalRequest:
        """The value is checked here, in size and shape, because later messages quote it."""
        if self.kind == "ranking":
            _check_list(self.value, _check_index)
        elif self.kind == "rating":
            _check_list(self.value, _check_rating)
        else:
            _check_index(self.value)
        return self


def _check_list(value: object, check: Any) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_VALUES:
        raise ValueError(f"value must be a list of 1 to {MAX_VALUES} entries for this kind")
    for entry in value:
        check(entry)


def _check_index(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INDEX:
        raise ValueError("value must hold document indices, whole numbers from 0")


def _check_rating(value: object) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("value must hold [index, stars] pairs")
    _check_index(value[0])
    if isinstance(value[1], bool) or not isinstance(value[1], int | float) or not 0 <= value[1] <= 100:
        raise ValueError("stars must be a number from 0 to 100")


class SignalBatch(RequestModel):
    signals: list[SignalRequest] = Field(
        min_length=1,
        max_length=MAX_SIGNALS,
        description="Checked all together before any is stored; then each is stored by itself and answers for itself.",
    )


class SignalOutcome(ResponseModel):
    id: str = Field(description="The signal's id: yours, or the one that was made for it.")
    status: Literal["accepted", "duplicate", "refused"] = Field(description="`duplicate`: it was there already.")
    code: str | None = Field(None, description="Why it was refused.")
    detail: str | None = None


class BatchOutcome(ResponseModel):
    results: list[SignalOutcome] = Field(description="In the order of the request.")
    accepted: int
    duplicate: int
    refused: int
