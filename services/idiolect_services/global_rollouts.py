"""How a rollout of a global model ends well: nobody's adapter stays behind when the model becomes live for all.

Before the switch whoever was trained, or rolled back, since the last carrying is carried; after it the pointers follow,
one release at a time, while everybody is served. Each step may be cut off and done again, by any process.
"""

from __future__ import annotations

import logging

from idiolect.errors import IdiolectError
from idiolect.rollouts.plan import Rollout
from idiolect_services.carrying import Follower
from idiolect_services.wiring import Installation

log = logging.getLogger("idiolect.rollouts")


def before_completion(installation: Installation) -> None:
    """Raises CorruptArtifactError if people's adapters can't be carried: the rollout then stays where it is."""
    trial = installation.store.global_trial()
    if trial is not None:
        Follower(installation).catch_up(trial)


def after_completion(installation: Installation, rollout: Rollout) -> int:
    """How many pointers moved to what had been carried."""
    store = installation.store
    trial = store.global_trial()
    if trial is None or trial.served:
        return 0
    try:
        Follower(installation).catch_up(trial)  # those whose training ended during the switch
    except IdiolectError as error:
        log.warning("adapters that were trained during the switch wait for their next training: %s", error)
    moved = 0
    for tenant, release in store.waiting_releases(trial.candidate):
        now = installation.clock.now()
        reason = f"rollout {rollout.id} completed"
        moved += store.follow_model(tenant, release, now, reason=reason, actor=rollout.actor)
    store.end_global_trial(rollout.id)
    return moved
