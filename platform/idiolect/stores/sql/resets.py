"""Resets: one transaction from the raised generation to the stored record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, exists, select

from idiolect.audit import AuditEvent
from idiolect.consent import ConsentChange, DomainChange, SubjectState, apply_change
from idiolect.errors import ConflictError
from idiolect.resets.plan import ResetPlan
from idiolect.resets.receipt import ResetRecord
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append, ask_head
from idiolect.stores.sql.engine import Hold, hold
from idiolect.stores.sql.erasure import adapters_of, erase
from idiolect.stores.sql.large_weights import sweep
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import ask_places, ask_state, check_subject, fence, save_state, state_to_json
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.rollout_members import members_of, note_complaint
from idiolect.stores.sql.times import micros

_E, _L, _R, _U = schema.resets.c, schema.ledger_charges.c, schema.releases.c, schema.ledger_runs.c
_EARLIER = select(_E.record).where(_E.tenant == bindparam("tenant"), _E.id == bindparam("id"))
_RECORD = schema.resets.insert().values({column.name: bindparam(column.name) for column in _E})
_CHARGED = and_(_L.tenant == bindparam("tenant"), _L.subject == bindparam("subject"))
# Domain and global releases, also revoked ones, whose run charged this person: they keep a bounded influence.
# Also one that is still arriving: it will be there when nobody asks for this receipt any more.
_SHARED_RELEASES = (
    select(_R.id)
    .select_from(schema.ledger_charges)
    .join(schema.releases, and_(_R.tenant == _L.tenant, _R.run == _L.run))
    .where(_CHARGED, _R.scope != "user")
    .order_by(_R.published_at, _R.id)
)
# What is under way, or died: a release of it would name its run, and this person was charged.
_SHARED_RUNS = (
    select(_U.id)
    .select_from(schema.ledger_charges)
    .join(schema.ledger_runs, and_(_U.tenant == _L.tenant, _U.id == _L.run))
    .where(_CHARGED, _U.unit == "subject", _U.settled_at.is_(None))
    .where(~exists().where(_R.tenant == bindparam("tenant"), _R.run == _U.id))
    .order_by(_U.reserved_at, _U.id)
)


class Resets(Part):
    def apply_reset(
        self, tenant: str, subject: str, reset_id: str, plan: ResetPlan, now: datetime, *, actor: str = "subject"
    ) -> ResetRecord:
        check_subject(subject)
        with self._database.point_reading(tenant, single=True) as connection:  # sent again, it waits for no lock
            earlier = _load(connection, tenant, reset_id)
        if earlier is not None:
            return _same(earlier, subject, plan)
        keys = self._database.keys
        record = self._database.lasting_write(
            tenant, lambda connection: _apply(connection, keys, tenant, subject, reset_id, plan, now, actor)
        )
        self._database.scrub()
        if record.erased.get("blobs"):
            sweep(self._database)
        return record

    def reset(self, tenant: str, reset_id: str) -> ResetRecord | None:
        with self._database.point_reading(tenant, single=True) as connection:
            return _load(connection, tenant, reset_id)


def _apply(
    connection: Connection,
    keys: Callable[[], SubjectKeys],
    tenant: str,
    subject: str,
    reset_id: str,
    plan: ResetPlan,
    now: datetime,
    actor: str,
) -> ResetRecord:
    hold(connection, tenant, Hold.ERASE)
    earlier_asked = ahead(connection, _EARLIER, {"tenant": tenant, "id": reset_id})
    state = ask_state(connection, tenant, subject, lock=True)
    members = members_of(connection, tenant, subject)
    adapters = adapters_of(connection, tenant, subject) if plan.erase_adapters else None
    earlier = earlier_asked().one_or_none()
    if earlier is not None:
        return _same(_record_of(tenant, json.loads(earlier.record)), subject, plan)
    before = state()
    if plan.erase_traces and (standing := _standing_erasure(connection, tenant, before)) is not None:
        return standing
    after = state_after(before, plan, now)
    save_state(connection, tenant, before, after)
    note_complaint(connection, tenant, subject, members, leaves=True)
    erasure = erase(connection, keys, tenant, subject, plan, now, adapters, reason=f"reset {reset_id}", actor=actor)
    person = {"tenant": tenant, "subject": subject}
    releases, runs = (ahead(connection, one, person) for one in (_SHARED_RELEASES, _SHARED_RUNS))
    places, head = ask_places(connection, tenant, subject), ask_head(connection, tenant)
    erased = erasure.counts()
    place = fence(connection, tenant, after, now, places, learn_afresh=plan.domain is not None)
    record = ResetRecord(
        id=reset_id,
        tenant=tenant,
        subject=subject,
        scope=plan.scope,
        generation=after.generation,
        steps=plan.steps,
        erased=erased,
        shared_releases=tuple(row.id for row in releases()),
        shared_runs=tuple(row.id for row in runs()),
        completed_at=now,
        purge_sequence=place,
        domain=plan.domain,
    )
    _save(connection, record)
    details: dict[str, Any] = {"scope": plan.scope, "generation": after.generation, "erased": erased}
    if plan.domain is not None:
        details["domain"] = plan.domain
    extra = {"state": state_to_json(after), "record": record.to_json(), "plan": asdict(plan)}
    event = AuditEvent(actor, "reset", f"user {subject}", f"reset {reset_id}", details)
    append(connection, tenant, event, micros(now), extra, head)
    return record


def state_after(state: SubjectState, plan: ResetPlan, now: datetime) -> SubjectState:
    """The generation always rises. Without consent the settings go back to what they were before the first one.

    Of one domain alone, the consent there is withdrawn and everything else stays as it was.
    """
    raised = replace(state, known=True, generation=state.generation + 1, revision=state.revision + 1, updated_at=now)
    if not plan.withdraw_consent:
        return raised
    if plan.domain is not None:
        left = ConsentChange(domains=(DomainChange(plan.domain, opted_in=False),))
        return replace(raised, domains=apply_change(state, left, now).domains)
    return replace(raised, opted_in=False, paused=False, strength=1.0, policy_version=None, domains=())


def _same(record: ResetRecord, subject: str, plan: ResetPlan) -> ResetRecord:
    if (record.subject, record.scope, record.domain) != (subject, plan.scope, plan.domain):
        raise ConflictError(f"the reset {record.id[:80]!r} was another one.", mend="Use a new id for each reset.")
    return record


def _standing_erasure(connection: Connection, tenant: str, state: SubjectState) -> ResetRecord | None:
    """The record of an erasure since which nothing happened to this person: there is nothing to erase again."""
    if not state.known or state.opted_in:
        return None
    table = schema.resets.c
    query = select(table.record).where(table.tenant == tenant, table.subject == state.subject)
    record = connection.scalar(query.order_by(table.completed_at.desc()).limit(1))
    found = None if record is None else _record_of(tenant, json.loads(record))
    stands = found is not None and found.scope == "erasure"
    if found is None or not stands or (found.generation, found.completed_at) != (state.generation, state.updated_at):
        return None
    return found


def _save(connection: Connection, record: ResetRecord) -> None:
    row = {
        "tenant": record.tenant,
        "id": record.id,
        "subject": record.subject,
        "record": json.dumps(record.to_json()),
        "completed_at": micros(record.completed_at),
    }
    connection.execute(_RECORD, row)


def _load(connection: Connection, tenant: str, reset_id: str) -> ResetRecord | None:
    record = connection.scalar(_EARLIER, {"tenant": tenant, "id": reset_id})
    return None if record is None else _record_of(tenant, json.loads(record))


def _record_of(tenant: str, data: Mapping[str, Any]) -> ResetRecord:
    return ResetRecord(
        id=data["id"],
        tenant=tenant,
        subject=data["subject"],
        scope=data["scope"],
        generation=data["generation"],
        steps=tuple(step["step"] for step in data["steps"]),
        erased=data["erased"],
        shared_releases=tuple(data["shared_releases"]),
        shared_runs=tuple(data.get("shared_runs", ())),
        completed_at=datetime.fromisoformat(data["completed_at"]),
        state=data["state"],
        domain=data.get("domain"),
        purge_sequence=data.get("purge_sequence", 0),
    )
