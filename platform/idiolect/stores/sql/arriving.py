"""Publishing a release in batches, so that resets and everything else go on in between.

1. Its row is written, and one in `arrivals`, which hides it (see `arrivals`).
2. Batch by batch: fences are checked as ever, versions are written, and pointers told what is coming. A reset that gets
   in between takes its person's version away, and a later batch finds the person fenced.
3. All at once it is there: the row in `arrivals` goes, in a small transaction. What is left to do then is about those
   who were reset, or whose pointer moved, while it arrived.

Cut off anywhere, it serves nobody. Sent again it goes on: what is there is left alone. What nobody sends again is given
up by the tenant's next release in batches, or by garbage collection. Only the last transaction waits for the disk: a
power cut may take the last batches, and then the arrival is found as it was before them.

A batch is sealed before its transaction, so that others get their turn meanwhile. Its people's keys were asked for in
the transaction before: made between the two, one might be somebody's who had just been forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import sleep
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, select, update

from idiolect.audit import AuditEvent
from idiolect.errors import UnavailableError
from idiolect.registry.garbage import Garbage
from idiolect.registry.manifest import Version
from idiolect.stores.ports import PublishOutcome
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import tell_arriving
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.bulk import in_two_passes, insert_columns
from idiolect.stores.sql.engine import AnyRow, Database, Hold, among, chunks, hold
from idiolect.stores.sql.large_weights import Large, doom, doom_unused
from idiolect.stores.sql.moves import number_of_release
from idiolect.stores.sql.publishing import (
    Publication,
    Shared,
    divide,
    earlier_outcome,
    event_of,
    in_order,
    insert_release,
    keys_for,
    live_of,
    pointer_columns,
    replaced_of,
    shared_by,
    version_columns,
)
from idiolect.stores.sql.tenant_wall import beyond_the_wall
from idiolect.subject_keys import SubjectKey

BATCH = 1_000  # a release of no more is published in one transaction
_SPAN = 10 * BATCH  # within which versions come in two passes
ARRIVING_SECONDS = 30  # when to come back to a tenant whose other release still arrives
_LOOKS = 50  # for a sign of life, while waiting for another release

_A, _V, _R, _P = schema.arrivals.c, schema.versions.c, schema.releases.c, schema.pointers.c
SIZE = func.length(_V.weights) + func.coalesce(func.length(_V.sealed), 0) + func.length(_V.signature)
_COUNTED = select(func.count(), func.coalesce(func.sum(SIZE), 0))
_T, _M = schema.tombstones.c, schema.pointer_history.c
_ARRIVAL = select(schema.arrivals).where(_A.tenant == bindparam("tenant"))
_NEWEST = select(*(select(func.coalesce(func.max(column), 0)).scalar_subquery() for column in (_V.seq, _T.seq, _M.id)))
# A pointer that has moved on to what came before keeps that as what to go back to.
_MOVED_ON = "pointers.coming IS NOT NULL AND pointers.arrival <> excluded.arrival"
_TOLD = {
    "version": f"CASE WHEN {_MOVED_ON} THEN pointers.coming ELSE pointers.version END",
    "revision": f"pointers.revision + CASE WHEN {_MOVED_ON} THEN 1 ELSE 0 END",
    "coming": "excluded.coming",
    "arrival": "excluded.arrival",
}
_PREVIOUS = {"version": "excluded.version", "revision": "pointers.revision + 1"}


@dataclass(frozen=True, slots=True)
class _Ready:
    """Versions that nothing spoke against when their people's keys were asked for."""

    versions: Sequence[Version]
    keys: Mapping[str, SubjectKey]


@dataclass(frozen=True, slots=True)
class _Sending:
    """One call of `publish`."""

    database: Database
    publication: Publication
    content: bytes
    large: Large
    batches: Sequence[Sequence[Version]]
    shared: Shared
    kept: dict[int, Sequence[Version]] = field(default_factory=dict)  # by batch

    @property
    def tenant(self) -> str:
        return self.publication.template.tenant

    def ready(self, connection: Connection, number: int) -> _Ready:
        if number >= len(self.batches):
            return _Ready((), {})
        kept, _ = divide(connection, self.publication, self.batches[number])
        return _Ready(kept, keys_for(self.database.keys, self.tenant, kept, spread=True))

    def columns(self, ready: _Ready) -> dict[str, list[Any]]:
        return version_columns(self.publication, ready.versions, self.shared, ready.keys, self.large)


def publish_in_batches(database: Database, publication: Publication, content: bytes, large: Large) -> PublishOutcome:
    """Raises UnavailableError if another release of the tenant is arriving and goes on doing so."""
    versions = in_order(publication)
    batches = list(chunks(versions if database.is_sqlite else _spread(versions), BATCH))
    shared = shared_by(publication.template, versions, large)
    sending = _Sending(database, publication, content, large, batches, shared)
    while True:
        begun, ready = database.write(sending.tenant, partial(_begin, sending), lasting=False)
        if isinstance(begun, PublishOutcome):
            return begun
        if begun.release != publication.release or begun.given_up:
            _make_way(database, begun, publication)
            continue
        done = _arrive(sending, begun, ready)
        if done is not None:
            return done


def _spread(versions: Sequence[Version]) -> list[Version]:
    """Batches of every other version, and then of those between them, fill the pages of Postgres' indices. Not of all
    at once: what a batch is among is read with it."""
    return [version for span in chunks(versions, _SPAN) for version in in_two_passes(span)]


def _begin(sending: _Sending, connection: Connection) -> tuple[PublishOutcome | AnyRow, _Ready]:
    """Its arrival, or that of another release; or its outcome if it is there."""
    publication, nothing = sending.publication, _Ready((), {})
    hold(connection, sending.tenant, Hold.ONE_RUN)
    earlier = earlier_outcome(connection, publication, sending.content)
    if earlier is not None:
        doom_unused(connection, sending.large, sending.large.keys(), publication.at)
        return earlier, nothing
    arrival = _arrival(connection, sending.tenant)
    if arrival is None:
        insert_release(connection, publication, sending.content, PublishOutcome(0, ()), sending.shared)
        with beyond_the_wall(connection):  # by primary keys; of one tenant's own it would be a search
            versions, purges, moves = connection.execute(_NEWEST).one()
        row = {"tenant": sending.tenant, "release": publication.release, "given_up": False, "at": publication.at}
        newest = {"versions": versions, "purges": purges, "moves": moves}
        connection.execute(schema.arrivals.insert(), row | newest | {"batches": 0})
    elif arrival.release == publication.release:
        mine = and_(_R.tenant == sending.tenant, _R.id == publication.release)
        staged = connection.scalar(select(_R.staged).where(mine))
        # It may have begun before releases said it (schema 0018).
        connection.execute(update(schema.releases).where(mine).values(key_id=sending.shared.key_id or None))
        again = {"at": publication.at, "given_up": arrival.given_up or staged != publication.staged}
        connection.execute(update(schema.arrivals).where(_A.number == arrival.number).values(again))
    else:
        return arrival, nothing
    arrival = _arrival(connection, sending.tenant)
    assert arrival is not None
    return arrival, sending.ready(connection, 0)


def _arrival(connection: Connection, tenant: str, number: int | None = None, *, lock: bool = False) -> AnyRow | None:
    """With a `number` None too if it is another, or was given up."""
    row = connection.execute(_ARRIVAL.with_for_update() if lock else _ARRIVAL, {"tenant": tenant}).one_or_none()
    if number is not None and row is not None and (row.number != number or row.given_up):
        return None
    return row


def _arrive(sending: _Sending, arrival: AnyRow, ready: _Ready) -> PublishOutcome | None:
    """None if somebody ended it meanwhile: who sent it too, or who took it for abandoned."""
    database, tenant = sending.database, sending.tenant
    for number in range(len(sending.batches)):
        columns = sending.columns(ready)
        step = partial(_write_batch, sending, arrival, number, ready, columns)
        following = database.write(tenant, step, lasting=False)
        if following is None:
            return None
        ready = following
    kept = [version for batch in sending.kept.values() for version in batch]
    ids = {version.id for version in kept}
    fenced = [version.subject for version in sending.publication.versions if version.id not in ids]
    return database.write(tenant, partial(_be_there, sending.publication, arrival, kept, fenced))


def _write_batch(
    sending: _Sending,
    arrival: AnyRow,
    number: int,
    ready: _Ready,
    columns: dict[str, list[Any]],
    connection: Connection,
) -> _Ready | None:
    """The next one, ready. None if the arrival ended."""
    publication, tenant = sending.publication, sending.tenant
    hold(connection, tenant, Hold.ONE_RUN)
    if _arrival(connection, tenant, arrival.number) is None:
        return None
    kept, _ = divide(connection, publication, ready.versions)
    there = _there(connection, publication, kept)
    new = [version for version in kept if version.id not in there]
    unused = {version.id for version in sending.batches[number]} - {version.id for version in new}
    doom_unused(connection, sending.large, unused, publication.at)
    if new:
        _insert(connection, publication, arrival.number, new, _only(columns, {version.id for version in new}))
    lives = update(schema.arrivals).where(_A.number == arrival.number).values(batches=_A.batches + 1)
    connection.execute(lives)
    sending.kept[number] = kept
    return sending.ready(connection, number + 1)


def _there(connection: Connection, publication: Publication, batch: Sequence[Version]) -> set[str]:
    """Of a batch, what was written when it was sent before. By owner: among a million ids without statistics Postgres
    would look at all of them."""
    mine = (_V.tenant == publication.template.tenant, among(_V.subject, {version.subject for version in batch}))
    return set(connection.scalars(select(_V.id).where(*mine, _V.release == publication.release)))


def _only(columns: dict[str, list[Any]], ids: Collection[str]) -> dict[str, list[Any]]:
    mine = [id_ in ids for id_ in columns["id"]]
    if all(mine):
        return columns
    return {name: [one for one, kept in zip(values, mine, strict=True) if kept] for name, values in columns.items()}


def _insert(
    connection: Connection,
    publication: Publication,
    number: int,
    batch: Sequence[Version],
    columns: dict[str, list[Any]],
) -> None:
    if publication.staged:
        insert_columns(connection, schema.versions, columns, spread=True)
        return
    tenant = publication.template.tenant
    live = live_of(connection, tenant, batch)
    insert_columns(connection, schema.versions, columns | {"replaced": replaced_of(batch, live)}, spread=True)
    before = [
        (version, "previous", row.before)
        for version in batch
        if (row := live.get((version.subject, version.domain))) is not None and row.has_come and row.before
    ]
    insert_columns(
        connection,
        schema.pointers,
        pointer_columns(tenant, before) | {"revision": [1] * len(before)},
        instead=_PREVIOUS,
        spread=True,
    )
    coming: dict[str, list[Any]] = {
        "revision": [0] * len(batch),
        "coming": [version.id for version in batch],
        "arrival": [number] * len(batch),
    }
    nothing_yet = pointer_columns(tenant, [(version, "live", "") for version in batch])
    insert_columns(connection, schema.pointers, nothing_yet | coming, instead=_TOLD, spread=True)


def _be_there(
    publication: Publication,
    started: AnyRow,
    kept: Collection[Version],
    fenced: Collection[str],
    connection: Connection,
) -> PublishOutcome | None:
    """All of it, at once: each batch was committed with everybody who was not fenced, and whoever was reset after that
    has a later tombstone. None if the arrival ended."""
    tenant = publication.template.tenant
    hold(connection, tenant, Hold.ONE_RUN)
    arrival = _arrival(connection, tenant, started.number, lock=True)  # no pointer moves until this is committed
    if arrival is None:
        return None
    late = _fenced_since(connection, publication, kept, arrival)
    outcome = PublishOutcome(len(kept) - len(late), tuple(sorted([*fenced, *late])))
    values = {
        "versions": outcome.published,
        "fenced": json.dumps(outcome.fenced),
        "published_at": publication.at,
        "reason": publication.reason,
        "actor": publication.actor,
    }
    if not publication.staged:
        for chunk in chunks(_moved_since(connection, arrival)):
            tell_arriving(connection, tenant, _V.subject.in_(chunk))
        values["moves"] = number_of_release(
            connection, tenant, publication.release, publication.at, publication.reason, publication.actor
        )
    mine = and_(_R.tenant == tenant, _R.id == publication.release)
    connection.execute(update(schema.releases).where(mine).values(values))
    connection.execute(delete(schema.arrivals).where(_A.number == arrival.number))
    append(connection, tenant, event_of(publication, outcome), publication.at)
    return outcome


def _fenced_since(
    connection: Connection, publication: Publication, kept: Collection[Version], arrival: AnyRow
) -> Sequence[str]:
    """People; nothing is left of theirs."""
    reset = set(connection.scalars(select(_T.subject).where(_T.seq > arrival.purges, _T.tenant == arrival.tenant)))
    found: list[str] = []
    for chunk in chunks([version for version in kept if version.subject in reset] if reset else []):
        _, people = divide(connection, publication, chunk)
        _drop(connection, arrival, _V.subject.in_(people), publication.at)
        found += people
    return found


def _moved_since(connection: Connection, arrival: AnyRow) -> list[str]:
    """Whose live pointer moved; of what was published meanwhile, the publishing told the arrival."""
    mine = (_M.id > arrival.moves, _M.tenant == arrival.tenant, _M.name == "live")
    return sorted(connection.scalars(select(_M.subject).where(*mine).distinct()))


def _make_way(database: Database, other: AnyRow, publication: Publication) -> None:
    """Wait for what arrives as for any other writer. What shows no sign of life in that time is given up."""
    if not other.given_up:
        lives = False
        for _ in range(_LOOKS):
            sleep(database.lock_timeout_s / _LOOKS)
            with database.reading(other.tenant) as connection:
                now = _arrival(connection, other.tenant, other.number)
            if now is None:
                return
            lives = lives or (now.batches, now.at) != (other.batches, other.at)
        if lives:
            raise UnavailableError(
                f"the release {other.release} of the same tenant is arriving, and two do not arrive together.",
                mend="Publish this one again when that one is listed.",
                code="release_arriving",
                retry_after_s=ARRIVING_SECONDS,
            )
    give_up(database, other, publication.at, publication.actor)


def give_up(database: Database, arrival: AnyRow, at: int, actor: str) -> Garbage:
    """Delete what is there of it, in batches too. What this call deleted."""
    step = partial(_give_up_batch, arrival.tenant, arrival.number, at, actor)
    deleted = Garbage(0, 0, 0)
    while (batch := database.write(arrival.tenant, step)) is not None:
        deleted = Garbage(
            deleted.releases + batch.releases, deleted.versions + batch.versions, deleted.bytes + batch.bytes
        )
    return deleted


def _give_up_batch(tenant: str, number: int, at: int, actor: str, connection: Connection) -> Garbage | None:
    """None if it is gone."""
    hold(connection, tenant, Hold.ONE_RUN)
    arrival = _arrival(connection, tenant)
    if arrival is None or arrival.number != number:
        return None
    connection.execute(update(schema.arrivals).where(_A.number == number).values(given_up=True))
    some = select(_V.seq).where(*_of(arrival)).order_by(_V.seq).limit(BATCH)
    found = connection.scalars(some).all()
    if found:
        versions, weight = connection.execute(_COUNTED.where(_V.seq.in_(found))).one()
        _drop(connection, arrival, _V.seq.in_(found), at)
        return Garbage(0, versions, int(weight))
    connection.execute(delete(schema.arrivals).where(_A.number == number))
    connection.execute(delete(schema.releases).where(_R.tenant == tenant, _R.id == arrival.release))
    append(connection, tenant, AuditEvent(actor, "release.give_up", f"release {arrival.release}", "never whole"), at)
    return Garbage(1, 0, 0)


def abandoned(connection: Connection, tenant: str, cutoff: int) -> AnyRow | None:
    """What nobody has sent since then."""
    return connection.execute(_ARRIVAL.where(_A.at < cutoff), {"tenant": tenant}).one_or_none()


def to_give_up(connection: Connection, tenant: str, cutoff: int) -> Garbage:
    arrival = abandoned(connection, tenant, cutoff)
    if arrival is None:
        return Garbage(0, 0, 0)
    versions, weight = connection.execute(_COUNTED.where(*_of(arrival))).one()
    return Garbage(1, versions, int(weight))


def _of(arrival: AnyRow) -> tuple[ColumnElement[bool], ...]:
    return (_V.seq > arrival.versions, _V.tenant == arrival.tenant, _V.release == arrival.release)


def _drop(connection: Connection, arrival: AnyRow, which: ColumnElement[bool], at: int) -> None:
    """Versions of what arrives, and what pointers say of them."""
    mine = and_(*_of(arrival), which)
    subjects = connection.scalars(select(_V.subject).where(mine).distinct()).all()
    doom(connection, mine, at)
    told = and_(_P.tenant == arrival.tenant, _P.subject.in_(subjects), _P.arrival == arrival.number)
    connection.execute(delete(schema.pointers).where(told, _P.version == ""))
    connection.execute(update(schema.pointers).where(told).values(coming=None, arrival=None))
    connection.execute(delete(schema.versions).where(mine))
