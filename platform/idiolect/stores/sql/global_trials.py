"""The rollout of a global model, as the transactions of every tenant see it.

A global model is everybody's, so its rollout is the installation's. Its row lies under no tenant, where the wall keeps
tenants from reading it. What serving and counting need of it is copied into `global_trials`, in the transactions that
change it: at most one row, which stays after the completion until the last pointer has followed.
"""

from __future__ import annotations

import json

from sqlalchemy import Connection, func, select, update

from idiolect.audit import INSTALLATION
from idiolect.errors import ConflictError, NotFoundError
from idiolect.rollouts.plan import ACTIVE, LATEST, Candidate, Plan, Rollout
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow, queue_up
from idiolect.stores.sql.times import micros, moment

_T, _M, _G, _O = schema.global_trials.c, schema.staged_models.c, schema.global_pointer.c, schema.rollouts.c
_SLOTS = schema.rollout_slots.c
_LIVE_GLOBAL = select(_G.digest).order_by(_G.id.desc()).limit(1)
_TRIAL = select(schema.global_trials)
_ONE_START_AT_A_TIME = "starts of rollouts"


def running_trial(connection: Connection) -> AnyRow | None:
    """Also one that is complete, whose pointers follow."""
    return connection.execute(_TRIAL).one_or_none()


def trial_rollout(row: AnyRow) -> Rollout:
    """What counting needs of it; the rest is only in the installation's own row."""
    at = moment(row.moved_at)
    return Rollout(
        id=row.rollout,
        tenant=INSTALLATION,
        candidate=Candidate("global", row.candidate),
        plan=Plan.from_json(json.loads(row.plan)),
        state=row.state,
        step=row.step,
        revision=0,
        verdict="",
        reason="",
        actor="",
        created_at=at,
        moved_at=at,
        owners=(("global", ""),),
    )


def staged_digest(connection: Connection, wanted: str) -> str:
    """Raises NotFoundError for a model that was never staged, ConflictError for the live one."""
    query = select(_M.digest).order_by(_M.at.desc(), _M.digest).limit(1)
    found: str | None = connection.scalar(query if wanted == LATEST else query.where(_M.digest == wanted))
    if found is None:
        raise NotFoundError(
            f"there is no staged global model {wanted[:80]!r}.", mend="Train one: idiolect train global --staged."
        )
    if found == connection.scalar(_LIVE_GLOBAL):
        raise ConflictError(f"global model {found[:12]} is live already.", mend="Roll out another one.")
    return found


def begin_trial(connection: Connection, rollout: Rollout) -> None:
    """Raises ConflictError if anything else is tried on people now, or their adapters were not carried to it."""
    digest = staged_digest(connection, rollout.candidate.id)
    queue_up(connection, _ONE_START_AT_A_TIME)
    if running_trial(connection) is not None:
        raise ConflictError("another global model is being rolled out.", mend="Wait until that ends, or abort it.")
    others = select(func.count(_SLOTS.rollout.distinct())).where(_SLOTS.slot != "setting")
    count = connection.scalar(others) or 0
    if count:
        raise ConflictError(
            f"{count} rollouts of tenants run: two trials on the same people would be taken for one another.",
            mend="Wait until they end, or abort them.",
        )
    base = connection.scalar(_LIVE_GLOBAL)
    carried_from = connection.scalar(select(_M.base).where(_M.digest == digest))
    if base is None or carried_from != base:
        raise ConflictError(
            f"people's adapters have not been carried from the live model to global model {digest[:12]}.",
            mend=f"Do that first: idiolect train carry --to {digest}",
        )
    mine = (_O.tenant == INSTALLATION, _O.id == rollout.id)
    row = {
        "rollout": rollout.id,
        "candidate": digest,
        "base": base,
        "salt": connection.scalar(select(_O.salt).where(*mine)),
        "plan": json.dumps(rollout.plan.to_json()),
        "state": rollout.state,
        "step": rollout.step,
        "share": rollout.share,
        "moved_at": micros(rollout.moved_at),
    }
    connection.execute(schema.global_trials.insert(), row)


def mirror_trial(connection: Connection, rollout: Rollout) -> None:
    """After every change of the rollout. One that is complete stays; of one that failed nothing does."""
    mine = _T.rollout == rollout.id
    if rollout.state not in (*ACTIVE, "completed"):
        connection.execute(schema.global_trials.delete().where(mine))
        return
    changes = {
        "state": rollout.state,
        "step": rollout.step,
        "share": rollout.share,
        "moved_at": micros(rollout.moved_at),
    }
    connection.execute(update(schema.global_trials).where(mine).values(changes))


def refuse_beside_a_trial(connection: Connection) -> None:
    """Raises ConflictError while a global model is rolled out: for rollouts of tenants that are about to start."""
    queue_up(connection, _ONE_START_AT_A_TIME)
    if running_trial(connection) is not None:
        raise ConflictError(
            "the installation tries a new global model on people now.", mend="Start this rollout when that has ended."
        )


def trial_fault(connection: Connection, rollout: Rollout) -> str | None:
    """Why the candidate can be served to nobody any more."""
    row = running_trial(connection)
    if row is None or row.rollout != rollout.id:
        return "it is not under way"
    if connection.scalar(_LIVE_GLOBAL) != row.base:
        return "another global model became live"
    staged = connection.scalar(select(_M.base).where(_M.digest == row.candidate))
    return None if staged == row.base else "its adapters were carried from another model since"
