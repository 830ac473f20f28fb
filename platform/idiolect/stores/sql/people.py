"""Rows of people: their state, their tombstone, their place in the training queue."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from idiolect.consent import DomainChoice, SubjectState, refused_domains
from idiolect.errors import InvalidInputError
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow, among, chunks, insert, queue_up
from idiolect.stores.sql.look_ups import LookUp
from idiolect.stores.sql.prepared import ahead
from idiolect.stores.sql.tenant_wall import beyond_the_wall
from idiolect.stores.sql.times import micros, moment

_S = schema.subjects.c
STATE_COLUMNS = (
    _S.subject,
    _S.opted_in,
    _S.paused,
    _S.strength,
    _S.generation,
    _S.revision,
    _S.policy_version,
    _S.updated_at,
    _S.domains,
)
_STATE = select(*STATE_COLUMNS).where(_S.tenant == bindparam("tenant"), _S.subject == bindparam("subject"))
_STATE_LOCKED = _STATE.with_for_update()
STATES = LookUp(select(*STATE_COLUMNS).where(_S.tenant == bindparam("tenant")), _S.subject)
_OF_PERSON = and_(_S.tenant == bindparam("of_tenant"), _S.subject == bindparam("of_subject"))
_SETTINGS: dict[str, Any] = {
    column.name: bindparam(column.name) for column in STATE_COLUMNS if column.name != "subject"
}
_CHANGE = update(schema.subjects).where(_OF_PERSON).values(_SETTINGS)
_ADD = schema.subjects.insert().values(tenant=bindparam("of_tenant"), subject=bindparam("of_subject"), **_SETTINGS)

_C, _T, _Q = schema.comparisons.c, schema.tombstones.c, schema.training_queue.c
_GIVEN = and_(_C.tenant == bindparam("of_tenant"), _C.subject == bindparam("of_subject"))
_LAST_GIVEN = select(func.coalesce(func.max(_C.id), 0)).where(_GIVEN)
_RENEW = update(schema.comparisons).where(_GIVEN).values(generation=bindparam("new_generation"))
_FORGET_TRAINING = update(schema.subjects).where(_OF_PERSON).values(trained_until=bindparam("until"))
_MARK_TRAINED = (
    update(schema.subjects)
    .where(_OF_PERSON, or_(_S.trained_until.is_(None), _S.trained_until < bindparam("until")))
    .values(trained_until=bindparam("until"))
)
_LAST_PURGE = select(func.coalesce(func.max(_T.seq), 0))


def check_subject(subject: str) -> str:
    """An empty pseudonym would name the domains' adapters, which belong to nobody in particular."""
    if not subject:
        raise InvalidInputError("the user is empty.", mend="Name the person.")
    return subject


def state_of(row: AnyRow) -> SubjectState:
    return SubjectState(
        subject=row.subject,
        known=True,
        opted_in=row.opted_in,
        paused=row.paused,
        strength=row.strength,
        generation=row.generation,
        revision=row.revision,
        policy_version=row.policy_version,
        updated_at=moment(row.updated_at),
        domains=() if row.domains is None else tuple(DomainChoice(*choice) for choice in json.loads(row.domains)),
    )


def state_to_json(state: SubjectState) -> dict[str, Any]:
    """For `state_from_json`; the time is not part of it."""
    said = {name: value for name, value in asdict(state).items() if name != "updated_at"}
    return said | {"domains": [asdict(choice) for choice in state.domains]}


def state_from_json(data: Mapping[str, Any], updated_at: datetime) -> SubjectState:
    domains = tuple(DomainChoice(**choice) for choice in data["domains"])
    return SubjectState(**{**data, "domains": domains}, updated_at=updated_at)


def load_state(connection: Connection, tenant: str, subject: str, *, lock: bool = False) -> SubjectState:
    """`lock` keeps the row as it is until the transaction ends (Postgres; a SQLite writer is alone anyway)."""
    return ask_state(connection, tenant, subject, lock=lock)()


def ask_state(connection: Connection, tenant: str, subject: str, *, lock: bool = False) -> Callable[[], SubjectState]:
    """As `load_state`, asked ahead."""
    statement = _STATE_LOCKED if lock else _STATE
    asked = ahead(connection, statement, {"tenant": tenant, "subject": subject})

    def state() -> SubjectState:
        row = asked().one_or_none()
        return SubjectState(subject) if row is None else state_of(row)

    return state


def load_states(connection: Connection, tenant: str, subjects: Collection[str]) -> dict[str, SubjectState]:
    """By person."""
    return states_of(STATES.rows(connection, subjects, {"tenant": tenant}), subjects)


def states_of(rows: Sequence[AnyRow], subjects: Collection[str]) -> dict[str, SubjectState]:
    """By person, also of those without a row."""
    known = {row.subject: state_of(row) for row in rows}
    return {subject: known.get(subject) or SubjectState(subject) for subject in subjects}


def save_state(connection: Connection, tenant: str, before: SubjectState, after: SubjectState) -> None:
    assert after.updated_at is not None
    values = {
        "of_tenant": tenant,
        "of_subject": after.subject,
        "opted_in": after.opted_in,
        "paused": after.paused,
        "strength": after.strength,
        "generation": after.generation,
        "revision": after.revision,
        "policy_version": after.policy_version,
        "updated_at": micros(after.updated_at),
        "domains": _packed(after.domains),
    }
    connection.execute(_CHANGE if before.known else _ADD, values)
    refused = refused_domains(after)
    if refused != refused_domains(before):
        _save_refusals(connection, tenant, after.subject, refused)


def _packed(choices: Sequence[DomainChoice]) -> str | None:
    return json.dumps([[one.domain, one.opted_in, one.strength] for one in choices]) if choices else None


def _save_refusals(connection: Connection, tenant: str, subject: str, domains: Collection[str]) -> None:
    table = schema.domain_refusals
    connection.execute(delete(table).where(table.c.tenant == tenant, table.c.subject == subject))
    if domains:
        rows = [{"tenant": tenant, "subject": subject, "domain": domain} for domain in sorted(domains)]
        connection.execute(table.insert(), rows)


def agreed_there(comparisons: Table, item: str = "chosen") -> ColumnElement[bool]:
    """Whether the person of a row of `comparisons` (or ratings) is not out of the domain of its `item`."""
    table, items, refused = comparisons.c, schema.items.c, schema.domain_refusals.c
    here = and_(refused.tenant == table.tenant, refused.subject == table.subject, refused.domain == items.domain)
    return ~exists().where(here, items.id == table[item]).correlate(comparisons)


Places = Callable[[], tuple[int, int]]  # (the person's last comparison, the next place in the purge log)


def ask_places(connection: Connection, tenant: str, subject: str) -> Places:
    """For `fence`: asked ahead, once what is erased is erased. The place is nobody else's from then on."""
    last_given = ahead(connection, _LAST_GIVEN, {"of_tenant": tenant, "of_subject": subject})
    queue_up(connection, "purges")  # in the order of commits: whoever has seen one number never finds a smaller later
    with beyond_the_wall(connection):
        last_purge = ahead(connection, _LAST_PURGE, {})
    return lambda: (last_given().one()[0], last_purge().one()[0] + 1)


def fence(
    connection: Connection,
    tenant: str,
    state: SubjectState,
    at: datetime,
    places: Places,
    *,
    learn_afresh: bool = False,
) -> int:
    """Write the tombstone of `state.generation`, and carry what is kept over to it. Its place in the purge log.

    Kept comparisons may still train the person's own adapter, but no shared model. They do not queue the person: after
    a reset nothing is learned before the person gives new feedback, or someone asks for a training. With `learn_afresh`
    they do: the person left one domain, and is still in the others.
    """
    person = {"of_tenant": tenant, "of_subject": state.subject}
    upto, seq = places()
    stone = {"tenant": tenant, "subject": state.subject, "generation": state.generation}
    stone |= {"at": micros(at), "upto": upto, "seq": seq}
    connection.execute(_TOMBSTONE[connection.dialect.name], stone)
    connection.execute(_RENEW, {**person, "new_generation": state.generation})
    connection.execute(_FORGET_TRAINING, {**person, "until": None if learn_afresh else micros(at)})
    requeue(connection, tenant, [state.subject])
    return seq


def _tombstone(made: sqlite.Insert | postgresql.Insert) -> Insert:
    """Of a person who may have an older one."""
    new = made.excluded
    renewed = {"generation": new.generation, "at": new.at, "upto": new.upto, "seq": new.seq}
    named: dict[str, Any] = {column.name: bindparam(column.name) for column in _T}
    return made.values(named).on_conflict_do_update(index_elements=["tenant", "subject"], set_=renewed)


_TOMBSTONE = {
    "sqlite": _tombstone(sqlite.insert(schema.tombstones)),
    "postgresql": _tombstone(postgresql.insert(schema.tombstones)),
}


def tombstoned(connection: Connection, tenant: str, subjects: Collection[str]) -> set[str]:
    table = schema.tombstones.c
    found: set[str] = set()
    for chunk in chunks(sorted(subjects)):
        found.update(
            connection.scalars(select(table.subject).where(table.tenant == tenant, among(table.subject, chunk)))
        )
    return found


def mark_trained(connection: Connection, tenant: str, subject: str, upto: int) -> None:
    """Never up to an earlier time than before."""
    connection.execute(_MARK_TRAINED, {"of_tenant": tenant, "of_subject": subject, "until": upto})


def requeue(connection: Connection, tenant: str, subjects: Collection[str]) -> None:
    """Count again what each of `subjects` gave since their last training. Only opted-in people are ever queued."""
    if len(subjects) == 1:
        (subject,) = subjects
        person = {"of_tenant": tenant, "of_subject": subject}
        connection.execute(_DEQUEUE_ONE, person)
        connection.execute(_QUEUE_ONE, person)
        return
    for chunk in chunks(sorted(subjects)):
        connection.execute(delete(schema.training_queue).where(_Q.tenant == tenant, among(_Q.subject, chunk)))
        counted = _new_comparisons(and_(_C.tenant == tenant, among(_C.subject, chunk)))
        connection.execute(schema.training_queue.insert().from_select(_QUEUED, counted))


def _new_comparisons(whose: ColumnElement[bool]) -> Select[Any]:
    return (
        select(_C.tenant, _C.subject, func.count())
        .join(schema.subjects, and_(_S.tenant == _C.tenant, _S.subject == _C.subject))
        .where(
            whose,
            _C.generation == _S.generation,
            or_(_S.trained_until.is_(None), _C.received_at > _S.trained_until),
            _S.opted_in,
            agreed_there(schema.comparisons),
        )
        .group_by(_C.tenant, _C.subject)
    )


_QUEUED = ("tenant", "subject", "new_comparisons")
_DEQUEUE_ONE = delete(schema.training_queue).where(
    _Q.tenant == bindparam("of_tenant"), _Q.subject == bindparam("of_subject")
)
_QUEUE_ONE = schema.training_queue.insert().from_select(_QUEUED, _new_comparisons(_GIVEN))


def enqueue(connection: Connection, tenant: str, subject: str, new_comparisons: int) -> None:
    queue = schema.training_queue
    statement = insert(connection, queue).values(tenant=tenant, subject=subject, new_comparisons=new_comparisons)
    total = queue.c.new_comparisons + statement.excluded.new_comparisons
    connection.execute(
        statement.on_conflict_do_update(index_elements=["tenant", "subject"], set_={"new_comparisons": total})
    )
