"""Rollouts as rows, and what a candidate must be."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, select, update

from idiolect.errors import ConflictError, InvalidInputError, NotFoundError
from idiolect.rollouts.plan import ACTIVE, Candidate, Plan, Rollout, Slot
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import IS_HERE, LIVE_VERSION, RELEASE_IS_HERE
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.global_trials import mirror_trial
from idiolect.stores.sql.tenant_wall import beyond_the_wall
from idiolect.stores.sql.times import micros, moment
from idiolect.stores.sql.withheld import KEY_WITHDRAWN

_O, _G = schema.rollouts.c, schema.global_pointer.c
_V, _R, _P = schema.versions.c, schema.releases.c, schema.pointers.c
_A = schema.arrivals.c
_LIVE_GLOBAL = select(_G.digest).order_by(_G.id.desc()).limit(1)
_BY_ID = select(schema.rollouts).where(_O.tenant == bindparam("tenant"), _O.id == bindparam("id"))

Owners = tuple[tuple[Slot, str], ...]


def load(connection: Connection, tenant: str, rollout_id: str, *, lock: bool = False) -> Rollout | None:
    statement = _BY_ID.with_for_update() if lock else _BY_ID
    row = connection.execute(statement, {"tenant": tenant, "id": rollout_id}).one_or_none()
    return None if row is None else rollout_of(row)


def loaded(connection: Connection, tenant: str, rollout_id: str, *, lock: bool = False) -> Rollout:
    found = load(connection, tenant, rollout_id, lock=lock)
    if found is None:
        raise NotFoundError(f"there is no rollout {rollout_id[:80]!r}.", mend="List the tenant's rollouts.")
    return found


def rollout_of(row: AnyRow) -> Rollout:
    return Rollout(
        id=row.id,
        tenant=row.tenant,
        candidate=Candidate(row.kind, row.candidate, row.strength),
        plan=Plan.from_json(json.loads(row.plan)),
        state=row.state,
        step=row.step,
        revision=row.revision,
        verdict=row.verdict,
        reason=row.reason,
        actor=row.actor,
        created_at=moment(row.created_at),
        moved_at=moment(row.moved_at),
        owners=tuple((slot, domain) for slot, domain in json.loads(row.owners)),
    )


def row_of(rollout: Rollout, salt: bytes, release: str | None) -> dict[str, Any]:
    return {
        "tenant": rollout.tenant,
        "id": rollout.id,
        "kind": rollout.candidate.kind,
        "candidate": rollout.candidate.id,
        "release": release,
        "strength": rollout.candidate.strength,
        "owners": json.dumps(rollout.owners),
        "plan": json.dumps(rollout.plan.to_json()),
        "salt": salt,
        "fence": 0,
        "created_at": micros(rollout.created_at),
    } | changes_of(rollout)


def changes_of(rollout: Rollout) -> dict[str, Any]:
    return {
        "state": rollout.state,
        "step": rollout.step,
        "share": rollout.share,
        "revision": rollout.revision,
        "verdict": rollout.verdict,
        "reason": rollout.reason,
        "actor": rollout.actor,
        "moved_at": micros(rollout.moved_at),
    }


def save(connection: Connection, rollout: Rollout, at: datetime) -> None:
    mine = and_(_O.tenant == rollout.tenant, _O.id == rollout.id)
    connection.execute(update(schema.rollouts).where(mine).values(changes_of(rollout)))
    occupy(connection, rollout)
    write_history(connection, rollout, at)


def write_history(connection: Connection, rollout: Rollout, at: datetime) -> None:
    """`at`: of this change, which need not end the step that `moved_at` is of."""
    row = changes_of(rollout)
    kept = {name: row[name] for name in ("state", "step", "verdict", "reason", "actor")}
    connection.execute(
        schema.rollout_history.insert(),
        kept | {"tenant": rollout.tenant, "rollout": rollout.id, "at": micros(at)},
    )


def occupy(connection: Connection, rollout: Rollout) -> None:
    """The slots of an active rollout are its own, of any other free. Raises ConflictError if one is another's."""
    if rollout.candidate.kind == "global":
        mirror_trial(connection, rollout)
        return
    slots = schema.rollout_slots
    mine = (slots.c.tenant == rollout.tenant, slots.c.rollout == rollout.id)
    if rollout.state not in ACTIVE:
        connection.execute(slots.delete().where(*mine))
        return
    held = {(row.slot, row.domain) for row in connection.execute(select(slots.c.slot, slots.c.domain).where(*mine))}
    for slot, domain in rollout.owners:
        if (slot, domain) in held:
            continue
        at = (slots.c.tenant == rollout.tenant, slots.c.slot == slot, slots.c.domain == domain)
        other = connection.scalar(select(slots.c.rollout).where(*at))
        if other is not None:
            raise ConflictError(
                f"the rollout {other} runs on the same {slot} pointer{' of ' + domain if domain else 's'}.",
                mend="Wait until it ends, or abort it.",
            )
        row = {"tenant": rollout.tenant, "slot": slot, "domain": domain, "rollout": rollout.id}
        connection.execute(slots.insert(), row)


def newest_seq(connection: Connection, tenant: str) -> int:
    """Of what is there: versions that are arriving will come after it, and with them what was published meanwhile."""
    before: int | None = connection.scalar(select(_A.versions).where(_A.tenant == tenant))
    if before is not None:
        return before
    with beyond_the_wall(connection):  # by the primary key; of one tenant's own it would be a search
        return connection.scalar(select(func.coalesce(func.max(_V.seq), 0))) or 0


def release_of(connection: Connection, tenant: str, candidate: Candidate) -> tuple[str | None, Owners]:
    """The release that holds the candidate's versions, and its owners. Raises NotFoundError, ConflictError,
    InvalidInputError.
    """
    if candidate.kind == "setting":
        return None, (("setting", ""),)
    if candidate.kind == "release":
        check_release(connection, tenant, candidate.id)
        return candidate.id, _owners(connection, tenant, candidate.id)
    where = (_V.tenant == tenant, _V.id == candidate.id, IS_HERE)
    row = connection.execute(select(_V.release, _V.subject, _V.domain).where(*where)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no version {candidate.id[:80]!r}.", mend="List the tenant's versions.")
    if row.subject:
        raise InvalidInputError(
            f"version {candidate.id[:80]} is one person's, and one person is no sample.",
            mend="Roll out its release, or promote the version.",
        )
    check_release(connection, tenant, row.release)
    if _is_live(connection, tenant, candidate.id):
        raise ConflictError(f"version {candidate.id[:80]} is live already.", mend="Roll out another one.")
    return row.release, (("domain", row.domain),)


def check_release(connection: Connection, tenant: str, release: str) -> None:
    fault = release_fault(connection, tenant, release)
    if fault == "it does not exist":
        raise NotFoundError(f"there is no release {release[:80]!r}.", mend="List the tenant's releases.")
    if fault is not None:
        raise ConflictError(f"the release {release[:80]} can't be rolled out: {fault}.", mend="Train again.")


def release_fault(connection: Connection, tenant: str, release: str | None) -> str | None:
    """Why versions of it may not be served (any more)."""
    if release is None:
        return None
    mine = (_R.tenant == tenant, _R.id == release, RELEASE_IS_HERE)
    row = connection.execute(select(_R.scope, _R.revoked_at, _R.global_digest).where(*mine)).one_or_none()
    if row is None:
        return "it does not exist"
    if row.scope == "global":
        return "it is of the global model, and lives with that alone"
    if row.revoked_at is not None:
        return "it was revoked"
    return None if row.global_digest == connection.scalar(_LIVE_GLOBAL) else "it is bound to another global model"


def _owners(connection: Connection, tenant: str, release: str) -> Owners:
    of_release = (_V.tenant == tenant, _V.release == release)
    if connection.execute(select(_V.id).where(*of_release, _V.subject != "").limit(1)).first() is not None:
        return (("user", ""),)
    domains = connection.scalars(select(_V.domain).where(*of_release).order_by(_V.domain)).all()
    if not domains:
        raise ConflictError(f"the release {release[:80]} holds no version.", mend="Roll out another one.")
    if all(_is_live_of(connection, tenant, release, domain) for domain in domains):
        raise ConflictError(f"the release {release[:80]} is live already.", mend="Roll out another one.")
    return tuple(("domain", domain) for domain in domains)


def _is_live(connection: Connection, tenant: str, version: str) -> bool:
    owner = select(_V.subject, _V.domain).where(_V.tenant == tenant, _V.id == version).subquery()
    query = select(LIVE_VERSION).where(
        _P.tenant == tenant,
        _P.subject == select(owner.c.subject).scalar_subquery(),
        _P.domain == select(owner.c.domain).scalar_subquery(),
        _P.name == "live",
    )
    return connection.scalar(query) == version


def _is_live_of(connection: Connection, tenant: str, release: str, domain: str) -> bool:
    query = select(_V.id).where(_V.tenant == tenant, _V.release == release, _V.domain == domain)
    version = connection.scalar(query.limit(1))
    return version is not None and _is_live(connection, tenant, version)


def withdrawn(connection: Connection, rollout: Rollout, release: str | None) -> str | None:
    """Why the candidate can no longer be served to anybody, or None."""
    if release is None:
        return None
    fault = release_fault(connection, rollout.tenant, release)
    if fault is not None or rollout.candidate.kind != "version":
        return fault
    where = (_V.tenant == rollout.tenant, _V.id == rollout.candidate.id)
    row = connection.execute(select(_V.withheld, KEY_WITHDRAWN.label("key_withdrawn")).where(*where)).one_or_none()
    if row is None or row.withheld is not None or row.key_withdrawn:
        return "it is withheld"
    return None
