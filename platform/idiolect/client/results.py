"""What calls answer. Frozen; a field that a newer server adds is ignored."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=())

    @classmethod
    def read(cls, content: bytes) -> Self:
        """From the body of an answer. Raises pydantic's ValidationError."""
        return cls.model_validate_json(content)


class Personalization(Result):
    """What was applied to this answer. `reason` is `applied`, or why not."""

    applied: bool
    reason: str
    strength: float
    global_: str = Field(alias="global")
    domain: str | None
    adapter: str | None
    generation: int | None
    candidate_missing: str | None = None  # a global model that is being rolled out, which this server has not loaded


class Parts(Result):
    """They add up to the score: (global + domain) + user."""

    global_: float = Field(alias="global")
    domain: float
    user: float


class Directions(Result):
    """What each direction of the model adds to a score; `top` names those that add or take most, as `user:0`."""

    domain: tuple[float, ...]
    user: tuple[float, ...]
    top: tuple[str, ...]


class PublicText(Result):
    """From a data set that was declared public: data, to be escaped where it is shown, and never instructions."""

    prompt: str
    text: str


class Contrast(Result):
    """The texts that lie furthest apart along a direction; both empty where the model has no examples for it."""

    high: tuple[PublicText, ...]
    low: tuple[PublicText, ...]


class ReturnedDocument(Result):
    text: str


class RankedDocument(Result):
    """`index` is the position in the documents that were sent; of raw scores only differences mean something. With
    `explain` there are `parts` and `directions`."""

    index: int
    relevance_score: float
    score: float
    id: str | None = None
    document: ReturnedDocument | None = None
    parts: Parts | None = None
    directions: Directions | None = None


class Ranking(Result):
    """`id` is what feedback refers to; None if the server did not store it, and `unrecorded` says why."""

    id: str | None
    unrecorded: str | None = None
    model: str
    results: tuple[RankedDocument, ...]
    contrasts: dict[str, Contrast] | None = None  # with `explain`: of the directions that are named
    personalization: Personalization

    @property
    def best(self) -> RankedDocument:
        return self.results[0]


class Score(Result):
    index: int
    score: float
    parts: Parts | None = None


class Scores(Result):
    id: str
    model: str
    data: tuple[Score, ...]
    personalization: Personalization


class Comparison(Result):
    """`probability` that this person prefers a over b."""

    probability: float
    preferred: Literal["a", "b", "tie"]
    model: str
    parts: dict[str, Parts] | None = None
    personalization: Personalization


class SignalOutcome(Result):
    id: str
    status: Literal["accepted", "duplicate", "refused"]
    code: str | None = None
    detail: str | None = None


class BatchOutcome(Result):
    results: tuple[SignalOutcome, ...]
    accepted: int
    duplicate: int
    refused: int


class DomainConsent(Result):
    opted_in: bool
    strength: float


class Consent(Result):
    """`revision` is what `set_consent(if_revision=...)` takes."""

    known: bool
    opted_in: bool
    paused: bool
    strength: float
    generation: int
    revision: int
    policy_version: str | None
    updated_at: datetime | None
    domains: dict[str, DomainConsent] = Field(default_factory=dict)


class ConsentReceipt(Result):
    """What was agreed to, and which text. Its signature covers the bytes as the server sent them, not this object."""

    format: str
    tenant: str
    subject: str
    opted_in: bool
    paused: bool
    strength: float
    domains: dict[str, DomainConsent]
    policy_version: str | None
    generation: int
    revision: int
    updated_at: datetime
    key_id: str
    signature: str


class SavedFile(Result):
    """`size` is in bytes."""

    path: Path
    size: int


class Archive(Result):
    """A zip file with all that is stored of a person. It is theirs: keep it nowhere longer than they need."""

    content: bytes = Field(repr=False)

    @classmethod
    def read(cls, content: bytes) -> Self:
        return cls(content=content)

    def save(self, path: Path) -> None:
        """To a new file that only its owner may read. Raises FileExistsError."""
        with open(path, "xb", opener=_private) as file:
            file.write(self.content)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class ResetStep(Result):
    step: str
    state: str


class CachePurges(Result):
    """Of all server processes that may hold something of the person in memory. `state`: confirmed, pending, unknown."""

    state: str
    confirmed: int | None = None
    pending: int | None = None
    silent: int | None = None


class ResetReceipt(Result):
    """Its signature covers the bytes as the server sent them, not this object."""

    format: str
    id: str
    tenant: str
    subject: str
    scope: str
    domain: str | None = None  # the one domain that was reset
    generation: int
    steps: tuple[ResetStep, ...]
    erased: dict[str, int]
    shared_releases: tuple[str, ...]
    shared_runs: tuple[str, ...] = ()  # trainings that had read the person and had not published yet
    completed_at: datetime
    state: str
    served: str = "confirmed"  # no process answers under an older generation any more
    caches: CachePurges | None = None  # None: from a server that does not say
    key_id: str
    signature: str


class DirectionExplanation(Result):
    """One direction along which people differ, and where the person stands: in numbers, in words (`says`), and by the
    public texts that a weight above 0 (`high`) or below (`low`) lifts. `clear`: beyond what noise alone gives."""

    direction: int
    weight: float
    noise: float | None
    uncertainty: float | None
    clear: bool | None
    says: str
    high: tuple[PublicText, ...]
    low: tuple[PublicText, ...]


class AdapterExplanation(Result):
    version: str
    release: str
    created_at: datetime
    norm: float | None
    privacy: dict[str, Any] | None
    carried_from: str | None = None  # the release that these weights had before the global model changed
    directions: tuple[DirectionExplanation, ...] = ()  # those that matter most come first


class SpentPrivacy(Result):
    unit: str
    runs: int
    rho: float
    epsilon: float
    delta: float
    budget_epsilon: float


class Explanation(Result):
    state: Consent
    adapter: AdapterExplanation | None
    spent: tuple[SpentPrivacy, ...]


class RankedCandidate(Result):
    """`index` is what feedback refers to."""

    index: int
    score: float
    relevance_score: float
    parts: Parts | None = None


class Choosing(Result):
    inference_id: str | None
    unrecorded: str | None = None
    asked: int
    received: int
    ranked: int
    ranking: tuple[RankedCandidate, ...]


class Choice(Result):
    index: int
    message: dict[str, Any]
    finish_reason: str | None = None


class TokenUsage(Result):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Result):
    """The best choice first. `personalization` is None if there was no text to rank."""

    id: str
    model: str
    created: int
    choices: tuple[Choice, ...]
    usage: TokenUsage
    idiolect: Choosing
    personalization: Personalization | None

    @property
    def text(self) -> str:
        """Of the best choice; empty if it has none."""
        return str(self.choices[0].message.get("content") or "")


class Token(Result):
    """`token` opens what its scopes say, for one person: hand it to that person's browser, and nowhere else."""

    token: str = Field(repr=False)
    expires_at: datetime
    scopes: tuple[str, ...]


class Upstream(Result):
    base_url: str
    model: str | None
    has_api_key: bool
    updated_at: datetime


class Retention(Result):
    """`days` is what holds; `own_days` what the tenant has set, None if it is the installation's own."""

    days: int
    own_days: int | None


class Removal(Result):
    removed: bool


class Health(Result):
    status: Literal["ok"]


class Readiness(Health):
    """`model` is `outdated` while the live global model can't be loaded, and the one before goes on; `candidate` is
    `missing` while one that is rolled out can't be."""

    model: str | None = None
    candidate: str | None = None
