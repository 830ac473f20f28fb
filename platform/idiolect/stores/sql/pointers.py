"""Moving pointers. A move locks one person's or domain's pointer, never the tenant, so a long publish delays none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, delete, func, literal, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement

from idiolect.audit import AuditEvent
from idiolect.errors import ConflictError, NotFoundError, PreconditionError
from idiolect.registry.pointers import (
    LIVE,
    PREVIOUS,
    ROLLED_BACK,
    Adapter,
    Candidate,
    Pointer,
    PointerMove,
    check_promotable,
)
from idiolect.stores.people_ports import ClaimedKey
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import (
    IS_HERE,
    LIVE_REVISION,
    LIVE_VERSION,
    NEXT_REVISION,
    RELEASE_IS_HERE,
    STANDING,
    STILL_COMING,
    arriving,
    replacing,
    standing,
)
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import AnyRow, Hold, hold, insert
from idiolect.stores.sql.idempotency import first_time
from idiolect.stores.sql.moves import moves_of
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import load_state
from idiolect.stores.sql.times import micros, moment
from idiolect.stores.sql.withheld import KEY_WITHDRAWN

_P, _V, _R = schema.pointers.c, schema.versions.c, schema.releases.c
_S, _T, _M, _G = schema.subjects.c, schema.tombstones.c, schema.pointer_history.c, schema.global_pointer.c
_LIVE_GLOBAL = select(_G.digest).order_by(_G.id.desc()).limit(1)
_ID = case(
    (
        _P.subject == "",
        literal("domain:") + _P.domain,
    ),
    else_=literal("user:") + _P.subject,
)
_CANDIDATE = (
    select(
        _V.id,
        _V.seq,
        _V.subject,
        _V.domain,
        _V.generation,
        _V.withheld,
        _V.withheld_reason,
        _R.revoked_at,
        _R.global_digest,
        KEY_WITHDRAWN.label("key_withdrawn"),
    )
    .select_from(schema.versions)
    .join(schema.releases, and_(_R.tenant == _V.tenant, _R.id == _V.release))
    .where(_V.tenant == bindparam("tenant"), _V.id == bindparam("id"), IS_HERE)
)
_OF_OWNER = (
    select(*STANDING)
    .where(*(_P[name] == bindparam(name) for name in ("tenant", "subject", "domain")))
    .order_by(_P.name)
)
_OF_OWNER_LOCKED = _OF_OWNER.with_for_update()
_STONE = select(_T.generation).where(_T.tenant == bindparam("tenant"), _T.subject == bindparam("subject"))
_KEY = ("tenant", "subject", "domain", "name")
_FIRST = schema.pointers.insert().values({name: bindparam(name) for name in (*_KEY, "version", "revision")})
_NEXT = (
    update(schema.pointers)
    .where(*(_P[name] == bindparam(f"of_{name}") for name in _KEY), bindparam("seen") == LIVE_REVISION)
    .values(
        version=bindparam("new_version"),
        revision=text(NEXT_REVISION),
        **{name: text(value) for name, value in STILL_COMING.items()},
    )
)
_MOVED = schema.pointer_history.insert().values(
    {name: bindparam(name) for name in (*_KEY, "old_version", "version", "at", "reason", "actor")}
)
_WITHHELD = (
    update(schema.versions)
    .where(_V.tenant == bindparam("of_tenant"), _V.id == bindparam("of_id"))
    .where(or_(_V.withheld.is_(None), _V.withheld == ROLLED_BACK))
    .values(withheld=bindparam("why"), withheld_reason=bindparam("because"))
)


def _renewing(dialect: Any) -> Any:
    new = dialect.insert(schema.pointers).values({name: bindparam(name) for name in (*_KEY, "version", "revision")})
    return new.on_conflict_do_update(index_elements=list(_KEY), set_=replacing())


_RENEWED = {"sqlite": _renewing(sqlite), "postgresql": _renewing(postgresql)}


class Pointers(Part):
    def pointers(self, tenant: str, adapter: Adapter) -> Sequence[Pointer]:
        with self._database.reading(tenant) as connection:
            found = _pointers(connection, tenant, adapter)
        return [found.pop(LIVE, Pointer(LIVE, None, 0)), *(found[name] for name in sorted(found))]

    def adapters(self, tenant: str, *, after: str = "", limit: int = 100) -> Sequence[tuple[Adapter, Pointer]]:
        live = (LIVE_VERSION.label("version"), LIVE_REVISION.label("revision"))
        query = select(_P.subject, _P.domain, *live).where(_P.tenant == tenant, _P.name == LIVE)
        query = query.where(LIVE_VERSION.is_not(None))
        if after:
            query = query.where(beyond(Adapter.parse(after)))
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query.order_by(_P.subject, _P.domain).limit(limit)).all()
        return [(Adapter.of(row.subject, row.domain), Pointer(LIVE, row.version, row.revision)) for row in rows]

    def promote(
        self, tenant: str, version_id: str, now: datetime, *, reason: str, actor: str, if_match: str | None = None
    ) -> Pointer:
        move = PointerChange(tenant, micros(now), reason, actor, if_match)
        return self._database.lasting_write(tenant, lambda connection: _promote(connection, move, version_id))

    def promote_release(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> int:
        move = PointerChange(tenant, micros(now), reason, actor, None)
        return self._database.write(tenant, lambda connection: _promote_release(connection, move, release))

    def rollback(
        self,
        tenant: str,
        adapter: Adapter,
        now: datetime,
        *,
        reason: str,
        actor: str,
        if_match: str | None = None,
        once: ClaimedKey | None = None,
    ) -> Pointer:
        move = PointerChange(tenant, micros(now), reason, actor, if_match)
        return self._database.write(tenant, lambda connection: _rollback(connection, move, adapter, once))

    def pointer_history(
        self, tenant: str, adapter: Adapter, *, before: int | None = None, limit: int = 100
    ) -> Sequence[PointerMove]:
        moves = moves_of(tenant, adapter.subject, adapter.domain)
        query = select(moves).order_by(moves.c.place.desc()).limit(limit)
        if before is not None:
            query = query.where(moves.c.place < before)
        with self._database.reading(tenant) as connection:
            rows = connection.execute(query).all()
        return [_move_of(row) for row in rows]


class PointerChange:
    """Who moves a pointer, when and why."""

    def __init__(self, tenant: str, at: int, reason: str, actor: str, if_match: str | None) -> None:
        self.tenant, self.at, self.reason, self.actor, self.if_match = tenant, at, reason, actor, if_match

    def event(self, action: str, of: str, **details: Any) -> AuditEvent:
        return AuditEvent(self.actor, action, of, self.reason, details)


def beyond(adapter: Adapter) -> ColumnElement[bool]:
    later_domain = and_(_P.subject == adapter.subject, _P.domain > adapter.domain)
    return or_(_P.subject > adapter.subject, later_domain)


def _pointers(connection: Connection, tenant: str, adapter: Adapter) -> dict[str, Pointer]:
    owner = {"tenant": tenant, "subject": adapter.subject, "domain": adapter.domain}
    return standing(connection.execute(_OF_OWNER, owner).all())


def _promote(connection: Connection, move: PointerChange, version_id: str) -> Pointer:
    hold(connection, move.tenant, Hold.NOTHING_ERASED)
    candidate = _candidate(connection, move.tenant, version_id)
    if candidate is None:
        raise NotFoundError(f"there is no version {version_id[:80]!r}.", mend="See: idiolect registry list --versions.")
    live = _expected(connection, move, candidate.adapter)
    _check(connection, move.tenant, candidate, "be made live")
    if live.version == candidate.version:
        return live
    moved = _set(connection, move, candidate.adapter, live, candidate.version)
    if live.version is not None:
        _upsert(connection, move.tenant, candidate.adapter, PREVIOUS, live.version)
    if candidate.withheld == ROLLED_BACK:
        _withhold(connection, move.tenant, candidate.version, None, None)
    event = move.event("pointer.promote", f"adapter {candidate.adapter.id}", old=live.version, new=moved.version)
    append(connection, move.tenant, event, move.at)
    return moved


def _rollback(connection: Connection, move: PointerChange, adapter: Adapter, once: ClaimedKey | None) -> Pointer:
    if once is not None and not first_time(connection, move.tenant, once):
        return _pointers(connection, move.tenant, adapter).get(LIVE, Pointer(LIVE, None, 0))
    hold(connection, move.tenant, Hold.NOTHING_ERASED)
    live = _expected(connection, move, adapter)
    if live.version is None:
        raise NotFoundError(f"nothing is live for {adapter.id[:80]!r}.", mend="See: idiolect registry list.")
    previous = _pointers(connection, move.tenant, adapter).get(PREVIOUS)
    candidate = None
    if previous is not None and previous.version is not None:
        candidate = _candidate(connection, move.tenant, previous.version)
    if candidate is None or candidate.version == live.version:
        raise ConflictError(
            f"{adapter.id} has no previous version to go back to.",
            mend="Promote another version, or revoke the release of the live one.",
            code="not_promotable",
        )
    _check(connection, move.tenant, candidate, "be gone back to")
    moved = _set(connection, move, adapter, live, candidate.version)
    _withhold(connection, move.tenant, live.version, ROLLED_BACK, move.reason)
    _renew_previous(connection, move.tenant, candidate)
    event = move.event("pointer.rollback", f"adapter {adapter.id}", old=live.version, new=moved.version)
    append(connection, move.tenant, event, move.at)
    return moved


def _expected(connection: Connection, move: PointerChange, adapter: Adapter) -> Pointer:
    """The live pointer, locked. Raises PreconditionError if the caller expected another."""
    live = _locked(connection, move.tenant, adapter).get(LIVE, Pointer(LIVE, None, 0))
    if move.if_match is not None and move.if_match != live.etag:
        raise PreconditionError(
            f"the live pointer of {adapter.id} is at revision {live.revision}, not the expected one.",
            mend="Read it again and decide.",
        )
    return live


def _locked(connection: Connection, tenant: str, adapter: Adapter) -> dict[str, Pointer]:
    """Also what is coming for them neither comes nor ends meanwhile."""
    owner = {"tenant": tenant, "subject": adapter.subject, "domain": adapter.domain}
    rows = connection.execute(_OF_OWNER_LOCKED, owner).all()
    if any(row.coming is not None for row in rows):
        arriving(connection, tenant, keep=True)
        return _pointers(connection, tenant, adapter)  # as it stands now; what was just read may be older
    return standing(rows)


def _check(connection: Connection, tenant: str, candidate: Candidate, what: str) -> None:
    subject = candidate.adapter.subject
    state = load_state(connection, tenant, subject, lock=True) if subject else None
    stone = connection.scalar(_STONE, {"tenant": tenant, "subject": subject})
    check_promotable(candidate, state, -1 if stone is None else stone, connection.scalar(_LIVE_GLOBAL), what)


def _candidate(connection: Connection, tenant: str, version_id: str) -> Candidate | None:
    row = connection.execute(_CANDIDATE, {"tenant": tenant, "id": version_id}).one_or_none()
    return None if row is None else _candidate_of(row)


def _candidate_of(row: AnyRow) -> Candidate:
    return Candidate(
        row.id,
        Adapter.of(row.subject, row.domain),
        row.generation,
        row.revoked_at is not None,
        row.withheld,
        row.withheld_reason,
        bool(row.key_withdrawn),
        row.global_digest,
    )


def _set(connection: Connection, move: PointerChange, adapter: Adapter, live: Pointer, version: str) -> Pointer:
    row = {"tenant": move.tenant, "subject": adapter.subject, "domain": adapter.domain, "name": LIVE}
    named = {f"of_{name}": value for name, value in row.items()}
    if not connection.execute(_NEXT, named | {"new_version": version, "seen": live.revision}).rowcount:
        connection.execute(_FIRST, row | {"version": version, "revision": 1})
    said = {"old_version": live.version, "version": version, "at": move.at, "reason": move.reason, "actor": move.actor}
    connection.execute(_MOVED, row | said)
    return Pointer(LIVE, version, live.revision + 1)


def _upsert(connection: Connection, tenant: str, adapter: Adapter, name: str, version: str) -> None:
    row = {"tenant": tenant, "subject": adapter.subject, "domain": adapter.domain, "name": name}
    connection.execute(_RENEWED[connection.dialect.name], row | {"version": version, "revision": 1})


def _withhold(connection: Connection, tenant: str, version: str, why: str | None, reason: str | None) -> None:
    """A quarantine stays whatever happens."""
    said = {"of_tenant": tenant, "of_id": version, "why": why, "because": reason}
    connection.execute(_WITHHELD, said)


def _renew_previous(connection: Connection, tenant: str, live: Candidate) -> None:
    """`previous` becomes the newest version before `live` that could be served, or goes."""
    owner = (_V.tenant == tenant, _V.subject == live.adapter.subject, _V.domain == live.adapter.domain)
    seq = select(_V.seq).where(_V.tenant == tenant, _V.id == live.version).scalar_subquery()
    older = connection.scalar(
        select(_V.id)
        .join(schema.releases, and_(_R.tenant == _V.tenant, _R.id == _V.release))
        .where(*owner, _V.seq < seq, _V.generation == live.generation, _R.global_digest == live.global_digest)
        .where(_R.revoked_at.is_(None), ~_R.staged, _V.withheld.is_(None), ~KEY_WITHDRAWN, IS_HERE)
        .order_by(_V.seq.desc())
        .limit(1)
    )
    if older is not None:
        _upsert(connection, tenant, live.adapter, PREVIOUS, older)
        return
    mine = (_P.tenant == tenant, _P.subject == live.adapter.subject, _P.domain == live.adapter.domain)
    connection.execute(delete(schema.pointers).where(*mine, _P.name == PREVIOUS))


def _promote_release(connection: Connection, move: PointerChange, release: str) -> int:
    """Four statements whatever the size. Versions that may not be live keep their owner's pointer where it is."""
    tenant = move.tenant
    hold(connection, tenant, Hold.ONE_RUN)
    row = connection.execute(
        select(_R.scope, _R.revoked_at, _R.global_digest)
        .where(_R.tenant == tenant, _R.id == release, RELEASE_IS_HERE)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"the release {release[:80]!r} does not exist.", mend="List the tenant's releases.")
    if row.scope == "global":
        raise ConflictError(
            f"the release {release[:80]} is of the global model, and lives with that alone.",
            mend="Release the adapters of a training of domains or users.",
            code="not_promotable",
        )
    if row.revoked_at is not None or row.global_digest != connection.scalar(_LIVE_GLOBAL):
        why = "it was revoked" if row.revoked_at is not None else "it is bound to another global model"
        raise ConflictError(
            f"the release {release[:80]} can't be made live: {why}.", mend="Train again.", code="not_promotable"
        )
    moved = move_all(connection, move, release)
    if moved:
        connection.execute(update(schema.releases).where(_R.tenant == tenant, _R.id == release).values(staged=False))
        event = move.event("release.promote", f"release {release}", pointers=moved)
        append(connection, tenant, event, move.at)
    return moved


def move_all(connection: Connection, move: PointerChange, release: str, *only: ColumnElement[bool]) -> int:
    """How many pointers moved to versions of the release; `only`: conditions on rows of `versions` and `pointers`."""
    tenant = move.tenant
    table = schema.pointers
    wanted = (
        select(_V.subject, _V.domain, _V.id.label("new"), LIVE_VERSION.label("old"))
        .select_from(schema.versions)
        .outerjoin(table, and_(_P.tenant == tenant, _P.subject == _V.subject, _P.domain == _V.domain, _P.name == LIVE))
        .outerjoin(schema.subjects, and_(_S.tenant == tenant, _S.subject == _V.subject))
        .outerjoin(schema.tombstones, and_(_T.tenant == tenant, _T.subject == _V.subject))
        .where(_V.tenant == tenant, _V.release == release, func.coalesce(_V.withheld, ROLLED_BACK) == ROLLED_BACK)
        .where(~KEY_WITHDRAWN, IS_HERE, or_(LIVE_VERSION.is_(None), _V.id != LIVE_VERSION), *only)
        .where(
            or_(
                _V.subject == "",
                and_(_S.opted_in, _S.generation == _V.generation, func.coalesce(_T.generation, -1) <= _V.generation),
            )
        )
        .subquery("wanted")
    )
    said = [literal(value) for value in (move.at, move.reason, move.actor)]
    columns = ["tenant", "subject", "domain", "name", "old_version", "version", "at", "reason", "actor"]
    owner = (literal(tenant), wanted.c.subject, wanted.c.domain)
    history = select(*owner, literal(LIVE), wanted.c.old, wanted.c.new, *said)
    first = connection.scalar(select(func.coalesce(func.max(_M.id), 0))) or 0
    connection.execute(schema.pointer_history.insert().from_select(columns, history))
    # From here on what moves is read from the history that was just written: moving pointers changes `wanted`.
    mine = and_(_M.id > first, _M.tenant == tenant, _M.name == LIVE, _M.at == move.at)
    chosen = select(_M.subject, _M.domain, _M.old_version, _M.version).where(mine)
    moved = chosen.join(schema.versions, and_(_V.tenant == tenant, _V.id == _M.version)).where(_V.release == release)
    rows = moved.subquery("moved")
    _upsert_all(connection, tenant, PREVIOUS, select(rows).where(rows.c.old_version.is_not(None)), "old_version")
    count = _upsert_all(connection, tenant, LIVE, select(rows), "version")
    freed = (_V.tenant == tenant, _V.release == release, _V.withheld == ROLLED_BACK)
    connection.execute(
        update(schema.versions)
        .where(*freed, _V.id.in_(select(rows.c.version)))
        .values(withheld=None, withheld_reason=None)
    )
    return count


def _upsert_all(connection: Connection, tenant: str, name: str, rows: Any, version: str) -> int:
    inner = rows.subquery(f"for_{name}")
    row = (literal(tenant), inner.c.subject, inner.c.domain, literal(name), inner.c[version], literal(1))
    chosen = select(*row).where(literal(1) == 1)  # SQLite reads an ON after a SELECT without WHERE as part of a join
    statement = insert(connection, schema.pointers).from_select(
        ["tenant", "subject", "domain", "name", "version", "revision"], chosen
    )
    moved = statement.on_conflict_do_update(
        index_elements=["tenant", "subject", "domain", "name"],
        set_=replacing(),
    )
    return connection.execute(moved, execution_options={"preserve_rowcount": True}).rowcount


def _move_of(row: AnyRow) -> PointerMove:
    return PointerMove(row.place, row.name, row.old_version, row.version, moment(row.at), row.reason, row.actor)
