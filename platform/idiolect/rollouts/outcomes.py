"""What one person contributes to a step: at most one value in [0, 1] for each metric, and it never changes again.

Requests of one person are not independent, so people are counted, not requests. A value is the mean over a person's
first `per_person` requests (or answers) in the step, and counts when the last of them came. What comes later is
ignored: a value that kept moving would break the guarantee of the sequential test. Whoever asks a thousand times
weighs no more than whoever asks once. The next step starts afresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from idiolect.rollouts.assignment import Arm
from idiolect.rollouts.plan import Metric

SERVED_METRICS: tuple[Metric, ...] = ("slow", "fallback", "failed")


@dataclass(frozen=True, slots=True)
class Trial:
    """That a request was resolved under a rollout. `strength` multiplies the person's own; 1 in the control arm."""

    rollout: str
    step: int
    arm: Arm
    slot: str
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """One request of a person who takes part. A failed one may name no trial: it counts where they are enrolled."""

    tenant: str
    subject: str
    trials: tuple[Trial, ...]
    seconds: float
    fallback: bool = False  # what was resolved could not be applied
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A person in a step, so far: bounded, and gone when the rollout ends or the person is reset."""

    arm: Arm
    requests: int = 0
    slow: int = 0
    fallback: int = 0
    failed: int = 0
    answers: int = 0
    success: float = 0.0
    complained: bool = False


Contributions = Mapping[Metric, float]


def after_request(member: Member, served: Served, per_person: int, slow_ms: float) -> tuple[Member, Contributions]:
    """The member, and what they contribute now: everything at once with their last request that counts."""
    if member.requests >= per_person:
        return member, {}
    after = replace(
        member,
        requests=member.requests + 1,
        slow=member.slow + (served.seconds * 1000 > slow_ms),
        fallback=member.fallback + served.fallback,
        failed=member.failed + served.failed,
    )
    if after.requests < per_person:
        return after, {}
    return after, {metric: getattr(after, metric) / per_person for metric in SERVED_METRICS}


def after_answer(member: Member, success: float, per_person: int) -> tuple[Member, Contributions]:
    if member.answers >= per_person:
        return member, {}
    after = replace(member, answers=member.answers + 1, success=member.success + success)
    return after, {"success": after.success / per_person} if after.answers == per_person else {}


def success_of(kind: str, value: Any, shown: Sequence[int]) -> float | None:
    """How right the order shown was, from 0 to 1; None if the signal says nothing about it.

    choice, accept: 1 for the first, 0 for the last. dismiss: the reverse. ranking, rating: the share of pairs in order.
    """
    place = {index: position for position, index in enumerate(shown)}
    if len(place) < 2 or value is None:  # no value: it was randomised before it was stored
        return None
    if kind in ("choice", "accept", "dismiss"):
        if not isinstance(value, int) or value not in place:
            return None  # of a document that was not shown
        depth = place[value] / (len(place) - 1)
        return depth if kind == "dismiss" else 1.0 - depth
    if kind == "ranking":
        return _share_in_order([place[index] for index in value], [-float(rank) for rank in range(len(value))])
    if kind == "rating":
        return _share_in_order([place[index] for index, _ in value], [float(stars) for _, stars in value])
    return None


MAX_JUDGED = 50  # of a long ranking; pairs grow with the square


def _share_in_order(places: Sequence[int], liking: Sequence[float]) -> float | None:
    judged = list(zip(places, liking, strict=True))[:MAX_JUDGED]
    pairs = [(a, b) for a in judged for b in judged if a[1] > b[1]]
    return sum(a[0] < b[0] for a, b in pairs) / len(pairs) if pairs else None
