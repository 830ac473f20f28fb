"""What the API answers operators about rollouts."""

from __future__ import annotations

from datetime import datetime

from idiolect.client.results import Result


class RolloutCandidate(Result):
    """`id` of a version, release or global model; of a setting the `strength`."""

    kind: str
    id: str | None
    strength: float | None


class RolloutPlan(Result):
    steps: tuple[float, ...]
    guardrails: dict[str, float]
    min_people: int
    per_person: int
    slow_ms: float
    alpha: float


class Rollout(Result):
    """`share` of people are on the candidate now. `revision` is what `if_revision` takes."""

    id: str
    candidate: RolloutCandidate
    covers: tuple[str, ...]
    plan: RolloutPlan
    state: str
    step: int  # from 1
    share: float
    verdict: str
    reason: str
    actor: str
    revision: int
    created_at: datetime
    moved_at: datetime


class Rollouts(Result):
    """Newest first."""

    rollouts: tuple[Rollout, ...]


class Arm(Result):
    people: int
    mean: float | None


class Harm(Result):
    """Bounds that hold at all times at once, and the `limit` from which harm is a breach."""

    low: float
    high: float
    limit: float


class GuardrailReading(Result):
    metric: str
    verdict: str
    control: Arm
    candidate: Arm
    harm: Harm


class Evaluation(Result):
    verdict: str
    explanation: str
    guardrails: tuple[GuardrailReading, ...]


class RolloutStep(Result):
    state: str
    step: int
    verdict: str
    at: datetime
    reason: str
    actor: str


class RolloutDetail(Rollout):
    """`enrolled`: people who were served in this step, by arm."""

    enrolled: dict[str, int]
    evaluation: Evaluation
    history: tuple[RolloutStep, ...]
