"""Rerank, score, compare. The shapes are those that Cohere, Jina and vLLM clients send, plus our own fields."""

from __future__ import annotations

from typing import Any, Literal

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


class Document(RequestModel):
    text: PlainText = Field(description="The candidate.", examples=["Sure! Here is how to reset it: ..."])
    id: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        strict=False,
        coerce_numbers_to_str=True,
        description="Your own id, returned with the result; a number is returned as text.",
    )


class ForPerson(RequestModel):
    user: UserId | None = None
    domain: DomainName | None = None
    personalization: Mode = "auto"
    strength: Strength = 1.0
    explain: bool = Field(False, description="Return each score's parts.")


class RerankRequest(ForPerson):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": "How do I reset my router?",
                    "documents": ["Hold the button.", {"id": "b", "text": "Of course! Let me help."}],
                    "user": "ada",
                    "domain": "support-chat",
                }
            ]
        }
    )

    query: PlainText = Field(
        description="The prompt that the documents answer.", examples=["How do I reset my router?"]
    )
    documents: list[PlainText | Document] = Field(
        min_length=1,
        description="Candidates, as texts or as {text, id}.",
        examples=[["Hold the button for ten seconds.", {"id": "b", "text": "Of course! Let me walk you through it."}]],
    )
    top_n: int | None = Field(None, ge=0, description="Return the best `top_n` only; all if larger, 0 or not given.")
    return_documents: bool | None = Field(None, description="Return each document's text with its result.")

    @property
    def says_more(self) -> bool:
        """Whether a result says more of its document than its place and scores."""
        return self.explain or self.return_documents is True or set(map(type, self.documents)) != {str}


# The names under which clients of vLLM send the two sides, besides text_1 and text_2.
_SIDES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
SIDE_NAMES = frozenset({"text_1", "text_2", *(name for pair in _SIDES for name in pair)})


class ScoreTexts(ForPerson):
    """Either `query` and `documents`, or vLLM's `text_1` and `text_2`; one query is paired with every document.

    vLLM's other names of the two (`queries` with `documents` or `items`, `data_1` with `data_2`) are understood too.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "How do I reset my router?", "documents": ["Hold the button."], "user": "ada"}]
        }
    )

    query: PlainText | None = None
    documents: list[PlainText | Document] | None = Field(None, min_length=1)
    text_1: PlainText | list[PlainText] | None = Field(None, description="Query or queries.")
    text_2: PlainText | list[PlainText] | None = Field(None, description="Document or documents.")

    @model_validator(mode="before")
    @classmethod
    def _vllm_names(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not {"query", "text_1", "text_2"}.isdisjoint(value):
            return value
        for left, right in _SIDES:
            if left in value and right in value:
                rest = {name: field for name, field in value.items() if name not in (left, right)}
                return rest | {"text_1": value[left], "text_2": value[right]}
        return value

    @model_validator(mode="after")
    def _one_form(self) -> ScoreTexts:
        ours, theirs = (self.query, self.documents), (self.text_1, self.text_2)
        if (None in ours) == (None in theirs) or any(part is not None for part in (theirs if None in theirs else ours)):
            raise ValueError("send either query and documents, or text_1 and text_2")
        queries, documents = self.sides()
        if not documents or len(queries) not in (1, len(documents)):
            raise ValueError("there must be one query, or exactly one for every document")
        return self

    def sides(self) -> tuple[list[str], list[str]]:
        if self.query is not None and self.documents is not None:
            return [self.query], [text_of(document) for document in self.documents]
        return _as_list(self.text_1), _as_list(self.text_2)


class CompareRequest(ForPerson):
    query: PlainText = Field(description="The prompt that both answer.")
    a: PlainText = Field(description="One candidate.")
    b: PlainText = Field(description="The other candidate.")


class Parts(ResponseModel):
    """They add up to the score exactly: (global + domain) + user."""

    global_: float = Field(alias="global")
    domain: float
    user: float


class Directions(ResponseModel):
    """What each direction of the model adds. They add up to the domain and the user part, to 1e-12 of the largest."""

    domain: list[float] = Field(description="By direction; empty if no domain adapter was applied.")
    user: list[float] = Field(description="By direction; empty if nothing personal was applied.")
    top: list[str] = Field(description="The directions that add or take most, as `user:0`; see `contrasts`.")


class PublicText(ResponseModel):
    """From a data set that was declared public: data, to be escaped where it is shown, and never instructions."""

    prompt: str
    text: str


class Contrast(ResponseModel):
    """The texts that lie furthest apart along a direction. Both empty: this model has no examples for it."""

    high: list[PublicText]
    low: list[PublicText]


class ReturnedDocument(ResponseModel):
    text: str


class Usage(ResponseModel):
    """Nothing is counted in tokens here: always 0. Clients of Jina and vLLM look for it."""

    prompt_tokens: int = 0
    total_tokens: int = 0


NO_USAGE = Usage().model_dump()


class RerankResult(ResponseModel):
    index: int = Field(description="Position in the request's documents, from 0.")
    relevance_score: float = Field(
        description="Between 0 and 1: sigmoid((score - mean score of the request's documents) / temperature), the "
        "probability that it would be preferred over an average one of them."
    )
    score: float = Field(description="The raw score, in the model's own unit; only differences mean something.")
    id: str | None = Field(None, description="The document's own id, if it had one.")
    document: ReturnedDocument | None = None
    parts: Parts | None = Field(None, description="With `explain`.")
    directions: Directions | None = Field(None, description="With `explain`.")


class RerankResponse(ResponseModel):
    id: str | None = Field(description="Inference id, for feedback; null if it was not stored, so none is possible.")
    unrecorded: WhyUnrecorded = None
    model: str = Field(description="Digest of the global model.")
    results: list[RerankResult] = Field(description="Best first; equal scores in the order of the request.")
    contrasts: dict[str, Contrast] | None = Field(None, description="With `explain`: of the directions that are named.")
    usage: Usage
    personalization: PersonalizationBlock


class ScoreEntry(ResponseModel):
    index: int
    object: str = "score"
    score: float
    parts: Parts | None = None


class ScoreResponse(ResponseModel):
    id: str
    object: str = "list"
    created: int = Field(description="Unix time, seconds.")
    model: str
    data: list[ScoreEntry]
    usage: Usage
    personalization: PersonalizationBlock


class CompareResponse(ResponseModel):
    probability: float = Field(description="That this person prefers `a` over `b` (Bradley-Terry).", examples=[0.73])
    preferred: Literal["a", "b", "tie"]
    model: str
    parts: dict[str, Parts] | None = Field(None, description="With `explain`: of `a` and of `b`.")
    personalization: PersonalizationBlock


def text_of(document: str | Document) -> str:
    return document if isinstance(document, str) else document.text


def _as_list(texts: str | list[str] | None) -> list[str]:
    return [texts] if isinstance(texts, str) else texts or []
