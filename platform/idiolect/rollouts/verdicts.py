"""From counts to an explicit word, and from the word to what happens next. Nothing here reads a clock or a store.

| word | means | and then |
|---|---|---|
| `breach` | harm beyond a guardrail's margin is shown | rolled back, at any number of people |
| `sample ratio mismatch` | the arms are not filled at the stated share, so nothing can be believed | held |
| `not enough data` | fewer people than the step asks for, and no harm shown | stays |
| `inconclusive` | enough people, but harm beyond a margin is neither shown nor excluded | stays |
| `healthy` | harm beyond every margin is excluded | advances; at the end it completes |

A breach goes first, for going back is safe even if the data is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from idiolect.rollouts.assignment import Arm
from idiolect.rollouts.plan import ACTIVE, Guardrail, Metric, Plan, Rollout, State
from idiolect.rollouts.sequential import difference, proportion, ratio_evidence

Verdict = Literal["healthy", "breach", "inconclusive", "sample ratio mismatch", "not enough data"]

# For a whole rollout, on top of `alpha`. Small, because a mismatch stops everything until a person has looked.
RATIO_ALPHA = 0.001


@dataclass(frozen=True, slots=True)
class Tally:
    """People who contributed a value, and the sum of the values, each in [0, 1]."""

    people: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.total / self.people if self.people else None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one step. `enrolled`: people who were served in it; of `complaints` only `total` counts."""

    enrolled: Mapping[Arm, int] = field(default_factory=dict)
    tallies: Mapping[tuple[Arm, Metric], Tally] = field(default_factory=dict)

    def people(self, arm: Arm) -> int:
        return self.enrolled.get(arm, 0)

    def tally(self, arm: Arm, metric: Metric) -> Tally:
        return self.tallies.get((arm, metric), Tally())


@dataclass(frozen=True, slots=True)
class Reading:
    """One guardrail. `low` and `high` bound the harm: a difference, or for complaints the candidate's share of them;
    `limit` is where it becomes too much.
    """

    metric: Metric
    control: Tally
    candidate: Tally
    low: float
    high: float
    limit: float

    @property
    def verdict(self) -> Verdict:
        if self.low > self.limit:
            return "breach"
        # Complaints are rare, so their absence proves little: they can stop a rollout, and need not be disproved.
        return "healthy" if self.metric == "complaints" or self.high < self.limit else "inconclusive"

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "verdict": self.verdict,
            "control": {"people": self.control.people, "mean": self.control.mean},
            "candidate": {"people": self.candidate.people, "mean": self.candidate.mean},
            "harm": {"low": self.low, "high": self.high, "limit": self.limit},
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    verdict: Verdict
    explanation: str
    readings: tuple[Reading, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "explanation": self.explanation,
            "guardrails": [reading.to_json() for reading in self.readings],
        }


def evaluate(plan: Plan, step: int, evidence: Evidence) -> Evaluation:
    share = plan.steps[step]
    readings = tuple(read(plan, guardrail, share, evidence) for guardrail in plan.guardrails)
    verdict, explanation = _judge(plan, share, readings, evidence)
    return Evaluation(verdict, explanation, readings)


def read(plan: Plan, guardrail: Guardrail, share: float, evidence: Evidence) -> Reading:
    metric, alpha = guardrail.metric, plan.alpha_per_test
    control, candidate = evidence.tally("control", metric), evidence.tally("candidate", metric)
    if metric == "complaints":
        # Without an effect each complaint comes from the candidate's arm with the probability `share`, exactly.
        limit = share * (1 + guardrail.margin) / (share * (1 + guardrail.margin) + 1 - share)
        found = proportion(control.total + candidate.total, candidate.total, alpha)
        return Reading(metric, control, candidate, float(found.low), float(found.high), limit)
    found = difference(control.people, control.total, candidate.people, candidate.total, alpha)
    low, high = float(found.low), float(found.high)
    if metric == "success":
        low, high = -high, -low  # harm is success that is lost
    return Reading(metric, control, candidate, low, high, guardrail.margin)


def _judge(plan: Plan, share: float, readings: tuple[Reading, ...], evidence: Evidence) -> tuple[Verdict, str]:
    harmed = [reading.metric for reading in readings if reading.verdict == "breach"]
    unsure = [reading.metric for reading in readings if reading.verdict == "inconclusive"]
    if harmed:
        return "breach", f"harm beyond the margin is shown for: {', '.join(harmed)}"
    control, candidate = evidence.people("control"), evidence.people("candidate")
    if share < 1 and float(ratio_evidence(control, candidate, share)) > math.log(plan.tested_steps / RATIO_ALPHA):
        return (
            "sample ratio mismatch",
            f"{candidate} of {control + candidate} people are on the candidate, where a share of {share:g} was set",
        )
    if min(control, candidate) < plan.min_people:
        return "not enough data", f"{min(control, candidate)} people in the smaller arm, {plan.min_people} are needed"
    if unsure:
        return "inconclusive", f"harm beyond the margin is neither shown nor excluded for: {', '.join(unsure)}"
    return "healthy", f"harm beyond every margin is excluded, with {candidate} people on the candidate"


@dataclass(frozen=True, slots=True)
class Move:
    """What a rollout becomes. `promotes`: its candidate becomes live for everybody, in the same transaction."""

    state: State
    step: int
    verdict: str
    reason: str
    promotes: bool = False


def next_move(rollout: Rollout, evaluation: Evaluation) -> Move | None:
    """None if everything stays as it is. A held rollout still rolls back, and never advances by itself."""
    if rollout.state not in ACTIVE:
        return None
    verdict, why = evaluation.verdict, evaluation.explanation
    if verdict == "breach":
        return Move("rolled_back", rollout.step, verdict, why)
    if verdict == "sample ratio mismatch" and rollout.state == "running":
        return Move("held", rollout.step, verdict, why)
    if verdict == "healthy" and rollout.state == "running":
        return _onwards(rollout, why)
    return None if verdict == rollout.verdict else Move(rollout.state, rollout.step, verdict, why)


def _onwards(rollout: Rollout, why: str) -> Move:
    steps, after = rollout.plan.steps, rollout.step + 1
    if after == len(steps):  # the last step of a setting's test
        return Move("completed", rollout.step, "healthy", why)
    if steps[after] == 1:
        return Move("completed", after, "healthy", why, promotes=True)
    return Move("running", after, "not enough data", f"step {rollout.step + 1} was healthy: {why}")


# What a person may do by hand, and from where. Aborting looks at nothing else.
BY_HAND: Mapping[str, tuple[tuple[State, ...], State]] = {
    "start": (("draft",), "running"),
    "hold": (("running",), "held"),
    "resume": (("held",), "running"),
    "abort": (("draft", "running", "held"), "aborted"),
}
