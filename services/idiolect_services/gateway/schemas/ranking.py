"""Rerank, score, compare. The shapes are those that Cohere, Jina and vLLM clients send, plus our own fields."""

from __future__ import annotations

from pydantic import Field, model_validator

from idiolect_services.gateway.schemas.common import (
    DomainName,
    Mode,
    PersonalizationBlock,
    PlainText,
    RequestModel,
    ResponseModel,
    Strength,
    UserId,
)


class Document(RequestModel):
    text: PlainText = Field(description="The candidate.", examples=["Sure! Here is how to reset it: ..."])
    id: str | None = Field(None, min_length=1, max_length=128, description="Your own id, returned with the result.")


class ForPerson(RequestModel):
    user: UserId | None = None
    domain: DomainName | None = None
    personalization: Mode = "auto"
    strength: Strength = 1.0
    explain: bool = Field(False, description="Return each score's parts.")


class RerankRequest(ForPerson):
    query: PlainText = Field(
        description="The prompt that the documents answer.", examples=["How do I reset my router?"]
    )
    documents: list[PlainText | Document] = Field(
        min_length=1,
        description="Candidates, as texts or as {text, id}.",
        examples=[["Hold the button for ten seconds.", {"id": "b", "text": "Of course! Let me walk you through it."}]],
    )
    top_n: int | None = Field(None, ge=1, description="Return the best `top_n` only; all if larger or not given.")
    return_documents: bool = Field(False, description="Return each document's text with its result.")


class ScoreTexts(ForPerson):
    """Either `query` and `documents`, or vLLM's `text_1` and `text_2`; one query is paired with every document."""

    query: PlainText | None = None
    documents: list[PlainText | Document] | None = Field(None, min_length=1)
    text_1: PlainText | list[PlainText] | None = Field(None, description="Query or queries.")
    text_2: PlainText | list[PlainText] | None = Field(None, description="Document or documents.")

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


class ReturnedDocument(ResponseModel):
    text: str


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


class RerankResponse(ResponseModel):
    id: str | None = Field(
        description="Inference id, for feedback; null if it could not be stored, so none is possible."
    )
    model: str = Field(description="Digest of the global model.")
    results: list[RerankResult] = Field(description="Best first; equal scores in the order of the request.")
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
    personalization: PersonalizationBlock


class CompareResponse(ResponseModel):
    probability: float = Field(description="That this person prefers `a` over `b` (Bradley-Terry).", examples=[0.73])
    preferred: str = Field(description="`a`, `b` or `tie`.")
    model: str
    parts: dict[str, Parts] | None = Field(None, description="With `explain`: of `a` and of `b`.")
    personalization: PersonalizationBlock


def text_of(document: str | Document) -> str:
    return document if isinstance(document, str) else document.text


def _as_list(texts: str | list[str] | None) -> list[str]:
    return [texts] if isinstance(texts, str) else texts or []
