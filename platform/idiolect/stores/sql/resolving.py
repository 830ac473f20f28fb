"""The hot read: what may be served to this person on this surface, now? Two point look-ups, three after a revocation.

1. Where things stand: the live global model, the person's row, the tenant's mark.
2. The live versions of domain and person, with whether their release is revoked and which global model it is bound to.
3. Only for an owner whose live version does not fit: the newest that does.
4. Only while the tenant has a rollout: which of them this person takes part in (see `rollout_serving`).
5. Only while a global model is rolled out: whether the person is on it (see `global_serving`).

Several people of one tenant on one surface are looked up together, but for 3 to 5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    exists,
    literal,
    or_,
    select,
    union_all,
)

from idiolect.consent import SubjectState
from idiolect.registry.resolution import POINTER_LIVE, Resolution, ResolvedVersion
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import IS_HERE, live_to_join, what_arrives
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.global_serving import under_global_trial
from idiolect.stores.sql.look_ups import LookUp
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import STATE_COLUMNS, STATES, state_of, states_of
from idiolect.stores.sql.prepared import together
from idiolect.stores.sql.rollout_serving import under_trial
from idiolect.stores.sql.tenant_wall import NO_TENANT, stand_behind
from idiolect.stores.sql.withheld import KEY_WITHDRAWN

_TENANT: BindParameter[str] = bindparam("tenant")
_SUBJECT: BindParameter[str] = bindparam("subject")
_DOMAIN: BindParameter[str] = bindparam("domain")
_G, _S, _T = schema.global_pointer.c, schema.subjects.c, schema.tenants.c
_P, _V, _R = schema.pointers.c, schema.versions.c, schema.releases.c

_ONE = select(literal(1).label("one")).subquery("one")
_STANDING = (
    select(
        select(_G.digest).order_by(_G.id.desc()).limit(1).scalar_subquery().label("global_digest"),
        select(_T.served_mark).where(_T.name == _TENANT).scalar_subquery().label("mark"),
        exists().where(schema.rollout_slots.c.tenant == _TENANT).label("has_rollouts"),
        exists(select(schema.global_trials.c.rollout)).label("has_global_trial"),
        *STATE_COLUMNS,
    )
    .select_from(_ONE)
    .outerjoin(schema.subjects, and_(_S.tenant == _TENANT, _S.subject == _SUBJECT))
)

_VERSION = (_V.id, _V.release, _V.weights_sha256, _V.generation, _V.subject, _V.seq)
_BOUND = and_(_R.tenant == _V.tenant, _R.id == _V.release)


def _live_of(pointers: FromClause) -> Select[Any]:
    return (
        select(*_VERSION, _R.revoked_at, _R.global_digest, _V.withheld, KEY_WITHDRAWN.label("key_withdrawn"))
        .select_from(pointers)
        .outerjoin(schema.arrivals, what_arrives(pointers))
        .join(schema.versions, and_(_V.tenant == pointers.c.tenant, _V.id == live_to_join(pointers)))
        .join(schema.releases, _BOUND)
    )


_IS_LIVE = and_(_P.tenant == _TENANT, _P.name == POINTER_LIVE)
_POINTERS = select(_P.tenant, _P.version, _P.coming, _P.arrival).where(_IS_LIVE)
# An owner is (subject, "") or ("", domain); no row has both empty. With an OR Postgres, while it has no statistics, may
# read all live pointers of the tenant.
_LIVE = _live_of(
    union_all(
        _POINTERS.where(_P.subject == _SUBJECT, _P.domain == ""),
        _POINTERS.where(_P.subject == "", _P.domain == _DOMAIN),
    ).subquery("live_pointers")
)
_LIVE_OF_PEOPLE = LookUp(_live_of(schema.pointers).where(_IS_LIVE, _P.domain == ""), _P.subject)

_NEWEST = (
    select(*_VERSION)
    .select_from(schema.versions)
    .join(schema.releases, _BOUND)
    .where(
        _V.tenant == _TENANT,
        _V.subject == _SUBJECT,
        _V.domain == _DOMAIN,
        _R.revoked_at.is_(None),
        _V.withheld.is_(None),
        ~KEY_WITHDRAWN,
        IS_HERE,
        or_(~_R.staged, _V.parent == bindparam("carried_from")),
        _R.global_digest == bindparam("global_digest"),
        or_(_V.subject == "", _V.generation == bindparam("generation")),
    )
    .order_by(_V.seq.desc())
    .limit(1)
)


class Resolving(Part):
    def resolve(self, tenant: str, subject: str | None, domain: str | None) -> Resolution:
        with self._database.point_reading(tenant) as connection:
            return _resolve(connection, tenant, subject or None, domain or None)

    def resolve_each(self, asked: Sequence[tuple[str, str | None, str | None]]) -> Sequence[Resolution]:
        people: dict[tuple[str, str | None], set[str | None]] = defaultdict(set)  # by tenant and domain
        for tenant, subject, domain in asked:
            people[tenant, domain or None].add(subject or None)
        found: dict[tuple[str, str | None, str | None], Resolution] = {}
        with self._database.point_reading(NO_TENANT) as connection:
            for (tenant, domain), subjects in people.items():
                stand_behind(connection, tenant)
                resolved = _resolve_all(connection, tenant, subjects, domain)
                found.update(((tenant, subject, domain), one) for subject, one in resolved.items())
        return [found[tenant, subject or None, domain or None] for tenant, subject, domain in asked]


def _resolve_all(
    connection: Connection, tenant: str, subjects: Collection[str | None], domain: str | None
) -> dict[str | None, Resolution]:
    """By person. Each alone where there is nothing to share, or a rollout to look into."""
    people = {subject for subject in subjects if subject is not None}
    found = _resolve_together(connection, tenant, domain, people) if len(people) > 1 else None
    return found or {subject: _resolve(connection, tenant, subject, domain) for subject in subjects}


def _resolve_together(
    connection: Connection, tenant: str, domain: str | None, people: Collection[str]
) -> dict[str | None, Resolution] | None:
    """Also of nobody in particular. None while there is a rollout."""
    nobody = {"tenant": tenant, "subject": None, "domain": domain}
    mine, states_asked = {"tenant": tenant}, STATES.asked(people, {"tenant": tenant})
    (standing,), *found = together(
        connection,
        [(_STANDING, nobody), *states_asked, (_LIVE, nobody), *_LIVE_OF_PEOPLE.asked(people, mine)],
    )
    if standing.has_rollouts or standing.has_global_trial:
        return None
    digest = standing.global_digest
    states = states_of([row for rows in found[: len(states_asked)] for row in rows], people)
    live = {} if digest is None else {row.subject: row for rows in found[len(states_asked) :] for row in rows}
    of_domain = _fitting(connection, live.get(""), tenant, "", domain or "", digest, 0)
    resolved: dict[str | None, Resolution] = {}
    for subject, state in (None, None), *states.items():
        served = state is not None and state.refusal(domain) is None
        owned = live if served else {"": live.get("")}
        resolved[subject] = _resolution(connection, tenant, standing, of_domain, state, owned)
    return resolved


def _resolve(connection: Connection, tenant: str, subject: str | None, domain: str | None) -> Resolution:
    names = {"tenant": tenant, "subject": subject, "domain": domain}
    (standing,), pointed = together(connection, [(_STANDING, names), (_LIVE, names)])
    state = _state(standing, subject)
    served = state is not None and state.refusal(domain) is None
    digest = standing.global_digest
    live: dict[str, AnyRow] = {}
    if digest is not None:  # of a person who is not served nothing is looked at
        live = {row.subject: row for row in pointed if served or not row.subject}
    of_domain = _fitting(connection, live.get(""), tenant, "", domain or "", digest, 0)
    found = _resolution(connection, tenant, standing, of_domain, state, live)
    if not served or digest is None:
        return found
    if standing.has_rollouts:
        found = under_trial(connection, names, found, {owner: row.seq for owner, row in live.items()})
    return under_global_trial(connection, names, found) if standing.has_global_trial else found


def _resolution(
    connection: Connection,
    tenant: str,
    standing: AnyRow,
    of_domain: ResolvedVersion | None,
    state: SubjectState | None,
    live: Mapping[str, AnyRow | None],
) -> Resolution:
    """`live`: by owner, the person's only if they may be served."""
    digest, user, mine = standing.global_digest, None, None
    if state is not None:
        mine = live.get(state.subject)
        user = _fitting(connection, mine, tenant, state.subject, "", digest, state.generation)
    plain = (
        digest is not None
        and not (standing.has_rollouts or standing.has_global_trial)
        and _is_what(live.get(""), of_domain)
        and _is_what(mine, user)
    )
    withheld = user is None and _is_withheld(mine)
    return Resolution(digest, of_domain, user, state, withheld, mark=standing.mark if plain else None)


def _is_what(live: AnyRow | None, served: ResolvedVersion | None) -> bool:
    """Whether what is served is what the pointer names, if it names anything."""
    return live is None if served is None else live is not None and served.id == live.id


def _is_withheld(live: AnyRow | None) -> bool:
    return live is not None and (live.withheld is not None or bool(live.key_withdrawn))


def _state(standing: AnyRow, subject: str | None) -> SubjectState | None:
    if subject is None:
        return None
    return SubjectState(subject) if standing.subject is None else state_of(standing)


def _fitting(
    connection: Connection,
    live: AnyRow | None,
    tenant: str,
    subject: str,
    domain: str,
    digest: str,
    generation: int,
) -> ResolvedVersion | None:
    """Where a new global model is live and the owner's pointer has not followed yet: what the pointer's version was
    carried to, even if that is still staged."""
    if live is None:
        return None  # without a live pointer nothing was ever published for this owner, or it was erased
    served = live.revoked_at is None and live.withheld is None and not live.key_withdrawn
    fits = served and live.global_digest == digest and (not subject or live.generation == generation)
    owner = {"tenant": tenant, "subject": subject, "domain": domain, "generation": generation}

    def newest(global_digest: str, carried_from: str | None) -> AnyRow | None:
        where = owner | {"global_digest": global_digest, "carried_from": carried_from}
        return connection.execute(_NEWEST, where).one_or_none()

    before: AnyRow | None = None
    if live.global_digest != digest:
        before = live if served else newest(live.global_digest, None)
    row = live if fits else newest(digest, None if before is None else before.id)
    return None if row is None else ResolvedVersion(row.id, row.release, row.weights_sha256.hex(), row.generation)
