"""Quotas: what may be used, and what was, both locked while a transaction takes of them.

Counting a million people for every one who opts in would be slow. So a number is kept that is never below the truth:
each opt-in raises it, nothing lowers it, and only when it reaches the quota are people counted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, select, update

from idiolect.audit import AuditEvent
from idiolect.errors import NotFoundError, QuotaExceededError
from idiolect.quotas import DAY_MICROS, QUOTAS, Quota, check_quota
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.look_ups import LookUp
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.times import micros

_Q, _S = schema.quotas.c, schema.subjects.c
_PEOPLE = "people"
TEXT_BYTES = "text_bytes"
# Constant, so that they may be prepared.
_TODAY = (
    select(_Q.most, _Q.day, _Q.used)
    .where(_Q.tenant == bindparam("tenant"), _Q.name == bindparam("name"))
    .with_for_update()
)
SET_QUOTAS = LookUp(select(_Q.name).where(_Q.tenant == bindparam("tenant")), _Q.name)
_TAKE = (
    update(schema.quotas)
    .where(_Q.tenant == bindparam("of"), _Q.name == bindparam("called"))
    .values(day=bindparam("today"), used=bindparam("taken"))
)


class Quotas(Part):
    def set_quota(self, tenant: str, name: str, most: int | None, now: datetime, *, actor: str = "operator") -> None:
        check_quota(name, 0 if most is None else most)
        at = micros(now)
        self._database.write(tenant, lambda connection: _set(connection, tenant, name, most, at, actor))

    def quotas(self, tenant: str, now: datetime) -> Sequence[Quota]:
        day = micros(now) // DAY_MICROS
        with self._database.reading(tenant) as connection:
            rows = connection.execute(select(_Q.name, _Q.most, _Q.day, _Q.used).where(_Q.tenant == tenant)).all()
            people = _count_people(connection, tenant) if any(row.name == _PEOPLE for row in rows) else 0
        used = {
            row.name: people if row.name == _PEOPLE else row.used * (row.day == _counts_as(row.day, day))
            for row in rows
        }
        return [Quota(row.name, row.most, used[row.name]) for row in sorted(rows, key=lambda row: row.name)]


def _set(connection: Connection, tenant: str, name: str, most: int | None, at: int, actor: str) -> None:
    if connection.scalar(select(schema.tenants.c.name).where(schema.tenants.c.name == tenant)) is None:
        raise NotFoundError(f"the tenant {tenant[:80]!r} does not exist.", mend="Create it first.")
    if most is None:
        connection.execute(delete(schema.quotas).where(_Q.tenant == tenant, _Q.name == name))
    else:
        # What was used today stays used; people are counted anew at the next opt-in.
        changed = {"most": most, "used": most} if name == _PEOPLE else {"most": most}
        values = {"tenant": tenant, "name": name, "day": at // DAY_MICROS, "used": 0} | changed
        statement = insert(connection, schema.quotas).values(values)
        connection.execute(statement.on_conflict_do_update(index_elements=["tenant", "name"], set_=changed))
    append(connection, tenant, AuditEvent(actor, "quota.set", f"quota {name}", details={"most": most}), at)


def take_today(connection: Connection, tenant: str, name: str, at: int, amount: int = 1) -> None:
    """So much more today. Raises QuotaExceededError, after which what it was for must not be done."""
    ask_today(connection, tenant, name)(at, amount)


def ask_today(connection: Connection, tenant: str, name: str) -> Callable[[int, int], None]:
    """As `take_today`, asked ahead: call what this gives with the time and how much."""
    asked = ahead(connection, _TODAY, {"tenant": tenant, "name": name})

    def take(at: int, amount: int) -> None:
        quota = asked().one_or_none()
        if quota is None:
            return
        day = _counts_as(quota.day, at // DAY_MICROS)
        used = quota.used if quota.day == day else 0
        if used + amount > quota.most:
            raise QuotaExceededError(
                f"the quota of {quota.most} {QUOTAS[name]} is used up.",
                mend="Try again after midnight UTC, or ask the operator for more.",
                retry_after_s=max(1, ((day + 1) * DAY_MICROS - at) // 1_000_000),
            )
        connection.execute(_TAKE, {"of": tenant, "called": name, "today": day, "taken": used + amount})

    return take


def _counts_as(counted: int, today: int) -> int:
    """The day that use of `today` is counted with. A clock that is or was a little ahead, as those of servers are at
    midnight, frees nothing when it goes back. One that was further ahead was wrong, and binds nobody until then."""
    return counted if counted == today + 1 else today


def take_place(connection: Connection, tenant: str) -> None:
    """For one more person who opts in, before they are stored. Raises QuotaExceededError."""
    mine = (_Q.tenant == tenant, _Q.name == _PEOPLE)
    quota = connection.execute(select(_Q.most, _Q.used).where(*mine).with_for_update()).one_or_none()
    if quota is None:
        return
    used = quota.used if quota.used < quota.most else _count_people(connection, tenant)
    if used >= quota.most:
        raise QuotaExceededError(
            f"the quota of {quota.most} {QUOTAS[_PEOPLE]} is used up.", mend="Ask the operator for more."
        )
    connection.execute(update(schema.quotas).where(*mine).values(used=used + 1))


def count_anew(connection: Connection, tenant: str) -> None:
    """After people opted in who took no place: an import, or a recovery."""
    mine = (_Q.tenant == tenant, _Q.name == _PEOPLE)
    connection.execute(update(schema.quotas).where(*mine).values(used=_Q.most))


def _count_people(connection: Connection, tenant: str) -> int:
    counted = select(func.count()).select_from(schema.subjects).where(_S.tenant == tenant, _S.opted_in)
    return connection.scalar(counted) or 0
