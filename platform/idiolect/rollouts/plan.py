"""What a rollout is: its candidate, its steps, its guardrails, and the state that it is in. Checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, get_args

from idiolect.errors import InvalidInputError

CandidateKind = Literal["version", "release", "setting", "global"]
State = Literal["draft", "running", "held", "completed", "rolled_back", "aborted"]
Metric = Literal["success", "slow", "fallback", "failed", "complaints"]
Slot = Literal["user", "domain", "setting", "global"]
LATEST = "latest"  # stands for the global model that was staged last

METRICS: tuple[Metric, ...] = get_args(Metric)
ACTIVE: tuple[State, ...] = ("running", "held")  # the candidate is served to its share
FINAL: tuple[State, ...] = ("completed", "rolled_back", "aborted")

DEFAULT_STEPS = (0.01, 0.05, 0.25, 1.0)
MAX_STEPS = 20
MAX_PER_PERSON = 20


def _check_steps(steps: Sequence[float]) -> None:
    if not 1 <= len(steps) <= MAX_STEPS:
        raise _bad(f"a list of {len(steps)} steps", f"Use 1 to {MAX_STEPS}.")
    for share in steps:
        if not (_is_number(share) and 1e-4 <= share <= 1):
            raise _bad(f"the share {share!r}", "Use shares from 0.0001 to 1.")
    if any(after <= before for before, after in pairwise(steps)):
        raise _bad(f"the order of the steps {list(steps)}", "Make each larger than the one before.")
    if steps[0] == 1:
        raise _bad("a first step of 1", "Start below 1, so that there is somebody to compare with.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _bad(what: str, mend: str) -> InvalidInputError:
    return InvalidInputError(f"{what} of the rollout can't be used.", mend=mend)


@dataclass(frozen=True, slots=True)
class Candidate:
    """`id`: of a domain's version or of a release, or a global model's digest; empty for a setting. `strength`: of a
    setting, what the person's own is multiplied by; 0 is personalization off.
    """

    kind: CandidateKind
    id: str = ""
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(CandidateKind):
            raise _bad(f"the kind {self.kind!r}", "Use version, release, setting or global.")
        if (self.kind == "setting") is bool(self.id) or (self.kind == "setting") is (self.strength is None):
            raise _bad(
                "the candidate", "Name a version, a release or a global model by its id, or a setting by its strength."
            )
        if self.strength is not None and not (_is_number(self.strength) and 0 <= self.strength < 1):
            raise _bad(f"the strength {self.strength!r}", "Use a number from 0 (off) to below 1 (as it is).")


@dataclass(frozen=True, slots=True)
class Guardrail:
    """`margin`: the harm that is tolerated. For `complaints` it is relative (1: twice as many), for the others a
    difference of two means in [0, 1].
    """

    metric: Metric
    margin: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise _bad(f"the metric {self.metric!r}", f"Use one of {', '.join(METRICS)}.")
        most = 100.0 if self.metric == "complaints" else 1.0
        if not (_is_number(self.margin) and 0 <= self.margin < most):
            raise _bad(f"the margin {self.margin!r} of {self.metric}", f"Use a number from 0 to below {most:g}.")


DEFAULT_GUARDRAILS = (
    Guardrail("success", 0.05),
    Guardrail("slow", 0.1),
    Guardrail("fallback", 0.05),
    Guardrail("failed", 0.05),
    Guardrail("complaints", 1.0),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """`min_people`: in each arm, before a step may end well. `per_person`: how many requests, and how many answers, of
    one person are averaged into the one value that they contribute to a step.
    """

    steps: tuple[float, ...] = DEFAULT_STEPS
    guardrails: tuple[Guardrail, ...] = DEFAULT_GUARDRAILS
    min_people: int = 100
    per_person: int = 1
    slow_ms: float = 250.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        metrics = [guardrail.metric for guardrail in self.guardrails]
        if not metrics or len(set(metrics)) != len(metrics):
            raise _bad("the list of guardrails", "Name at least one, and each metric once.")
        if not _is_whole(self.min_people, 1, 10**9):
            raise _bad(f"min_people {self.min_people!r}", "Use a whole number of at least 1.")
        if not _is_whole(self.per_person, 1, MAX_PER_PERSON):
            raise _bad(f"per_person {self.per_person!r}", f"Use a whole number from 1 to {MAX_PER_PERSON}.")
        if not (_is_number(self.slow_ms) and self.slow_ms > 0):
            raise _bad(f"slow_ms {self.slow_ms!r}", "Use a positive number.")
        if not (_is_number(self.alpha) and 1e-6 <= self.alpha <= 0.5):
            raise _bad(f"alpha {self.alpha!r}", "Use a number from 0.000001 to 0.5.")

    @property
    def tested_steps(self) -> int:
        """Those with a control arm."""
        return sum(share < 1 for share in self.steps)

    @property
    def alpha_per_test(self) -> float:
        """Union bound over every guardrail of every step, so that `alpha` holds for the rollout as a whole."""
        return self.alpha / (len(self.guardrails) * self.tested_steps)

    def check_for(self, kind: CandidateKind) -> None:
        """Raises InvalidInputError if the last step does not fit the candidate."""
        if kind == "setting" and self.steps[-1] == 1.0:
            raise _bad("a last step of 1 for a setting", "End below 1: a strength is the person's own.")
        if kind != "setting" and self.steps[-1] != 1.0:
            raise _bad("the last step", "End with 1: there the live pointer moves.")

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "guardrails": {guardrail.metric: guardrail.margin for guardrail in self.guardrails},
            "min_people": self.min_people,
            "per_person": self.per_person,
            "slow_ms": self.slow_ms,
            "alpha": self.alpha,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        return Plan(
            steps=tuple(data["steps"]),
            guardrails=tuple(Guardrail(metric, margin) for metric, margin in data["guardrails"].items()),
            min_people=data["min_people"],
            per_person=data["per_person"],
            slow_ms=data["slow_ms"],
            alpha=data["alpha"],
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """`step` counts from 0; `revision` counts every change. Its salt never leaves the store."""

    id: str
    tenant: str
    candidate: Candidate
    plan: Plan
    state: State
    step: int
    revision: int
    verdict: str  # of the last evaluation
    reason: str  # of the last change
    actor: str
    created_at: datetime
    moved_at: datetime  # when it came to this step or state
    owners: tuple[tuple[Slot, str], ...]  # what it covers: ("domain", NAME), or one of the others and ""

    @property
    def tested_step(self) -> int:
        """The step whose counts decide: a rollout that completed has none of its own any more."""
        return min(self.step, self.plan.tested_steps - 1)

    @property
    def share(self) -> float:
        """What share of people is on the candidate now."""
        if self.state == "completed":
            return self.plan.steps[-1] if self.candidate.kind != "setting" else 0.0
        return self.plan.steps[self.step] if self.state in ACTIVE else 0.0
