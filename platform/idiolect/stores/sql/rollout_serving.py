"""Which rollouts a person takes part in, and what they are served: one look-up, only while the tenant has a rollout.

Who takes part does not depend on the arm, or the arms could not be compared: people who are served personally and were
never reset, for whom the candidate could be served, and who did not get a newer live version since the rollout began.
Everybody else is served as if there were no rollout. A rollout is thus the `canary` pointer of all its owners in one
row: ending it is one write, however many people it reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import Connection, and_, bindparam, case, select

from idiolect.registry.resolution import Resolution, ResolvedVersion
from idiolect.rollouts.assignment import arm_of
from idiolect.rollouts.outcomes import Trial
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.withheld import KEY_WITHDRAWN

_SLOTS, _O = schema.rollout_slots.c, schema.rollouts.c
_V, _R, _T = schema.versions.c, schema.releases.c, schema.tombstones.c

_TRIALS = (
    select(
        _SLOTS.slot,
        _O.id.label("rollout"),
        _O.salt,
        _O.step,
        _O.share,
        _O.fence,
        _O.strength,
        _V.id,
        _V.release,
        _V.weights_sha256,
        _V.generation,
        _V.withheld,
        _R.revoked_at,
        _R.global_digest,
        KEY_WITHDRAWN.label("key_withdrawn"),
        _T.subject.label("reset"),
    )
    .select_from(schema.rollout_slots)
    .join(schema.rollouts, and_(_O.tenant == _SLOTS.tenant, _O.id == _SLOTS.rollout))
    .outerjoin(
        schema.versions,
        and_(
            _V.tenant == _SLOTS.tenant,
            _V.subject == case((_SLOTS.slot == "user", bindparam("subject")), else_=""),
            _V.domain == _SLOTS.domain,
            _V.release == _O.release,
        ),
    )
    .outerjoin(schema.releases, and_(_R.tenant == _V.tenant, _R.id == _V.release))
    .outerjoin(schema.tombstones, and_(_T.tenant == _SLOTS.tenant, _T.subject == bindparam("subject")))
    .where(_SLOTS.tenant == bindparam("tenant"), _SLOTS.domain.in_(("", bindparam("domain"))))
    .order_by(_SLOTS.slot)
)


def under_trial(
    connection: Connection, names: Mapping[str, str | None], found: Resolution, live_seq: Mapping[str, int]
) -> Resolution:
    """`found` with the person's trials, and with what a candidate replaces. `live_seq`: by subject, "" the domain."""
    subject = cast(str, names["subject"])
    for row in connection.execute(_TRIALS, dict(names)):
        if row.reset is not None:
            return found
        found = (
            _on_setting(row, subject, found) if row.slot == "setting" else _on_version(row, subject, found, live_seq)
        )
    return found


def _trial(row: AnyRow, subject: str) -> Trial:
    arm = arm_of(row.salt, subject, row.share)
    strength = row.strength if arm == "candidate" and row.strength is not None else 1.0
    return Trial(row.rollout, row.step, arm, row.slot, strength)


def _on_setting(row: AnyRow, subject: str, found: Resolution) -> Resolution:
    if found.user is None:
        return found
    return replace(found, trials=(*found.trials, _trial(row, subject)))


def _on_version(row: AnyRow, subject: str, found: Resolution, live_seq: Mapping[str, int]) -> Resolution:
    is_user = row.slot == "user"
    served = found.user if is_user else found.domain
    generation = found.state.generation if is_user and found.state is not None else 0
    usable = row.id is not None and row.revoked_at is None and row.withheld is None and not row.key_withdrawn
    if not usable or row.global_digest != found.global_digest or row.generation != generation:
        return found
    if live_seq.get(subject if is_user else "", 0) > row.fence or (served is not None and served.id == row.id):
        return found
    trial = _trial(row, subject)
    changes: dict[str, Any] = {"trials": (*found.trials, trial)}
    if trial.arm == "candidate":
        version = ResolvedVersion(row.id, row.release, row.weights_sha256.hex(), row.generation)
        changes["user" if is_user else "domain"] = version
    return replace(found, **changes)
