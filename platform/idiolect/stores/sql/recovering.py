"""Making changes again that a restored database lacks: `idiolect.recovery` says which, this does it.

Resets, erasures and consents, revoked releases and keys, quarantined and rolled back versions, and what was charged to
people's budgets. Nothing is given back, and nothing that was published since comes again. The entries of the audit log
continue as they were written, so that a head that was kept elsewhere is still met. All of it is one transaction.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, select, update

from idiolect.audit import AuditEntry
from idiolect.recovery import LoggedChange, Recovered, continuation
from idiolect.registry.pointers import QUARANTINED, ROLLED_BACK
from idiolect.resets.plan import ResetPlan, plan_reset
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import locked_head, put
from idiolect.stores.sql.engine import Hold, chunks, hold, insert, take_time
from idiolect.stores.sql.erasure import erase
from idiolect.stores.sql.ledger import charge
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import ask_places, fence, load_state, save_state, state_from_json
from idiolect.stores.sql.quotas import count_anew
from idiolect.stores.sql.tenant_wall import ALL_TENANTS

_V, _R, _K, _E, _L = (
    schema.versions.c,
    schema.releases.c,
    schema.api_keys.c,
    schema.audit_entries.c,
    schema.ledger_runs.c,
)


class Recovering(Part):
    def keep_log(self, log: RecoveryLog) -> None:
        """From now on every administrative change is in `log` before it is committed."""
        self._database.recovery_log = log

    def knows(self, change: LoggedChange) -> bool:
        """Whether this database made it."""
        with self._database.reading(ALL_TENANTS) as connection:
            return _knows(connection, change.entry)

    def recover(self, changes: Iterable[LoggedChange]) -> Recovered:
        """Make again what is missing of `changes`, which come in the order of their logs. Harmless to repeat.

        Raises ConfigurationError if there is a gap between this database and the newest of them.
        """
        by_tenant: dict[str, list[LoggedChange]] = defaultdict(list)
        for change in changes:
            by_tenant[change.entry.tenant].append(change)
        keys = self._database.keys
        return self._database.write(ALL_TENANTS, lambda connection: recover(connection, keys, by_tenant))


def recover(
    connection: Connection, keys: Callable[[], SubjectKeys], by_tenant: Mapping[str, Sequence[LoggedChange]]
) -> Recovered:
    applied: Counter[str] = Counter()
    take_time(connection)
    for tenant in sorted(by_tenant):
        hold(connection, tenant, Hold.ERASE)
        hold(connection, tenant, Hold.ONE_RUN)
        for change in continuation(tenant, locked_head(connection, tenant), by_tenant[tenant]):
            if change.entry.action in _OF_PERSON:
                _person(connection, keys, change)
            elif (apply := _APPLY.get(change.entry.action)) is not None:
                apply(connection, change)
            put(connection, change.entry)
            applied[change.entry.action] += 1
        count_anew(connection, tenant)
    return Recovered(dict(applied))


def _knows(connection: Connection, entry: AuditEntry) -> bool:
    stored = connection.scalar(select(_E.hash).where(_E.tenant == entry.tenant, _E.seq == entry.seq))
    return stored is not None and stored.hex() == entry.hash


def _person(connection: Connection, keys: Callable[[], SubjectKeys], change: LoggedChange) -> None:
    """As the person's own decision left them; whatever raised the generation erased something."""
    entry, tenant = change.entry, change.entry.tenant
    after = state_from_json(change.extra["state"], entry.at)
    before = load_state(connection, tenant, after.subject, lock=True)
    save_state(connection, tenant, before, after)
    record = change.extra.get("record")
    if record is not None or after.generation > before.generation or not after.opted_in:
        plans = change.extra.get("plans") or [change.extra.get("plan") or asdict(plan_reset("adapter"))]
        reason = f"recovered: {entry.reason or entry.action}"
        for plan in plans:
            which = ResetPlan(**plan)
            erase(connection, keys, tenant, after.subject, which, entry.at, reason=reason, actor=entry.actor)
        fence(connection, tenant, after, entry.at, ask_places(connection, tenant, after.subject))
    if record is not None:
        row = {
            "tenant": tenant,
            "id": record["id"],
            "subject": after.subject,
            "record": json.dumps(record),
            "completed_at": entry.at_us,
        }
        connection.execute(insert(connection, schema.resets).values(row).on_conflict_do_nothing())


def _revoke_release(connection: Connection, change: LoggedChange) -> None:
    entry = change.entry
    values = {"revoked_at": entry.at_us, "revoke_reason": entry.reason, "revoke_actor": entry.actor}
    mine = (_R.tenant == entry.tenant, _R.id == _named(entry), _R.revoked_at.is_(None))
    connection.execute(update(schema.releases).where(*mine).values(values))


def _quarantine(connection: Connection, change: LoggedChange) -> None:
    _withhold(connection, change.entry, _named(change.entry), QUARANTINED)


def _roll_back(connection: Connection, change: LoggedChange) -> None:
    """What was live is served no more. Where the pointer stood before is lost; resolve falls back by itself."""
    version = json.loads(change.entry.details).get("old")
    if version is not None:
        _withhold(connection, change.entry, version, ROLLED_BACK)


def _withhold(connection: Connection, entry: AuditEntry, version: str, why: str) -> None:
    values = {"withheld": why, "withheld_reason": entry.reason}
    mine = (_V.tenant == entry.tenant, _V.id == version, _V.withheld.is_distinct_from(QUARANTINED))
    connection.execute(update(schema.versions).where(*mine).values(values))


def _withdraw_key(connection: Connection, change: LoggedChange) -> None:
    entry = change.entry
    row = {"key_id": _named(entry), "at": entry.at_us, "reason": entry.reason, "actor": entry.actor}
    connection.execute(insert(connection, schema.withdrawn_keys).values(row).on_conflict_do_nothing())


def _revoke_api_key(connection: Connection, change: LoggedChange) -> None:
    mine = (_K.id == _named(change.entry), _K.revoked_at.is_(None))
    connection.execute(update(schema.api_keys).where(*mine).values(revoked_at=change.entry.at_us))


def _charge(connection: Connection, change: LoggedChange) -> None:
    """The run is settled: nothing that it published is here, and nothing more will come of it."""
    run, subjects = change.extra["run"], change.extra.get("subjects", [])
    if connection.scalar(select(_L.id).where(_L.tenant == run["tenant"], _L.id == run["id"])) is not None:
        return
    row = run | {"accounts": len(subjects), "settled_at": change.entry.at_us}
    connection.execute(schema.ledger_runs.insert(), row)
    for chunk in chunks(subjects):
        charge(connection, run, change.extra["rho"], chunk)


def _named(entry: AuditEntry) -> str:
    """The id at the end of the entry's object: `release <id>`."""
    return entry.object.rsplit(" ", 1)[1]


_OF_PERSON = frozenset({"reset", "consent.change"})
_APPLY: Mapping[str, Callable[[Connection, LoggedChange], None]] = {
    "release.revoke": _revoke_release,
    "version.quarantine": _quarantine,
    "pointer.rollback": _roll_back,
    "signing_key.withdraw": _withdraw_key,
    "api_key.revoke": _revoke_api_key,
    "ledger.reserve": _charge,
}
