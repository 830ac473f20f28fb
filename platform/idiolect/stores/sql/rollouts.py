"""Rollouts: made, moved by compare-and-swap on their revision, and read. Every change is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, delete, func, or_, select, update

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect.errors import ConflictError, InvalidInputError, PreconditionError
from idiolect.ids import new_id
from idiolect.rollouts.assignment import new_salt
from idiolect.rollouts.outcomes import Served
from idiolect.rollouts.plan import ACTIVE, FINAL, Candidate, Plan, Rollout
from idiolect.rollouts.verdicts import BY_HAND, Evidence, Move, Tally
from idiolect.stores.rollout_ports import RolloutHistory, RolloutReading
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append, behind
from idiolect.stores.sql.engine import CHUNK, Hold, hold, insert
from idiolect.stores.sql.global_trials import begin_trial, refuse_beside_a_trial, staged_digest, trial_fault
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.registry import set_live_global
from idiolect.stores.sql.rollout_members import ENROLLED, observe
from idiolect.stores.sql.rollout_promotion import promote
from idiolect.stores.sql.rollout_rows import (
    check_release,
    load,
    loaded,
    newest_seq,
    release_of,
    rollout_of,
    row_of,
    save,
    withdrawn,
    write_history,
)
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from idiolect.stores.sql.times import micros, moment

_O, _H = schema.rollouts.c, schema.rollout_history.c
_A, _M = schema.rollout_tallies.c, schema.rollout_members.c


class Rollouts(Part):
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
        plan.check_for(candidate.kind)
        if (candidate.kind == "global") is not (tenant == INSTALLATION):
            raise InvalidInputError(
                "a global model is the installation's to roll out, and anything else a tenant's.",
                mend="Have the operator start it, or name another candidate.",
            )
        id_ = rollout_id or new_id()
        draft = Rollout(id_, tenant, candidate, plan, "draft", 0, 0, "not enough data", reason, actor, now, now, ())
        return self._database.write(behind(tenant), lambda connection: _create(connection, draft, start))

    def rollout(self, tenant: str, rollout_id: str) -> Rollout | None:
        with self._database.reading(behind(tenant)) as connection:
            return load(connection, tenant, rollout_id)

    def rollouts(self, tenant: str, *, limit: int = 100) -> Sequence[Rollout]:
        query = select(schema.rollouts).where(_O.tenant == tenant).order_by(_O.created_at.desc(), _O.id.desc())
        with self._database.reading(behind(tenant)) as connection:
            return [rollout_of(row) for row in connection.execute(query.limit(limit))]

    def rollout_history(self, tenant: str, rollout_id: str) -> Sequence[RolloutHistory]:
        query = select(schema.rollout_history).where(_H.tenant == tenant, _H.rollout == rollout_id).order_by(_H.id)
        with self._database.reading(behind(tenant)) as connection:
            rows = connection.execute(query).all()
        return [RolloutHistory(row.state, row.step, row.verdict, moment(row.at), row.reason, row.actor) for row in rows]

    def active_rollouts(self) -> Sequence[tuple[str, str]]:
        slots = schema.rollout_slots.c
        with self._database.reading(ALL_TENANTS) as connection:
            found = {(tenant, rollout) for tenant, rollout in connection.execute(select(slots.tenant, slots.rollout))}
            found |= {(INSTALLATION, rollout) for rollout in connection.scalars(select(schema.global_trials.c.rollout))}
        return sorted(found)

    def rollout_reading(self, tenant: str, rollout_id: str) -> RolloutReading:
        with self._database.reading(behind(tenant)) as connection:
            rollout = loaded(connection, tenant, rollout_id)
            gone = (
                trial_fault(connection, rollout)
                if rollout.candidate.kind == "global"
                else withdrawn(connection, rollout, _release(connection, rollout))
            )
            return RolloutReading(rollout, _evidence(connection, rollout), gone)

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
        if action not in BY_HAND:
            raise InvalidInputError(f"{action[:80]!r} is no action.", mend=f"Use one of {', '.join(BY_HAND)}.")
        return self._database.write(
            behind(tenant),
            lambda connection: _steer(connection, tenant, rollout_id, action, now, reason, actor, if_revision),
        )

    def move_rollout(self, rollout: Rollout, move: Move, now: datetime, *, actor: str) -> Rollout:
        return self._database.write(
            behind(rollout.tenant), lambda connection: _move(connection, rollout, move, now, actor)
        )

    def observe_served(self, served: Sequence[Served]) -> int:
        """Not lasting: what a power cut takes away, it takes from both arms alike."""
        by_tenant: dict[str, list[Served]] = {}
        for one in served:
            by_tenant.setdefault(one.tenant, []).append(one)
        return sum(
            self._database.write(tenant, partial(observe, tenant=tenant, served=some), lasting=False)
            for tenant, some in sorted(by_tenant.items())
        )

    def forget_members(self, *, limit: int = CHUNK) -> int:
        return self._database.write(ALL_TENANTS, lambda connection: _forget(connection, limit))


def _create(connection: Connection, draft: Rollout, start: bool) -> Rollout:
    made = load(connection, draft.tenant, draft.id)
    if made is not None:
        return made
    if draft.candidate.kind == "global":
        named = Candidate("global", staged_digest(connection, draft.candidate.id))
        release, rollout = None, replace(draft, candidate=named, owners=(("global", ""),))
    else:
        release, owners = release_of(connection, draft.tenant, draft.candidate)
        rollout = replace(draft, owners=owners)
    row = insert(connection, schema.rollouts).values(row_of(rollout, new_salt(), release)).on_conflict_do_nothing()
    if not connection.execute(row).rowcount:  # sent twice at the same time, and the other was first
        return loaded(connection, draft.tenant, draft.id)
    write_history(connection, rollout, rollout.moved_at)
    if start:
        rollout = _begin(connection, rollout)
    _audit(connection, rollout, "rollout.create")
    return rollout


def _begin(connection: Connection, rollout: Rollout) -> Rollout:
    """Take the slots, and note who has moved on from when."""
    started = replace(rollout, state="running", revision=rollout.revision + 1)
    if rollout.candidate.kind == "global":
        begin_trial(connection, started)
    elif rollout.candidate.kind != "setting":
        refuse_beside_a_trial(connection)
    mine = (_O.tenant == rollout.tenant, _O.id == rollout.id)
    connection.execute(update(schema.rollouts).where(*mine).values(fence=newest_seq(connection, rollout.tenant)))
    save(connection, started, started.moved_at)
    return started


def _steer(
    connection: Connection,
    tenant: str,
    rollout_id: str,
    action: str,
    now: datetime,
    reason: str,
    actor: str,
    if_revision: int | None,
) -> Rollout:
    """No analysis, and no lock that a training or an import could hold: going back waits for nothing."""
    rollout = loaded(connection, tenant, rollout_id, lock=True)
    _check_revision(rollout, if_revision)
    sources, target = BY_HAND[action]
    if rollout.state == target and action == "abort":
        return rollout
    if rollout.state not in sources:
        raise ConflictError(
            f"the rollout is {rollout.state}, and {action} needs it to be {' or '.join(sources)}.",
            mend="Read it again and decide.",
        )
    moved = replace(rollout, reason=reason, actor=actor, moved_at=_after(rollout, now))
    if action == "start":
        release = _release(connection, rollout)
        if release is not None:
            check_release(connection, tenant, release)
        moved = _begin(connection, moved)
    else:
        # Holding and resuming stay in the step, whose answers go on counting.
        at = moved.moved_at if target in FINAL else rollout.moved_at
        moved = replace(moved, state=target, revision=rollout.revision + 1, moved_at=at)
        save(connection, moved, now)
    _audit(connection, moved, f"rollout.{action}", at=now)
    return moved


def _move(connection: Connection, seen: Rollout, move: Move, now: datetime, actor: str) -> Rollout:
    if move.promotes:
        hold(connection, seen.tenant, Hold.ONE_RUN)
    rollout = loaded(connection, seen.tenant, seen.id, lock=True)
    _check_revision(rollout, seen.revision)
    same_step = (move.step, move.state in FINAL) == (rollout.step, False)
    moved = replace(
        rollout,
        state=move.state,
        step=move.step,
        revision=rollout.revision + 1,
        verdict=move.verdict,
        reason=move.reason[:500],
        actor=actor,
        moved_at=rollout.moved_at if same_step else _after(rollout, now),
    )
    promoted = 0
    if move.promotes and moved.candidate.kind == "global":
        _make_live(connection, moved)
    elif move.promotes:
        release = _release(connection, rollout)
        assert release is not None
        check_release(connection, rollout.tenant, release)
        promoted = promote(connection, moved, release, _fence(connection, rollout))
    save(connection, moved, now)
    if (moved.state, moved.step) != (rollout.state, rollout.step):
        _audit(connection, moved, f"rollout.{moved.state}", promoted, at=now)
    return moved


def _make_live(connection: Connection, rollout: Rollout) -> None:
    """Compare-and-swap: from the model that the others were served by. The pointers of people follow later."""
    fault = trial_fault(connection, rollout)
    if fault is not None:
        raise ConflictError(f"the rollout {rollout.id} can't be completed: {fault}.", mend="Start another one.")
    row = {
        "digest": rollout.candidate.id,
        "at": micros(rollout.moved_at),
        "reason": f"rollout {rollout.id} completed",
        "actor": rollout.actor,
    }
    set_live_global(connection, row)


def _after(rollout: Rollout, now: datetime) -> datetime:
    return max(now, rollout.moved_at)  # a clock that went back must not let answers of the last step in


def _check_revision(rollout: Rollout, expected: int | None) -> None:
    if expected is not None and expected != rollout.revision:
        raise PreconditionError(
            f"the rollout is at revision {rollout.revision}, not {expected}.", mend="Read it again and decide."
        )


def _release(connection: Connection, rollout: Rollout) -> str | None:
    return connection.scalar(select(_O.release).where(_O.tenant == rollout.tenant, _O.id == rollout.id))


def _fence(connection: Connection, rollout: Rollout) -> int:
    return connection.scalar(select(_O.fence).where(_O.tenant == rollout.tenant, _O.id == rollout.id)) or 0


def _evidence(connection: Connection, rollout: Rollout) -> Evidence:
    """Of a global model: the sums of all tenants, each of which counts by itself."""
    mine = [_A.rollout == rollout.id, _A.step == rollout.tested_step]
    if rollout.tenant != INSTALLATION:
        mine.append(_A.tenant == rollout.tenant)
    sums = (func.sum(_A.people).label("people"), func.sum(_A.total).label("total"))
    query = select(_A.arm, _A.metric, *sums).where(*mine).group_by(_A.arm, _A.metric)
    rows = connection.execute(query).all()
    return Evidence(
        enrolled={row.arm: int(row.people) for row in rows if row.metric == ENROLLED},
        tallies={(row.arm, row.metric): Tally(int(row.people), row.total) for row in rows if row.metric != ENROLLED},
    )


def _audit(
    connection: Connection, rollout: Rollout, action: str, promoted: int = 0, *, at: datetime | None = None
) -> None:
    details = {"state": rollout.state, "step": rollout.step, "candidate": rollout.candidate.id, "pointers": promoted}
    event = AuditEvent(rollout.actor, action, f"rollout {rollout.id}", rollout.reason, details)
    append(connection, rollout.tenant, event, micros(at or rollout.moved_at))


def _forget(connection: Connection, limit: int) -> int:
    """Members of rollouts that ended, at most `limit` at a time, so that no write takes long."""
    own = or_(_O.tenant == _M.tenant, _O.tenant == INSTALLATION)
    ended = select(_O.id).where(own, _O.id == _M.rollout, _O.state.in_(ACTIVE)).exists()
    found = connection.execute(select(_M.tenant, _M.subject, _M.rollout).where(~ended).limit(limit)).all()
    for tenant, subject, rollout in found:
        mine = (_M.tenant == tenant, _M.subject == subject, _M.rollout == rollout)
        connection.execute(delete(schema.rollout_members).where(*mine))
    return len(found)
