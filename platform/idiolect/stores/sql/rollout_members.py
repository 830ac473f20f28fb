"""Counting: one bounded row per person while a rollout runs, and sums per arm and step that stay.

Locks are taken in one order: the rollouts (only who enrolls), then members, then tallies. So two writers never wait for
each other, and nobody is enrolled twice. A rollout of a global model is every tenant's, so those who enroll in it wait
for others of their own tenant only; each tenant has its own sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from idiolect.rollouts.outcomes import (
    Contributions,
    Member,
    Served,
    Trial,
    after_answer,
    after_request,
    success_of,
)
from idiolect.rollouts.plan import ACTIVE, Rollout
from idiolect.signals.events import Inference
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow, Hold, among, chunks, hold, insert, queue_up
from idiolect.stores.sql.global_trials import running_trial, trial_rollout
from idiolect.stores.sql.people import tombstoned
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.rollout_rows import rollout_of

ENROLLED = "enrolled"

_O, _M = schema.rollouts.c, schema.rollout_members.c
_KEYS = ("tenant", "subject", "rollout")
_MINE = (
    select(schema.rollout_members)
    .where(_M.tenant == bindparam("tenant"), _M.subject == bindparam("subject"))
    .order_by(_M.rollout)
    .with_for_update()
)
_LEAVE = delete(schema.rollout_members).where(_M.tenant == bindparam("tenant"), _M.subject == bindparam("subject"))

Sums = dict[tuple[str, int, str, str], list[float]]  # (rollout, step, arm, metric): people, total


def observe(connection: Connection, tenant: str, served: Sequence[Served]) -> int:
    """Count requests. Late ones (of a step or rollout that is over) and people who left or were reset are dropped."""
    hold(connection, tenant, Hold.NOTHING_ERASED)
    active = _active(connection, tenant)
    if not active:
        return 0
    left_out = _left_out(connection, tenant, {one.subject for one in served})
    usable = [one for one in served if one.subject not in left_out]
    members = _members(connection, tenant, sorted({one.subject for one in usable}), active)
    before = dict(members)
    sums: Sums = defaultdict(lambda: [0, 0.0])
    counted = sum(_count(one, members, active, sums) for one in usable)
    changed = {key: member for key, member in members.items() if member != before.get(key)}
    _store_members(connection, tenant, changed, active)
    _add(connection, tenant, sums)
    return counted


def _active(connection: Connection, tenant: str) -> dict[str, Rollout]:
    query = select(schema.rollouts).where(_O.tenant == tenant, _O.state.in_(ACTIVE)).order_by(_O.id)
    found = {row.id: rollout_of(row) for row in connection.execute(query.with_for_update())}
    of_a_model = _global_rollout(connection)
    if of_a_model is not None:
        queue_up(connection, "enrolling " + tenant)
        found[of_a_model.id] = of_a_model
    return found


def _global_rollout(connection: Connection) -> Rollout | None:
    row = running_trial(connection)
    return trial_rollout(row) if row is not None and row.state in ACTIVE else None


def _left_out(connection: Connection, tenant: str, subjects: set[str]) -> set[str]:
    gone = tombstoned(connection, tenant, subjects)
    people = schema.subjects.c
    served: set[str] = set()
    for chunk in chunks(sorted(subjects - gone)):
        mine = (people.tenant == tenant, among(people.subject, chunk), people.opted_in, ~people.paused)
        served.update(connection.scalars(select(people.subject).where(*mine)))
    return subjects - served


def _members(
    connection: Connection, tenant: str, subjects: Sequence[str], active: Mapping[str, Rollout]
) -> dict[tuple[str, str], Member]:
    """By (subject, rollout): those of the current step. Whoever is known only from an earlier step starts afresh."""
    found: dict[tuple[str, str], Member] = {}
    for chunk in chunks(subjects, 1000):
        query = select(schema.rollout_members).where(_M.tenant == tenant, among(_M.subject, chunk))
        for row in connection.execute(query.order_by(_M.subject, _M.rollout).with_for_update()):
            if row.rollout in active and row.step == active[row.rollout].step:
                found[row.subject, row.rollout] = _member_of(row)
    return found


def _member_of(row: AnyRow) -> Member:
    return Member(
        row.arm, row.requests, row.slow, row.fallback, row.failed, row.answers, row.success, bool(row.complained)
    )


def _count(one: Served, members: dict[tuple[str, str], Member], active: Mapping[str, Rollout], sums: Sums) -> int:
    counted = 0
    for trial in one.trials or _enrolled_in(one.subject, members, active):
        rollout = active.get(trial.rollout)
        if rollout is None or rollout.step != trial.step:
            continue
        key = (one.subject, trial.rollout)
        if key not in members:
            members[key] = Member(trial.arm)
            sums[trial.rollout, trial.step, trial.arm, ENROLLED][0] += 1
        plan = rollout.plan
        members[key], contributed = after_request(members[key], one, plan.per_person, plan.slow_ms)
        _sum_up(sums, trial.rollout, trial.step, members[key].arm, contributed)
        counted += 1
    return counted


def _enrolled_in(subject: str, members: Mapping[tuple[str, str], Member], active: Mapping[str, Rollout]) -> list[Trial]:
    """Of a request that failed before it was known what it takes part in."""
    mine = {rollout: member for (person, rollout), member in members.items() if person == subject}
    return [Trial(rollout, active[rollout].step, member.arm, "") for rollout, member in mine.items()]


def _sum_up(sums: Sums, rollout: str, step: int, arm: str, contributed: Contributions) -> None:
    for metric, value in contributed.items():
        entry = sums[rollout, step, arm, metric]
        entry[0] += 1
        entry[1] += value


def _store_members(
    connection: Connection,
    tenant: str,
    members: Mapping[tuple[str, str], Member],
    active: Mapping[str, Rollout],
) -> None:
    if not members:
        return
    rows = [
        {"tenant": tenant, "subject": subject, "rollout": rollout, "step": active[rollout].step} | asdict(member)
        for (subject, rollout), member in sorted(members.items())
    ]
    statement = insert(connection, schema.rollout_members)
    changed = {column.name: statement.excluded[column.name] for column in _M if column.name not in _KEYS}
    connection.execute(statement.on_conflict_do_update(index_elements=list(_KEYS), set_=changed), rows)


def _add(connection: Connection, tenant: str, sums: Sums) -> None:
    if not sums:
        return
    rows: list[dict[str, Any]] = [
        {
            "tenant": tenant,
            "rollout": rollout,
            "step": step,
            "arm": arm,
            "metric": metric,
            "people": int(people),
            "total": total,
        }
        for (rollout, step, arm, metric), (people, total) in sorted(sums.items())
    ]
    table = schema.rollout_tallies
    statement = insert(connection, table)
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant", "rollout", "step", "arm", "metric"],
            set_={"people": table.c.people + new.people, "total": table.c.total + new.total},
        ),
        rows,
    )


def note_answer(connection: Connection, tenant: str, subject: str, inference: Inference, kind: str, value: Any) -> None:
    """What feedback says about the arm that its inference was served under, if it was served in the current step."""
    success = success_of(kind, value, inference.shown)
    if success is None:
        return
    sums: Sums = defaultdict(lambda: [0, 0.0])
    for row, rollout in _trials_of(connection, tenant, members_of(connection, tenant, subject)().all()):
        if inference.created_at < rollout.moved_at:
            continue
        member, contributed = after_answer(_member_of(row), success, rollout.plan.per_person)
        _update(connection, row, {"answers": member.answers, "success": member.success})
        _sum_up(sums, rollout.id, rollout.step, member.arm, contributed)
    _add(connection, tenant, sums)


def members_of(connection: Connection, tenant: str, subject: str) -> Callable[[], Any]:
    """The rollouts that a person is in, for `note_complaint`: asked ahead, and locked."""
    return ahead(connection, _MINE, {"tenant": tenant, "subject": subject})


def note_complaint(
    connection: Connection, tenant: str, subject: str, members: Callable[[], Any], *, leaves: bool
) -> None:
    """The person paused, opted out or was reset: one complaint a step. With `leaves` nothing of them stays here."""
    sums: Sums = defaultdict(lambda: [0, 0.0])
    for row, rollout in _trials_of(connection, tenant, members().all()):
        if not row.complained:
            _update(connection, row, {"complained": True})
            _sum_up(sums, rollout.id, rollout.step, row.arm, {"complaints": 1.0})
    if leaves:
        connection.execute(_LEAVE, {"tenant": tenant, "subject": subject})
    _add(connection, tenant, sums)


def _trials_of(connection: Connection, tenant: str, rows: Sequence[AnyRow]) -> list[tuple[AnyRow, Rollout]]:
    of_a_model = _global_rollout(connection) if rows else None
    found = []
    for row in rows:
        if of_a_model is not None and row.rollout == of_a_model.id:
            if row.step == of_a_model.step:
                found.append((row, of_a_model))
            continue
        query = select(schema.rollouts).where(_O.tenant == tenant, _O.id == row.rollout, _O.state.in_(ACTIVE))
        active = connection.execute(query).one_or_none()
        if active is not None and active.step == row.step:
            found.append((row, rollout_of(active)))
    return found


def _update(connection: Connection, row: AnyRow, values: dict[str, Any]) -> None:
    mine = and_(_M.tenant == row.tenant, _M.subject == row.subject, _M.rollout == row.rollout)
    connection.execute(update(schema.rollout_members).where(mine).values(values))
