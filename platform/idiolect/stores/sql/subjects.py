"""What people agreed to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, select

from idiolect.audit import AuditEvent
from idiolect.consent import ConsentChange, SubjectState, apply_change, refused_domains
from idiolect.errors import PreconditionError
from idiolect.resets.plan import ResetPlan, plan_reset
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import Hold, hold
from idiolect.stores.sql.erasure import erase
from idiolect.stores.sql.large_weights import sweep
from idiolect.stores.sql.look_ups import FEW
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import (
    STATE_COLUMNS,
    ask_places,
    check_subject,
    fence,
    load_state,
    load_states,
    requeue,
    save_state,
    state_of,
    state_to_json,
)
from idiolect.stores.sql.quotas import take_place
from idiolect.stores.sql.rollout_members import members_of, note_complaint
from idiolect.stores.sql.tenant_wall import NO_TENANT, stand_behind
from idiolect.stores.sql.times import micros


class Subjects(Part):
    def subject(self, tenant: str, subject: str) -> SubjectState:
        with self._database.point_reading(tenant, single=True) as connection:
            return load_state(connection, tenant, subject)

    def subject_each(self, people: Sequence[tuple[str, str]]) -> Sequence[SubjectState]:
        by_tenant: dict[str, set[str]] = defaultdict(set)
        for tenant, subject in people:
            by_tenant[tenant].add(subject)
        found: dict[tuple[str, str], SubjectState] = {}
        single = len(by_tenant) == 1 and len(people) <= FEW
        with self._database.point_reading(NO_TENANT, single=single) as connection:
            for tenant, subjects in by_tenant.items():
                stand_behind(connection, tenant)
                states = load_states(connection, tenant, subjects)
                found.update(((tenant, subject), state) for subject, state in states.items())
        return [found[one] for one in people]

    def change_subject(
        self,
        tenant: str,
        subject: str,
        change: ConsentChange,
        now: datetime,
        *,
        if_revision: int | None = None,
        actor: str = "subject",
    ) -> SubjectState:
        check_subject(subject)
        keys = self._database.keys
        state = self._database.lasting_write(
            tenant, lambda connection: _change(connection, keys, tenant, subject, change, now, if_revision, actor)
        )
        if change.refuses:
            self._database.scrub()
            sweep(self._database)
        return state

    def subjects(self, tenant: str, *, after: str = "", limit: int = 100) -> Sequence[SubjectState]:
        table = schema.subjects.c
        query = select(*STATE_COLUMNS).where(table.tenant == tenant, table.subject > after)
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query.order_by(table.subject).limit(limit)).all()
        return [state_of(row) for row in rows]


def _change(
    connection: Connection,
    keys: Callable[[], SubjectKeys],
    tenant: str,
    subject: str,
    change: ConsentChange,
    now: datetime,
    if_revision: int | None,
    actor: str,
) -> SubjectState:
    hold(connection, tenant, Hold.ERASE if change.refuses else Hold.NOTHING_ERASED)
    before = load_state(connection, tenant, subject, lock=True)
    if if_revision is not None and if_revision != before.revision:
        raise PreconditionError(
            f"the settings are at revision {before.revision}, not {if_revision}.", mend="Read them again and decide."
        )
    after = apply_change(before, change, now)
    if after.opted_in and not before.opted_in:
        take_place(connection, tenant)
    save_state(connection, tenant, before, after)
    refuses = change.opted_in is False
    if refuses or (after.paused and not before.paused):
        note_complaint(connection, tenant, subject, members_of(connection, tenant, subject), leaves=refuses)
    plans = _withdrawals(before, after, refuses)
    for plan in plans:
        reason = "left a domain" if plan.domain else "opted out"
        erase(connection, keys, tenant, subject, plan, now, reason=reason, actor=actor)
    if plans:
        places = ask_places(connection, tenant, subject)
        fence(connection, tenant, after, now, places, learn_afresh=not refuses)
    elif after.opted_in and (not before.opted_in or after.domains != before.domains):
        requeue(connection, tenant, [subject])
    extra = {"state": state_to_json(after)} | ({"plans": [asdict(plan) for plan in plans]} if plans else {})
    append(connection, tenant, _event(after, change, actor), micros(now), extra)
    return after


def _withdrawals(before: SubjectState, after: SubjectState, refuses: bool) -> list[ResetPlan]:
    """What is withdrawn is erased as by a reset of it. A "no" without an earlier "yes" is one too: its tombstone keeps
    an import from overriding it."""
    if refuses:
        return [plan_reset("all")]
    if after.generation == before.generation:
        return []
    return [plan_reset("all", domain) for domain in sorted(refused_domains(after) - refused_domains(before))]


def _event(after: SubjectState, change: ConsentChange, actor: str) -> AuditEvent:
    asked = {name: value for name, value in asdict(change).items() if value is not None and name != "domains"}
    if change.domains:
        asked["domains"] = [asdict(one) for one in change.domains]
    if change.opted_in:
        asked["policy_version"] = after.policy_version
    details = asked | {"revision": after.revision, "generation": after.generation}
    return AuditEvent(actor, "consent.change", f"user {after.subject}", details=details)
