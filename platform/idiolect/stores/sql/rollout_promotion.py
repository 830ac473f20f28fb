"""A rollout that completed: its candidate becomes live for everybody that it covered, in the move's own transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, func, or_, select, update

from idiolect.rollouts.plan import Rollout
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import LIVE_TO_JOIN, WHAT_ARRIVES, replacing
from idiolect.stores.sql.engine import AnyRow, chunks, insert
from idiolect.stores.sql.times import micros
from idiolect.stores.sql.withheld import KEY_WITHDRAWN

_O, _P, _V, _R = schema.rollouts.c, schema.pointers.c, schema.versions.c, schema.releases.c
_S, _T = schema.subjects.c, schema.tombstones.c


def promote(connection: Connection, rollout: Rollout, release: str, fence: int) -> int:
    """How many pointers moved. Whoever has moved on (see `rollout_serving`), was reset or left keeps what they have."""
    rows = _wanted(connection, rollout, release, fence)
    for batch in chunks(rows):
        _move(connection, rollout, batch)
    unstaged = and_(_R.tenant == rollout.tenant, _R.id == release, _covers_all(rollout))
    connection.execute(update(schema.releases).where(unstaged).values(staged=False))
    return len(rows)


def _covers_all(rollout: Rollout) -> Any:
    """A version alone leaves the rest of its release staged: nobody was ever served that."""
    return _R.versions == 1 if rollout.candidate.kind == "version" else _R.id.is_not(None)


def _wanted(connection: Connection, rollout: Rollout, release: str, fence: int) -> list[AnyRow]:
    tenant = rollout.tenant
    live = schema.versions.alias("live")
    on_pointer = and_(_P.tenant == tenant, _P.subject == _V.subject, _P.domain == _V.domain, _P.name == "live")
    allowed_person = and_(
        _S.opted_in, _S.generation == _V.generation, func.coalesce(_T.generation, -1) <= _V.generation
    )
    query = (
        select(_V.id, _V.subject, _V.domain, LIVE_TO_JOIN.label("old"))
        .select_from(schema.versions)
        .outerjoin(schema.pointers, on_pointer)
        .outerjoin(schema.arrivals, WHAT_ARRIVES)
        .outerjoin(live, and_(live.c.tenant == tenant, live.c.id == LIVE_TO_JOIN))
        .outerjoin(schema.subjects, and_(_S.tenant == tenant, _S.subject == _V.subject))
        .outerjoin(schema.tombstones, and_(_T.tenant == tenant, _T.subject == _V.subject))
        .where(_V.tenant == tenant, _V.release == release, _V.withheld.is_(None), ~KEY_WITHDRAWN)
        .where(or_(live.c.seq.is_(None), and_(live.c.seq <= fence, live.c.id != _V.id)))
        .where(or_(_V.subject == "", allowed_person))
    )
    if rollout.candidate.kind == "version":
        query = query.where(_V.id == rollout.candidate.id)
    return list(connection.execute(query.order_by(_V.subject, _V.domain)))


def _move(connection: Connection, rollout: Rollout, batch: Any) -> None:
    moves: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    said = {"at": micros(rollout.moved_at), "reason": f"rollout {rollout.id} completed", "actor": rollout.actor}
    for row in batch:
        owner = {"tenant": rollout.tenant, "subject": row.subject, "domain": row.domain}
        moves.append(owner | {"name": "live", "version": row.id, "revision": 1})
        if row.old is not None:
            moves.append(owner | {"name": "previous", "version": row.old, "revision": 1})
        history.append(owner | {"name": "live", "old_version": row.old, "version": row.id} | said)
    statement = insert(connection, schema.pointers)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant", "subject", "domain", "name"],
            set_=replacing(),
        ),
        moves,
    )
    connection.execute(schema.pointer_history.insert(), history)
