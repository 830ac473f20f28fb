"""What a person has agreed to, as one frozen value per (tenant, subject)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from idiolect.errors import InvalidInputError

# The text that a person agrees to when opting in; a new text gets a new version.
POLICY_VERSION = "2026-11"

Refusal = Literal["unknown_user", "not_opted_in", "paused"]


@dataclass(frozen=True, slots=True)
class SubjectState:
    """`generation` fences everything older; `revision` counts every change and is the ETag."""

    subject: str  # pseudonym
    known: bool = False
    opted_in: bool = False
    paused: bool = False
    strength: float = 1.0  # in [0, 1]; scales the personal part only
    generation: int = 0
    revision: int = 0
    policy_version: str | None = None
    updated_at: datetime | None = None

    def refusal(self) -> Refusal | None:
        """Why this person gets no personal part, or None if they may."""
        if not self.known:
            return "unknown_user"
        if not self.opted_in:
            return "not_opted_in"
        return "paused" if self.paused else None


@dataclass(frozen=True, slots=True)
class ConsentChange:
    """A change that the person asked for; None leaves a field as it is."""

    opted_in: bool | None = None
    paused: bool | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.strength is not None and not (math.isfinite(self.strength) and 0.0 <= self.strength <= 1.0):
            raise InvalidInputError(f"strength {self.strength!r} is out of range.", mend="Send a number from 0 to 1.")


def apply_change(state: SubjectState, change: ConsentChange, now: datetime) -> SubjectState:
    """The next state. Opting out raises the generation, so that nothing learned before can be served again."""
    opted_in = state.opted_in if change.opted_in is None else change.opted_in
    withdrawn = state.opted_in and not opted_in
    return replace(
        state,
        known=True,
        opted_in=opted_in,
        paused=state.paused if change.paused is None else change.paused,
        strength=state.strength if change.strength is None else change.strength,
        generation=state.generation + 1 if withdrawn else state.generation,
        revision=state.revision + 1,
        # Only opting in agrees to the text of today; another change keeps what was agreed to.
        policy_version=POLICY_VERSION if change.opted_in else state.policy_version if opted_in else None,
        updated_at=now,
    )
