"""The ledger: charges that are final, made by one reserver of a tenant at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.ids import new_id
from idiolect.privacy.events import GaussianEvent, Unit
from idiolect.privacy.ledger import Account, LedgerRun, Reservation
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow, Hold, chunks, hold, insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.times import micros, moment

# Sums of costs are floats: three runs of a third of a budget may add up to a hair more than it.
RELATIVE_TOLERANCE = 1e-9


def fits(spent_rho: float, rho: float, budget_rho: float) -> bool:
    return spent_rho + rho <= budget_rho * (1.0 + RELATIVE_TOLERANCE)


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
    ) -> Reservation:
        """Someone who is listed twice is charged once. A budget is kept up to RELATIVE_TOLERANCE."""
        if not (math.isfinite(budget_rho) and budget_rho >= 0.0):
            raise InvalidInputError(f"budget {budget_rho!r} is not usable.", mend="Use a finite number from 0.")
        run = {
            "tenant": tenant,
            "id": new_id(),
            "unit": unit,
            "purpose": purpose,
            "noise_multiplier": event.noise_multiplier,
            "steps": event.steps,
            "reserved_at": micros(now),
        }
        wanted = sorted(set(subjects))
        return self._database.write(lambda connection: _reserve(connection, run, event.rho, wanted, budget_rho))

    def settle(self, tenant: str, run: str, now: datetime) -> None:
        at = micros(now)
        self._database.write(lambda connection: _settle(connection, tenant, run, at))

    def account(self, tenant: str, unit: Unit, subject: str) -> Account:
        table = schema.ledger_accounts.c
        query = select(table.spent_rho, table.runs).where(
            table.tenant == tenant, table.unit == unit, table.subject == subject
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return Account(subject, unit, 0.0, 0) if row is None else Account(subject, unit, row.spent_rho, row.runs)

    def runs(self, tenant: str, *, limit: int = 100) -> Sequence[LedgerRun]:
        """Newest first."""
        table = schema.ledger_runs.c
        query = select(schema.ledger_runs).where(table.tenant == tenant)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.reserved_at.desc(), table.id.desc()).limit(limit)).all()
        return [_run_of(row) for row in rows]


def _reserve(
    connection: Connection, run: dict[str, Any], rho: float, subjects: Sequence[str], budget_rho: float
) -> Reservation:
    hold(connection, run["tenant"], Hold.ONE_RUN)
    spent = _spent(connection, run["tenant"], run["unit"], subjects)
    granted = [subject for subject in subjects if fits(spent.get(subject, 0.0), rho, budget_rho)]
    connection.execute(schema.ledger_runs.insert(), run | {"accounts": len(granted)})
    _charge(connection, run, rho, granted)
    return Reservation(run["id"], rho, frozenset(granted), frozenset(subjects).difference(granted))


def _spent(connection: Connection, tenant: str, unit: str, subjects: Collection[str]) -> dict[str, float]:
    table = schema.ledger_accounts.c
    spent: dict[str, float] = {}
    for chunk in chunks(sorted(subjects)):
        query = select(table.subject, table.spent_rho).where(
            table.tenant == tenant, table.unit == unit, table.subject.in_(chunk)
        )
        spent.update((subject, rho) for subject, rho in connection.execute(query))
    return spent


def _charge(connection: Connection, run: dict[str, Any], rho: float, subjects: Sequence[str]) -> None:
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
    connection.execute(update(schema.ledger_runs).where(*mine, table.settled_at.is_(None)).values(settled_at=at))


def _run_of(row: AnyRow) -> LedgerRun:
    return LedgerRun(
        id=row.id,
        tenant=row.tenant,
        unit=row.unit,
        purpose=row.purpose,
        event=GaussianEvent(row.noise_multiplier, row.steps),
        state="reserved" if row.settled_at is None else "settled",
        accounts=row.accounts,
        reserved_at=moment(row.reserved_at),
        settled_at=moment(row.settled_at),
    )
