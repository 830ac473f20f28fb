"""The ledger: charges that are final, made by one reserver of a tenant at a time.

Resets wait for whoever reserves, and for the head of the audit log, which settling takes. So for few people these are
constant statements, and those that need no answer of another one travel together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from idiolect.audit import AuditEvent
from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.ids import new_id
from idiolect.privacy.events import GaussianEvent, Unit
from idiolect.privacy.ledger import Account, Charge, LedgerRun, Reservation, RunState, fits
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import RELEASE_IS_HERE
from idiolect.stores.sql.audit import append, ask_head
from idiolect.stores.sql.engine import AnyRow, Hold, among, chunks, hold
from idiolect.stores.sql.look_ups import FEW, LookUp
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.quotas import ask_today
from idiolect.stores.sql.times import micros, moment

_RUNS, _CHARGES, _ACCOUNTS = schema.ledger_runs.c, schema.ledger_charges.c, schema.ledger_accounts.c
_OF_RUN = (_CHARGES.tenant == _RUNS.tenant) & (_CHARGES.run == _RUNS.id)
_RHO = _RUNS.steps / (2.0 * _RUNS.noise_multiplier * _RUNS.noise_multiplier)  # GaussianEvent.rho
_EARLIEST = -(2**62)  # fits the column; a window may be longer than the calendar

_NEWEST = select(func.max(_RUNS.reserved_at).label("at")).where(_RUNS.tenant == bindparam("tenant"))
_SPENT_EVER = select(_ACCOUNTS.subject, _ACCOUNTS.spent_rho, _ACCOUNTS.runs).where(
    _ACCOUNTS.tenant == bindparam("tenant"), _ACCOUNTS.unit == bindparam("unit")
)
_SPENT_SINCE = (
    select(_CHARGES.subject, func.sum(_RHO).label("spent_rho"), func.count().label("runs"))
    .join(schema.ledger_runs, _OF_RUN)
    .where(_CHARGES.tenant == bindparam("tenant"))
    .where(_RUNS.unit == bindparam("unit"), _RUNS.reserved_at >= bindparam("since"))
    .group_by(_CHARGES.subject)
)
_OF_FEW_EVER, _OF_FEW_SINCE = LookUp(_SPENT_EVER, _ACCOUNTS.subject), LookUp(_SPENT_SINCE, _CHARGES.subject)
_NEW_RUN = schema.ledger_runs.insert().values({column.name: bindparam(column.name) for column in _RUNS})
_NEW_CHARGE = schema.ledger_charges.insert().values({column.name: bindparam(column.name) for column in _CHARGES})
_IS_RUN = (_RUNS.tenant == bindparam("of_tenant"), _RUNS.id == bindparam("of_run"))
_KNOWN = select(_RUNS.id).where(*_IS_RUN)
_SETTLED = update(schema.ledger_runs).where(*_IS_RUN, _RUNS.settled_at.is_(None)).values(settled_at=bindparam("at"))


class Ledger(Part):
    def reserve(
        self,
        tenant: str,
        unit: Unit,
        purpose: str,
        event: GaussianEvent,
        subjects: Sequence[str],
        budget_rho: float,
        now: datetime,
        *,
        window: timedelta | None = None,
    ) -> Reservation:
        """Someone who is listed twice is charged once. A budget is kept up to RELATIVE_TOLERANCE."""
        if not (math.isfinite(budget_rho) and budget_rho >= 0.0):
            raise InvalidInputError(f"budget {budget_rho!r} is not usable.", mend="Use a finite number from 0.")
        if window is not None and window <= timedelta(0):
            raise InvalidInputError(f"a budget window of {window} is not usable.", mend="Use more than no time.")
        at = micros(now)
        run = {
            "tenant": tenant,
            "id": new_id(),
            "unit": unit,
            "purpose": purpose,
            "noise_multiplier": event.noise_multiplier,
            "steps": event.steps,
            "reserved_at": at,
        }
        since = None if window is None else max(_EARLIEST, at - window // timedelta(microseconds=1))
        wanted = sorted(set(subjects))
        write = self._database.lasting_write if len(wanted) <= FEW else self._database.write
        return write(tenant, lambda connection: _reserve(connection, run, event.rho, wanted, budget_rho, since))

    def settle(self, tenant: str, run: str, now: datetime) -> None:
        at = micros(now)
        self._database.lasting_write(tenant, lambda connection: _settle(connection, tenant, run, at))

    def account(self, tenant: str, unit: Unit, subject: str, *, since: datetime | None = None) -> Account:
        with self._database.reading(tenant) as connection:
            found = _ask_spent(connection, tenant, unit, [subject], micros(since))()
        spent_rho, runs = found.get(subject, (0.0, 0))
        return Account(subject, unit, spent_rho, runs)

    def runs(self, tenant: str, *, unit: Unit | None = None, limit: int = 100) -> Sequence[LedgerRun]:
        query = select(schema.ledger_runs).where(_RUNS.tenant == tenant)
        if unit is not None:
            query = query.where(_RUNS.unit == unit)
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query.order_by(_RUNS.reserved_at.desc(), _RUNS.id.desc()).limit(limit)).all()
        return [_run_of(row) for row in rows]

    def charges(self, tenant: str, subject: str, *, unit: Unit | None = None, limit: int = 100) -> Sequence[Charge]:
        releases = schema.releases.c
        query = (
            select(schema.ledger_runs, releases.id.label("release"), releases.revoked_at)
            .select_from(schema.ledger_charges)
            .join(schema.ledger_runs, _OF_RUN)
            .outerjoin(
                schema.releases, (releases.tenant == _RUNS.tenant) & (releases.run == _RUNS.id) & RELEASE_IS_HERE
            )
            .where(_CHARGES.tenant == tenant, _CHARGES.subject == subject)
        )
        if unit is not None:
            query = query.where(_RUNS.unit == unit)
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query.order_by(_RUNS.reserved_at.desc(), _RUNS.id.desc()).limit(limit)).all()
        return [Charge(_run_of(row), row.release, row.revoked_at is not None) for row in rows]


def _reserve(
    connection: Connection,
    run: dict[str, Any],
    rho: float,
    subjects: Sequence[str],
    budget_rho: float,
    since: int | None,
) -> Reservation:
    """The window starts by this machine's clock and charges are stamped with the ledger's time.

    Where the clock went back, more charges count than need to, and none is freed.
    """
    tenant = run["tenant"]
    hold(connection, tenant, Hold.ONE_RUN)
    ledger_time = _ask_ledger_time(connection, tenant)
    spent_asked = _ask_spent(connection, tenant, run["unit"], subjects, since)
    take_today = ask_today(connection, tenant, "trainings")
    stamped = run | {"reserved_at": ledger_time(run["reserved_at"])}
    spent = spent_asked()
    granted = [subject for subject in subjects if fits(spent.get(subject, (0.0, 0))[0], rho, budget_rho)]
    if granted:
        take_today(run["reserved_at"], 1)
    over = None if granted else stamped["reserved_at"]  # nobody may be read, so nothing is left to settle
    connection.execute(_NEW_RUN, stamped | {"accounts": len(granted), "settled_at": over})
    charge(connection, run, rho, granted)
    head = ask_head(connection, tenant)
    said = {"unit": run["unit"], "accounts": len(granted), "refused": len(subjects) - len(granted), "rho": rho}
    event = AuditEvent("trainer", "ledger.reserve", f"run {run['id']}", run["purpose"], said)
    extra = {"run": stamped, "rho": rho, "subjects": granted}
    append(connection, tenant, event, run["reserved_at"], extra, head)
    return Reservation(run["id"], rho, frozenset(granted), frozenset(subjects).difference(granted))


def _ask_ledger_time(connection: Connection, tenant: str) -> Callable[[int], int]:
    """Gives back the time that it is given, but never one before an earlier run of the tenant."""
    newest = ahead(connection, _NEWEST, {"tenant": tenant})

    def ledger_time(now: int) -> int:
        earlier = newest().one().at
        return now if earlier is None else max(now, earlier)

    return ledger_time


def _ask_spent(
    connection: Connection, tenant: str, unit: str, subjects: Collection[str], since: int | None
) -> Callable[[], dict[str, tuple[float, int]]]:
    """(rho, number of runs) of those who were charged at all."""
    names = {"tenant": tenant, "unit": unit} | ({} if since is None else {"since": since})
    if len(subjects) <= FEW:
        statements = (_OF_FEW_EVER if since is None else _OF_FEW_SINCE).asked(subjects, names)
    else:
        query, subject = (_SPENT_EVER, _ACCOUNTS.subject) if since is None else (_SPENT_SINCE, _CHARGES.subject)
        statements = [(query.where(among(subject, chunk)), names) for chunk in chunks(sorted(subjects))]
    asked = [ahead(connection, *one) for one in statements]
    return lambda: {row.subject: (row.spent_rho, row.runs) for rows in asked for row in rows()}


def _charged(made: sqlite.Insert | postgresql.Insert) -> Insert:
    """What becomes of an account, which may be new."""
    named: dict[str, Any] = {column.name: bindparam(column.name) for column in _ACCOUNTS}
    more = {"spent_rho": _ACCOUNTS.spent_rho + made.excluded.spent_rho, "runs": _ACCOUNTS.runs + made.excluded.runs}
    return made.values(named).on_conflict_do_update(index_elements=["tenant", "unit", "subject"], set_=more)


_CHARGED = {
    "sqlite": _charged(sqlite.insert(schema.ledger_accounts)),
    "postgresql": _charged(postgresql.insert(schema.ledger_accounts)),
}


def charge(connection: Connection, run: dict[str, Any], rho: float, subjects: Sequence[str]) -> None:
    tenant, unit = run["tenant"], run["unit"]
    for chunk in chunks(subjects):
        accounts = [{"tenant": tenant, "unit": unit, "subject": s, "spent_rho": rho, "runs": 1} for s in chunk]
        connection.execute(_CHARGED[connection.dialect.name], accounts)
        connection.execute(_NEW_CHARGE, [{"tenant": tenant, "subject": s, "run": run["id"]} for s in chunk])


def _settle(connection: Connection, tenant: str, run: str, at: int) -> None:
    mine = {"of_tenant": tenant, "of_run": run}
    known = ahead(connection, _KNOWN, mine)
    settled = connection.execute(_SETTLED, mine | {"at": at})
    head = ask_head(connection, tenant)
    if known().one_or_none() is None:
        raise NotFoundError(f"the ledger has no run {run[:80]!r}.", mend="List the runs of this tenant.")
    if settled.rowcount:
        append(connection, tenant, AuditEvent("trainer", "ledger.settle", f"run {run}"), at, head=head)


def _state(row: AnyRow) -> RunState:
    if not row.accounts:
        return "refused"
    return "reserved" if row.settled_at is None else "settled"


def _run_of(row: AnyRow) -> LedgerRun:
    return LedgerRun(
        id=row.id,
        tenant=row.tenant,
        unit=row.unit,
        purpose=row.purpose,
        event=GaussianEvent(row.noise_multiplier, row.steps),
        state=_state(row),
        accounts=row.accounts,
        reserved_at=moment(row.reserved_at),
        settled_at=moment(row.settled_at),
    )
