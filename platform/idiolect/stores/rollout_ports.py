"""What rollouts ask of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from idiolect.registry.pointers import Adapter
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


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A global model that was trained and is live for nobody yet. `passage`: what writes adapters of the model `base`
    in its basis; None for both if none was carried to it."""

    digest: str
    base: str | None
    passage: bytes | None
    at: datetime
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class GlobalTrial:
    """The rollout of a global model that is under way. `served`: to a share of people; else it is complete, and the
    last pointers follow."""

    rollout: str
    candidate: str
    base: str  # the model that was live when it began
    served: bool


class GlobalRolloutStore(Protocol):
    """Of the installation: a global model is every tenant's. Its rollouts are those of the tenant INSTALLATION."""

    def stage_model(self, model: StagedModel) -> None:
        """Again replaces what was said of it."""
        ...

    def staged_model(self, digest: str) -> StagedModel | None:
        """`latest`: the one that was staged last."""
        ...

    def global_trial(self) -> GlobalTrial | None: ...

    def left_behind(
        self, tenant: str, digest: str, *, after: str = "", limit: int = 1000
    ) -> Sequence[tuple[Adapter, str]]:
        """Live versions of another model that have no counterpart on this one, in order of adapter."""
        ...

    def is_carried(self, tenant: str, version_id: str, digest: str) -> bool:
        """Whether a version that may be served on the model was carried from this one."""
        ...

    def waiting_releases(self, digest: str) -> Sequence[tuple[str, str]]:
        """(tenant, release) of what was carried to the model, and whose pointers have not followed."""
        ...

    def follow_model(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> int:
        """Pointers that name what a version of this release was carried from move to it; how many did. The others of
        the release are withheld. Harmless to repeat."""
        ...

    def end_global_trial(self, rollout_id: str) -> None:
        """Once all pointers have followed; of a rollout that is not complete nothing changes."""
        ...


class RolloutStore(GlobalRolloutStore, Protocol):
    def create_rollout(
        self,
        tenant: str,
        candidate: Candidate,
        plan: Plan,
        now: datetime,
        *,
        reason: str,
        actor: str,
        start: bool,
        rollout_id: str | None = None,
    ) -> Rollout:
        """A draft, or with `start` a running one. Its salt is drawn here and never told. A global model is the
        candidate of the tenant INSTALLATION only, which has no others; it may be named `latest`.

        One that is there under `rollout_id` is answered as it now is: sent again, nothing is made twice.

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
