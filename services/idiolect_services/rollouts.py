"""Counting what is served under rollouts, and evaluating them: in the server's own thread, or once from cron."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from idiolect.errors import ConflictError, IdiolectError, PreconditionError
from idiolect.rollouts.outcomes import Served
from idiolect.rollouts.plan import ACTIVE, Rollout
from idiolect.rollouts.verdicts import Evaluation, Move, evaluate, next_move
from idiolect.stores.ports import Store
from idiolect_services.periodic import Periodic
from idiolect_services.wiring import Installation

log = logging.getLogger("idiolect.rollouts")

EVALUATE_SECONDS = 10.0
MAX_WAITING = 100_000  # requests that are not counted yet; beyond it the oldest are dropped, of both arms alike
BATCH = 1_000
ACTOR = "evaluator"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """`moved` is False if everything stays as it is, or another evaluator was first."""

    rollout: Rollout
    evaluation: Evaluation
    moved: bool


class Counter:
    """Requests on their way to the store. `note` only appends, so the event loop may call it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Served] = deque(maxlen=MAX_WAITING)

    def note(self, served: Served) -> None:
        self._waiting.append(served)

    def flush(self) -> None:
        """Raises UnavailableError; what was not counted then waits on."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                self._store.observe_served(batch)
            except IdiolectError:
                self._waiting.extendleft(reversed(batch))
                raise


def evaluate_rollout(installation: Installation, tenant: str, rollout_id: str) -> Evaluated:
    """Look once, and make at most one move. Raises NotFoundError for an unknown rollout."""
    reading = installation.store.rollout_reading(tenant, rollout_id)
    rollout = reading.rollout
    evaluation = evaluate(rollout.plan, rollout.tested_step, reading.evidence)
    if rollout.candidate.kind == "global" and rollout.state == "completed":
        _finish(installation, rollout)
        return Evaluated(rollout, evaluation, False)
    move = next_move(rollout, evaluation)
    if reading.withdrawn is not None and rollout.state in ACTIVE:
        move = Move("rolled_back", rollout.step, rollout.verdict, f"the candidate is gone: {reading.withdrawn}")
    if move is None:
        return Evaluated(rollout, evaluation, False)
    of_everybody = move.promotes and rollout.candidate.kind == "global"
    if of_everybody:
        _prepare(installation)
    try:
        moved = installation.store.move_rollout(rollout, move, installation.clock.now(), actor=ACTOR)
    except PreconditionError:
        return Evaluated(rollout, evaluation, False)  # somebody else moved it: the next look is at what they left
    if (moved.state, moved.step) != (rollout.state, rollout.step):
        log.warning("rollout %s is %s at step %d: %s", moved.id, moved.state, moved.step + 1, moved.reason)
    if of_everybody:
        _finish(installation, moved)
    return Evaluated(moved, evaluation, True)


def _prepare(installation: Installation) -> None:
    from idiolect_services.global_rollouts import before_completion  # it imports torch, which most looks don't need

    before_completion(installation)


def _finish(installation: Installation, rollout: Rollout) -> None:
    from idiolect_services.global_rollouts import after_completion

    log.warning("rollout %s: %d pointers followed", rollout.id, after_completion(installation, rollout))


def evaluate_all(installation: Installation) -> Sequence[Evaluated]:
    """Every active rollout of every tenant. One that fails is logged and does not keep the others waiting."""
    done: list[Evaluated] = []
    for tenant, rollout_id in installation.store.active_rollouts():
        try:
            done.append(evaluate_rollout(installation, tenant, rollout_id))
        except ConflictError as error:  # its candidate was revoked just now: the next look rolls it back
            log.warning("rollout %s was not moved: %s", rollout_id, error)
        except IdiolectError as error:
            log.warning("rollout %s was not evaluated: %s", rollout_id, error)
    while installation.store.forget_members():
        pass
    return done


class RolloutLoop(Periodic):
    """One thread that counts and evaluates. All that it decides from is in the store, so a crash loses a few counts."""

    def __init__(self, installation: Installation) -> None:
        super().__init__("rollouts", EVALUATE_SECONDS)
        self._installation = installation
        self._counter = Counter(installation.store)
        self.note = self._counter.note

    def stop(self) -> None:
        """What was served is still counted."""
        super().stop()
        self.try_once()

    def run_once(self) -> Sequence[Evaluated]:
        self._counter.flush()
        return evaluate_all(self._installation)
