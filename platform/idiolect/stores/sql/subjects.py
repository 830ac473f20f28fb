"""What people agreed to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select

from idiolect.consent import ConsentChange, SubjectState, apply_change
from idiolect.errors import PreconditionError
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import Hold, hold
from idiolect.stores.sql.erasure import erase
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import (
    STATE_COLUMNS,
    check_subject,
    fence,
    load_state,
    requeue,
    save_state,
    state_of,
)


class Subjects(Part):
    def subject(self, tenant: str, subject: str) -> SubjectState:
        with self._database.reading() as connection:
            return load_state(connection, tenant, subject)

    def change_subject(
        self,
        tenant: str,
        subject: str,
        change: ConsentChange,
        now: datetime,
        *,
        if_revision: int | None = None,
    ) -> SubjectState:
        check_subject(subject)
        state = self._database.write(lambda connection: _change(connection, tenant, subject, change, now, if_revision))
        if change.opted_in is False:
            self._database.scrub()
        return state

    def subjects(self, tenant: str, *, after: str = "", limit: int = 100) -> Sequence[SubjectState]:
        table = schema.subjects.c
        query = select(*STATE_COLUMNS).where(table.tenant == tenant, table.subject > after)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.subject).limit(limit)).all()
        return [state_of(row) for row in rows]


def _change(
    connection: Connection, tenant: str, subject: str, change: ConsentChange, now: datetime, if_revision: int | None
) -> SubjectState:
    refuses = change.opted_in is False
    hold(connection, tenant, Hold.ERASE if refuses else Hold.NOTHING_ERASED)
    before = load_state(connection, tenant, subject, lock=True)
    if if_revision is not None and if_revision != before.revision:
        raise PreconditionError(
            f"the settings are at revision {before.revision}, not {if_revision}.", mend="Read them again and decide."
        )
    after = apply_change(before, change, now)
    save_state(connection, tenant, before, after)
    if refuses:
        # Also without an earlier yes: the tombstone is what keeps a "no" from being overridden by an import.
        erase(connection, tenant, subject, plan_reset("adapter"), now, reason="opted out", actor="subject")
        fence(connection, tenant, after, now)
    elif after.opted_in and not before.opted_in:
        requeue(connection, tenant, [subject])
    return after
