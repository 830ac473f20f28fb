"""What several messages share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from idiolect_services.scorer import Reason, Unrecorded


class RequestModel(BaseModel):
    """Known fields are strict: no number from a string, no text from a number. Unknown fields are ignored, because
    clients of other rerank services send more than we read."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True)


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the character U+0000")
    return text


PlainText = Annotated[str, AfterValidator(_no_nul)]
UserId = Annotated[
    str, Field(max_length=128, description="Your own opaque id of the person; stored only as a keyed pseudonym.")
]
DomainName = Annotated[
    str, Field(max_length=64, description="The surface this is for, such as `support-chat`; `default` if not named.")
]
Mode = Annotated[
    Literal["auto", "off", "required"],
    Field(
        description="`auto` personalizes where it can, `off` not for this request, `required` answers 409 if it can't."
    ),
]
Strength = Annotated[
    float,
    Field(ge=0.0, le=1.0, description="Multiplies the person's own strength; from 0 (none) to 1.", examples=[1.0]),
]
WhyUnrecorded = Annotated[
    Unrecorded | None,
    Field(description="Why it was ranked but not stored: `store_unavailable`, or a quota that is used up for today."),
]


class PersonalizationBlock(ResponseModel):
    """What was applied to this response."""

    applied: bool = Field(description="Whether the person's own adapter took part.")
    reason: Reason = Field(description="`applied`, or why not.")
    strength: float = Field(description="Effective strength of the personal part, 0 to 1; 0 if none was applied.")
    global_: str = Field(alias="global", description="Digest of the global model.")
    domain: str | None = Field(description="Version id of the domain adapter that took part, if any.")
    adapter: str | None = Field(description="Version id of the person's adapter that took part, if any.")
    generation: int | None = Field(description="The person's generation: every reset and opt-out raises it.")
    candidate_missing: str | None = Field(
        None,
        description="Sent if the person is on another global model, which is being rolled out and which this server "
        "has not loaded (yet): its digest. The live one answered.",
    )


class FieldProblem(ResponseModel):
    field: str = Field(examples=["documents.3.text"])
    problem: str = Field(examples=["Input should be a valid string"])


class Problem(ResponseModel):
    """RFC 9457 problem details. Match on `code`; it is stable."""

    type: str = Field(examples=["urn:idiolect:problem:invalid_input"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What is wrong.")
    code: str = Field(examples=["invalid_input"])
    request_id: str = Field(description="Also in the X-Request-Id header; quote it when you report the problem.")
    mend: str = Field(description="What to do about it.")
    message: str = Field(description="All of it in one line, which is what the exceptions of OpenAI's clients say.")
    errors: list[FieldProblem] | None = Field(None, description="The first ten fields that don't validate.")
