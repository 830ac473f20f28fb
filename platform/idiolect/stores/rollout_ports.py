"""What rollouts ask of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from idiolect.rollouts.outcomes import Served
from idiolect.rollouts.plan import Candidate, Plan, Rollout
from idiolect.rollouts.verdicts import Evidence, Move


@dataclass(frozen=True, slots=True)
class RolloutHistory:
    state: str
    step: int
    verdict: str
    at: datetime
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class RolloutReading:
    """One snapshot. `withdrawn`: why the candidate can be served to nobody any more, or None."""

    rollout: Rollout
    evidence: Evidence
    withdrawn: str | None


class RolloutStore(Protocol):
    def create_rollout(
        self, tenant: str, candidate: Candidate, plan: Plan, now: datetime, *, reason: str, actor: str, start: bool
    ) -> Rollout:
        """A draft, or with `start` a running one. Its salt is drawn here and never told.

        Raises NotFoundError for a candidate that this tenant does not have, InvalidInputError for one that can't be
        rolled out, ConflictError for one that may not be served or whose pointer has a rollout already.
        """
        ...

    def rollout(self, tenant: str, rollout_id: str) -> Rollout | None: ...

    def rollouts(self, tenant: str, *, limit: int = 100) -> Sequence[Rollout]:
        """Newest first."""
        ...

    def rollout_history(self, tenant: str, rollout_id: str) -> Sequence[RolloutHistory]:
        """Oldest first."""
        ...

    def active_rollouts(self) -> Sequence[tuple[str, str]]:
        """(tenant, id) of those that are running or held."""
        ...

    def rollout_reading(self, tenant: str, rollout_id: str) -> RolloutReading:
        """Raises NotFoundError."""
        ...

    def steer_rollout(
        self,
        tenant: str,
        rollout_id: str,
        action: str,
        now: datetime,
        *,
        reason: str,
        actor: str,
        if_revision: int | None = None,
    ) -> Rollout:
        """`start`, `hold`, `resume` or `abort` by hand: one write, which looks at no statistics.

        Aborting again changes nothing. Raises NotFoundError, PreconditionError, ConflictError for a state that does not
        allow it.
        """
        ...

    def move_rollout(self, rollout: Rollout, move: Move, now: datetime, *, actor: str) -> Rollout:
        """Carry out a move that was decided on `rollout`. Raises PreconditionError if it has changed since: of several
        evaluators one makes the step."""
        ...

    def observe_served(self, served: Sequence[Served]) -> int:
        """Count requests of people who take part; how many counted."""
        ...

    def forget_members(self, *, limit: int = 5000) -> int:
        """Erase rows of people from rollouts that ended, at most `limit`; how many were. The sums stay."""
        ...
