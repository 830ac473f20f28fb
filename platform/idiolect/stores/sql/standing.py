"""The short look that confirms a remembered resolution: one statement, of pointers and the person's row.

See `idiolect.registry.resolution.Standing` for why nothing else has to be looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import BindParameter, ScalarSelect, and_, bindparam, exists, literal, select

from idiolect.consent import SubjectState
from idiolect.registry.resolution import POINTER_LIVE, Standing
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import LIVE_VERSION
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.look_ups import LookUp
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import STATE_COLUMNS, STATES, state_of, states_of
from idiolect.stores.sql.prepared import together
from idiolect.stores.sql.tenant_wall import NO_TENANT, stand_behind

_TENANT: BindParameter[str] = bindparam("tenant")
_SUBJECT: BindParameter[str] = bindparam("subject")
_DOMAIN: BindParameter[str] = bindparam("domain")
_G, _S, _T, _P = schema.global_pointer.c, schema.subjects.c, schema.tenants.c, schema.pointers.c

_IS_LIVE = and_(_P.tenant == _TENANT, _P.name == POINTER_LIVE)


def _live(subject: Any, domain: Any) -> ScalarSelect[str | None]:
    return select(LIVE_VERSION).where(_IS_LIVE, _P.subject == subject, _P.domain == domain).scalar_subquery()


_ONE = select(literal(1).label("one")).subquery("one")
_STANDING = (
    select(
        select(_G.digest).order_by(_G.id.desc()).limit(1).scalar_subquery().label("global_digest"),
        select(_T.served_mark).where(_T.name == _TENANT).scalar_subquery().label("mark"),
        exists().where(schema.rollout_slots.c.tenant == _TENANT).label("has_rollouts"),
        exists(select(schema.global_trials.c.rollout)).label("has_global_trial"),
        _live("", _DOMAIN).label("of_domain"),
        _live(_SUBJECT, "").label("of_person"),
        *STATE_COLUMNS,
    )
    .select_from(_ONE)
    .outerjoin(schema.subjects, and_(_S.tenant == _TENANT, _S.subject == _SUBJECT))
)
_LIVE_OF_PEOPLE = LookUp(select(_P.subject, LIVE_VERSION.label("version")).where(_IS_LIVE, _P.domain == ""), _P.subject)


class Standings(Part):
    def standing_each(self, asked: Sequence[tuple[str, str | None, str | None]]) -> Sequence[Standing]:
        people: dict[tuple[str, str | None], set[str | None]] = defaultdict(set)  # by tenant and domain
        for tenant, subject, domain in asked:
            people[tenant, domain or None].add(subject or None)
        found: dict[tuple[str, str | None, str | None], Standing] = {}
        # Without a snapshot the mark is read first, and no part before it: what was answered before is in all of them.
        with self._database.point_reading(NO_TENANT, single=len(people) == 1) as connection:
            for (tenant, domain), subjects in people.items():
                stand_behind(connection, tenant)
                standing = _alone if len(subjects) == 1 else _of_several
                found.update(
                    ((tenant, subject, domain), one)
                    for subject, one in standing(connection, tenant, subjects, domain).items()
                )
        return [found[tenant, subject or None, domain or None] for tenant, subject, domain in asked]


def _alone(
    connection: Any, tenant: str, subjects: Collection[str | None], domain: str | None
) -> dict[str | None, Standing]:
    (subject,) = subjects
    row = connection.execute(_STANDING, {"tenant": tenant, "subject": subject, "domain": domain}).one()
    state = None
    if subject is not None:
        state = SubjectState(subject) if row.subject is None else state_of(row)
    return {subject: _standing(row, state, row.of_person)}


def _of_several(
    connection: Any, tenant: str, subjects: Collection[str | None], domain: str | None
) -> dict[str | None, Standing]:
    people, mine = {subject for subject in subjects if subject is not None}, {"tenant": tenant}
    states, live = STATES.asked(people, mine), _LIVE_OF_PEOPLE.asked(people, mine)
    nobody = {"tenant": tenant, "subject": None, "domain": domain}
    (row,), *found = together(connection, [(_STANDING, nobody), *states, *live])
    of_states = [row for rows in found[: len(states)] for row in rows]
    versions = {row.subject: row.version for rows in found[len(states) :] for row in rows}
    of_people = states_of(of_states, people)
    return {None: _standing(row, None, None)} | {
        subject: _standing(row, state, versions.get(subject)) for subject, state in of_people.items()
    }


def _standing(row: AnyRow, state: SubjectState | None, live: str | None) -> Standing:
    mark = None if row.has_rollouts or row.has_global_trial else row.mark
    return Standing(row.global_digest, state, row.of_domain, live, mark)
