"""The ledger: charges that are final, made by one reserver of a tenant at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, func, select, update

from idiolect.audit import AuditEvent
from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.ids import new_id
from idiolect.privacy.events import GaussianEvent, Unit
from idiolect.privacy.ledger import Account, Charge, LedgerRun, Reservation, RunState, fits
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import RELEASE_IS_HERE
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import AnyRow, Hold, among, chunks, hold, insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.quotas import take_today
from idiolect.stores.sql.times import micros, moment

_RUNS, _CHARGES = schema.ledger_runs.c, schema.ledger_charges.c
_OF_RUN = (_CHARGES.tenant == _RUNS.tenant) & (_CHARGES.run == _RUNS.id)
_RHO = _RUNS.steps / (2.0 * _RUNS.noise_multiplier * _RUNS.noise_multiplier)  # GaussianEvent.rho
_EARLIEST = -(2**62)  # fits the column; a window may be longer than the calendar


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
        return self._database.write(
            tenant, lambda connection: _reserve(connection, run, event.rho, wanted, budget_rho, since)
        )

    def settle(self, tenant: str, run: str, now: datetime) -> None:
        at = micros(now)
        self._database.write(tenant, lambda connection: _settle(connection, tenant, run, at))

    def account(self, tenant: str, unit: Unit, subject: str, *, since: datetime | None = None) -> Account:
        with self._database.reading(tenant) as connection:
            found = _spent(connection, tenant, unit, [subject], micros(since))
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
    hold(connection, run["tenant"], Hold.ONE_RUN)
    stamped = run | {"reserved_at": _ledger_time(connection, run["tenant"], run["reserved_at"])}
    spent = _spent(connection, run["tenant"], run["unit"], subjects, since)
    granted = [subject for subject in subjects if fits(spent.get(subject, (0.0, 0))[0], rho, budget_rho)]
    if granted:
        take_today(connection, run["tenant"], "trainings", run["reserved_at"])
    over = None if granted else stamped["reserved_at"]  # nobody may be read, so nothing is left to settle
    connection.execute(schema.ledger_runs.insert(), stamped | {"accounts": len(granted), "settled_at": over})
    charge(connection, run, rho, granted)
    said = {"unit": run["unit"], "accounts": len(granted), "refused": len(subjects) - len(granted), "rho": rho}
    event = AuditEvent("trainer", "ledger.reserve", f"run {run['id']}", run["purpose"], said)
    extra = {"run": stamped, "rho": rho, "subjects": granted}
    append(connection, run["tenant"], event, run["reserved_at"], extra)
    return Reservation(run["id"], rho, frozenset(granted), frozenset(subjects).difference(granted))


def _ledger_time(connection: Connection, tenant: str, now: int) -> int:
    """`now`, but never before an earlier run of the tenant."""
    newest = connection.scalar(select(func.max(_RUNS.reserved_at)).where(_RUNS.tenant == tenant))
    return now if newest is None else max(now, newest)


def _spent(
    connection: Connection, tenant: str, unit: str, subjects: Collection[str], since: int | None
) -> dict[str, tuple[float, int]]:
    """(rho, number of runs) of those who were charged at all."""
    spent: dict[str, tuple[float, int]] = {}
    for chunk in chunks(sorted(subjects)):
        query = _charged_ever(tenant, unit, chunk) if since is None else _charged_since(tenant, unit, chunk, since)
        spent.update((row.subject, (row.spent_rho, row.runs)) for row in connection.execute(query))
    return spent


def _charged_ever(tenant: str, unit: str, subjects: Sequence[str]) -> Select[Any]:
    table = schema.ledger_accounts.c
    return select(table.subject, table.spent_rho, table.runs).where(
        table.tenant == tenant, table.unit == unit, among(table.subject, subjects)
    )


def _charged_since(tenant: str, unit: str, subjects: Sequence[str], since: int) -> Select[Any]:
    return (
        select(_CHARGES.subject, func.sum(_RHO).label("spent_rho"), func.count().label("runs"))
        .join(schema.ledger_runs, _OF_RUN)
        .where(_CHARGES.tenant == tenant, among(_CHARGES.subject, subjects))
        .where(_RUNS.unit == unit, _RUNS.reserved_at >= since)
        .group_by(_CHARGES.subject)
    )


def charge(connection: Connection, run: dict[str, Any], rho: float, subjects: Sequence[str]) -> None:
    accounts, tenant = schema.ledger_accounts.c, run["tenant"]
    statement = insert(connection, schema.ledger_accounts)
    charge = statement.on_conflict_do_update(
        index_elements=["tenant", "unit", "subject"],
        set_={"spent_rho": accounts.spent_rho + statement.excluded.spent_rho, "runs": accounts.runs + 1},
    )
    for chunk in chunks(subjects):
        connection.execute(
            charge, [{"tenant": tenant, "unit": run["unit"], "subject": s, "spent_rho": rho, "runs": 1} for s in chunk]
        )
        connection.execute(
            schema.ledger_charges.insert(), [{"tenant": tenant, "subject": s, "run": run["id"]} for s in chunk]
        )


def _settle(connection: Connection, tenant: str, run: str, at: int) -> None:
    table = schema.ledger_runs.c
    mine = (table.tenant == tenant, table.id == run)
    if connection.scalar(select(table.id).where(*mine)) is None:
        raise NotFoundError(f"the ledger has no run {run[:80]!r}.", mend="List the runs of this tenant.")
    change = update(schema.ledger_runs).where(*mine, table.settled_at.is_(None)).values(settled_at=at)
    if connection.execute(change).rowcount:
        append(connection, tenant, AuditEvent("trainer", "ledger.settle", f"run {run}"), at)


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
