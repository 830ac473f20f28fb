"""Who is served by the candidate of a rollout of the global model, and with which adapters.

A person takes part if they are served personally, were never reset, and each adapter that serves them now has its
counterpart on the candidate: the version that was carried from exactly this one. So whatever happens to the live one
(a training, a rollback, a revocation, a quarantine), the counterpart of what it was is out of use in the same moment,
and the person is back on the live model until the new one has been carried too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from sqlalchemy import Connection, and_, bindparam, exists, or_, select

from idiolect.registry.resolution import OnCandidate, Resolution, ResolvedVersion
from idiolect.rollouts.assignment import arm_of
from idiolect.rollouts.outcomes import Trial
from idiolect.rollouts.plan import ACTIVE
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import IS_HERE
from idiolect.stores.sql.withheld import KEY_WITHDRAWN

_C, _V, _R, _T = schema.global_trials.c, schema.versions.c, schema.releases.c, schema.tombstones.c

_TRIAL = select(
    _C.rollout,
    _C.candidate,
    _C.base,
    _C.salt,
    _C.step,
    _C.share,
    exists().where(_T.tenant == bindparam("tenant"), _T.subject == bindparam("subject")).label("reset"),
).where(or_(*(_C.state == state for state in ACTIVE)))

# What may be served of what was carried from the version `parent` to the model `global_digest`.
_COUNTERPART = (
    select(_V.id, _V.release, _V.weights_sha256, _V.generation)
    .select_from(schema.versions)
    .join(schema.releases, and_(_R.tenant == _V.tenant, _R.id == _V.release))
    .where(
        _V.tenant == bindparam("tenant"),
        _V.subject == bindparam("subject"),
        _V.domain == bindparam("domain"),
        _V.parent == bindparam("parent"),
        _V.withheld.is_(None),
        _R.global_digest == bindparam("global_digest"),
        _R.revoked_at.is_(None),
        ~KEY_WITHDRAWN,
        IS_HERE,
        or_(_V.subject == "", _V.generation == bindparam("generation")),
    )
    .order_by(_V.seq.desc())
    .limit(1)
)


def under_global_trial(connection: Connection, names: Mapping[str, str | None], found: Resolution) -> Resolution:
    """`found` with the person's trial of a global model, and with what serves them on the candidate, if it does."""
    trial = connection.execute(_TRIAL, dict(names)).one_or_none()
    if trial is None or trial.base != found.global_digest or trial.reset or found.state is None:
        return found
    subject, domain = cast(str, names["subject"]), names["domain"] or ""
    owners = (
        (found.user, {"subject": subject, "domain": "", "generation": found.state.generation}),
        (found.domain, {"subject": "", "domain": domain, "generation": 0}),
    )
    parts: list[ResolvedVersion | None] = []
    for served, owner in owners:
        wanted = owner | {"tenant": names["tenant"], "global_digest": trial.candidate}
        part = None if served is None else _counterpart(connection, served, wanted)
        if (served is None) is not (part is None):
            return found
        parts.append(part)
    arm = arm_of(trial.salt, subject, trial.share)
    counted = (*found.trials, Trial(trial.rollout, trial.step, arm, "global"))
    on = OnCandidate(trial.candidate, parts[1], parts[0]) if arm == "candidate" else None
    return replace(found, trials=counted, candidate=on)


def _counterpart(
    connection: Connection, served: ResolvedVersion, owner: Mapping[str, object]
) -> ResolvedVersion | None:
    row = connection.execute(_COUNTERPART, {**owner, "parent": served.id}).one_or_none()
    return None if row is None else ResolvedVersion(row.id, row.release, row.weights_sha256.hex(), row.generation)
