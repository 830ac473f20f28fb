"""Best of n: OpenAI's chat completions, plus what was ranked and why. Also the upstream's settings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from idiolect_services.gateway.schemas.common import (
    DomainName,
    Mode,
    PersonalizationBlock,
    PlainText,
    RequestModel,
    ResponseModel,
    Strength,
    UserId,
    WhyUnrecorded,
)
from idiolect_services.gateway.schemas.ranking import Parts

MAX_CANDIDATES = 16
DEFAULT_CANDIDATES = 4
MAX_MESSAGES = 1000


class Message(RequestModel):
    """Only what is read here; the whole message goes to the upstream as it came."""

    role: str = Field(max_length=32)
    content: PlainText | list[dict[str, Any]] | None = None

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        parts = [part.get("text") for part in self.content or () if part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))


class BestOf(RequestModel):
    """Our own fields, under `idiolect` (with the `openai` package: `extra_body={"idiolect": {...}}`)."""

    domain: DomainName | None = None
    personalization: Mode = "auto"
    strength: Strength = 1.0
    explain: bool = Field(False, description="Return each score's parts.")
    candidates: bool = Field(
        False,
        description="Return all candidates as choices, best first, each with its score. They then count as shown, so "
        "feedback may choose among them.",
    )


class ChatRequest(RequestModel):
    """Every other field goes to the upstream as it came, such as `temperature` or `max_tokens`; `user` does not."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "How do I reset my router?"}], "n": 4, "user": "ada"}
            ]
        },
    )

    messages: list[Message] = Field(min_length=1, description="The last message of the role `user` is the prompt.")
    n: int = Field(
        DEFAULT_CANDIDATES, ge=1, le=MAX_CANDIDATES, description="How many candidates to choose from. One is returned."
    )
    user: UserId | None = None
    stream: bool | None = None
    idiolect: BestOf = Field(default_factory=lambda: BestOf.model_validate({}))

    @model_validator(mode="after")
    def _whole_answers_only(self) -> ChatRequest:
        if self.stream:
            raise ValueError("stream is not offered: the best of n is known once all of them are complete; send false")
        if not self.prompt().strip():
            raise ValueError("messages hold no text of the role user, which is what candidates are ranked for")
        return self

    def prompt(self) -> str:
        """The last text of the role `user`; empty if there is none."""
        return next((message.text() for message in reversed(self.messages) if message.role == "user"), "")


class RankedCandidate(ResponseModel):
    """In the order of `choices`."""

    index: int = Field(description="What feedback refers to: the candidate's position as it came from the upstream.")
    score: float
    relevance_score: float
    parts: Parts | None = Field(None, description="With `explain`.")


class BestOfBlock(ResponseModel):
    inference_id: str | None = Field(description="For feedback; null if nothing was ranked, or could not be stored.")
    unrecorded: WhyUnrecorded = None
    asked: int
    received: int = Field(description="Candidates that came; fewer than asked for if some requests failed.")
    ranked: int = Field(description="Those with text. Without any, the first candidate is returned as it came.")
    ranking: list[RankedCandidate] = Field(description="Of the returned choices.")


class Choice(ResponseModel):
    """As the upstream sent it, with a new index."""

    index: int
    message: dict[str, Any]
    finish_reason: str | None = None


class TokenUsage(ResponseModel):
    """The sum over all candidates."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(ResponseModel):
    id: str = Field(description="The inference id, if there is one.")
    object: str = "chat.completion"
    created: int
    model: str = Field(description="As the upstream names it.")
    choices: list[Choice] = Field(description="The best one; all of them with `idiolect.candidates`.")
    usage: TokenUsage
    idiolect: BestOfBlock
    personalization: PersonalizationBlock | None = Field(description="Null if nothing was ranked.")


class UpstreamRequest(RequestModel):
    base_url: str = Field(
        max_length=300, description="Up to before `/chat/completions`.", examples=["https://api.example.com/v1"]
    )
    api_key: str | None = Field(
        None,
        pattern=r"^[\x21-\x7e]{1,500}$",
        description="Sent to the upstream as a bearer token; stored sealed, never returned. None if not sent.",
    )
    model: str | None = Field(
        None,
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="Replaces the model of every request; as asked for if null.",
    )


class UpstreamState(ResponseModel):
    base_url: str
    model: str | None
    has_api_key: bool
    updated_at: datetime


class Removed(ResponseModel):
    removed: bool
