"""Rollouts, for a tenant's admins."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from idiolect.rollouts.plan import DEFAULT_GUARDRAILS, Candidate, Guardrail, Metric, Plan, State
from idiolect_services.gateway.schemas.common import PlainText, RequestModel, ResponseModel

_DEFAULTS = Plan()


class OwnRequest(RequestModel):
    """Unknown fields are refused: this API is nobody else's, and a `salt` that was ignored would look accepted."""

    model_config = ConfigDict(extra="forbid")


class CandidateFields(OwnRequest):
    kind: Literal["version", "release", "setting", "global"]
    id: PlainText = Field(
        "",
        max_length=200,
        description="Of a domain's version, or of a release; or the digest of a staged global model, or `latest`.",
    )
    strength: float | None = Field(None, description="Of a setting: multiplies the person's own; 0 is off.")

    def candidate(self) -> Candidate:
        return Candidate(self.kind, self.id, self.strength)


class RolloutRequest(OwnRequest):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "candidate": {"kind": "setting", "strength": 0.5},
                    "steps": [0.05, 0.5],
                    "reason": "milder for everybody",
                }
            ]
        }
    )

    candidate: CandidateFields
    steps: list[float] = Field(
        list(_DEFAULTS.steps), description="Shares of people, rising; the last is 1, and below 1 for a setting."
    )
    guardrails: dict[Metric, float] = Field(
        {guardrail.metric: guardrail.margin for guardrail in DEFAULT_GUARDRAILS},
        description="The harm that is tolerated: a difference of means, or for `complaints` a ratio above 1.",
    )
    min_people: int = Field(_DEFAULTS.min_people, description="In each arm, before a step may end well.")
    per_person: int = Field(_DEFAULTS.per_person, description="Requests, and answers, of a person that are averaged.")
    slow_ms: float = Field(_DEFAULTS.slow_ms, description="Scoring that takes longer than this counts as slow.")
    alpha: float = Field(_DEFAULTS.alpha, description="Bound on a false alarm in the whole rollout.")
    start: bool = Field(True, description="False leaves a draft, which serves nobody.")
    reason: PlainText = Field(min_length=1, max_length=500, description="Kept in the history.")

    def plan(self) -> Plan:
        """Raises InvalidInputError."""
        guardrails = tuple(Guardrail(metric, margin) for metric, margin in self.guardrails.items())
        return Plan(tuple(self.steps), guardrails, self.min_people, self.per_person, self.slow_ms, self.alpha)


class SteerRequest(OwnRequest):
    reason: PlainText = Field(min_length=1, max_length=500, description="Kept in the history.")


class CandidateState(ResponseModel):
    kind: str
    id: str | None
    strength: float | None


class PlanState(ResponseModel):
    steps: list[float]
    guardrails: dict[str, float]
    min_people: int
    per_person: int
    slow_ms: float
    alpha: float


class RolloutState(ResponseModel):
    id: str
    candidate: CandidateState
    covers: list[str] = Field(description="`user`, `setting`, `domain:NAME`, or `global`: everybody.")
    plan: PlanState
    state: State
    step: int = Field(description="From 1.")
    share: float = Field(description="Of people who are on the candidate now.")
    verdict: str = Field(
        description="`healthy`, `breach`, `inconclusive`, `sample ratio mismatch` or `not enough data`."
    )
    reason: str
    actor: str
    revision: int
    created_at: datetime
    moved_at: datetime


class RolloutList(ResponseModel):
    rollouts: list[RolloutState] = Field(description="Newest first.")


class ArmState(ResponseModel):
    people: int
    mean: float | None


class Harm(ResponseModel):
    low: float
    high: float
    limit: float


class GuardrailState(ResponseModel):
    metric: str
    verdict: str
    control: ArmState
    candidate: ArmState
    harm: Harm = Field(description="Bounds that hold at all times at once, and where harm becomes a breach.")


class EvaluationState(ResponseModel):
    verdict: str
    explanation: str
    guardrails: list[GuardrailState]


class HistoryEntry(ResponseModel):
    state: str
    step: int
    verdict: str
    at: datetime
    reason: str
    actor: str


class RolloutDetail(RolloutState):
    enrolled: dict[str, int] = Field(description="People who were served in this step, by arm.")
    evaluation: EvaluationState
    history: list[HistoryEntry]
