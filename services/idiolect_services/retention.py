"""Keeps what is stored of people as it should be: sealed, and no longer than their tenant's retention says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime

from idiolect.resets.fence import uptime
from idiolect.retention import Swept, oldest_kept
from idiolect.stores.retention_ports import for_ever
from idiolect_services.periodic import Periodic
from idiolect_services.wiring import Installation

log = logging.getLogger("idiolect.retention")

SWEEP_SECONDS = 3600.0
LOOK_SECONDS = 600.0
JUMP_SECONDS = 3600.0  # by which a clock is set without a word; retention counts days
ACTOR = "retention"


def sweep_all(
    installation: Installation, *, actor: str = ACTOR, goes_on: Callable[[], bool] = for_ever
) -> Mapping[str, Swept]:
    """Once, for every tenant."""
    own, now = installation.settings.retention_days, installation.clock.now()
    return {
        tenant: installation.store.sweep(tenant, oldest_kept(now, days or own), now, actor=actor, goes_on=goes_on)
        for tenant, days in installation.store.retentions().items()
    }


class RetentionLoop(Periodic):
    """One thread. Several servers on one database do the same work, and the one that comes second finds none.

    A machine may start with a clock that is years ahead, and be told the time a minute later. So nothing is deleted by
    a clock that has not yet run for ten minutes, nor in the first ten after it jumped ahead.
    """

    def __init__(self, installation: Installation, uptime: Callable[[], float] = uptime) -> None:
        super().__init__("retention", LOOK_SECONDS, begins=True)
        self._installation = installation
        self._uptime = uptime
        self._looked: tuple[datetime, float] | None = None  # both clocks, then
        self._swept_at: float | None = None

    def run_once(self) -> None:
        store, now = self._installation.store, self._installation.clock.now()
        sealed = store.seal_existing(now, goes_on=self.goes_on)
        if sealed:
            log.info("%d rows of people that were in the clear are sealed", sealed)
        if not self._clock_ran_to(now) or not self._is_time():
            return
        for swept in sweep_all(self._installation, goes_on=self.goes_on).values():
            if swept != Swept():
                log.info("%d answers with %d texts were older than their retention", swept.inferences, swept.texts)
        self._swept_at = self._uptime()

    def _clock_ran_to(self, now: datetime) -> bool:
        """Since the last look, rather than was set."""
        before, self._looked = self._looked, (now, self._uptime())
        if before is None:
            return False
        jumped_s = (now - before[0]).total_seconds() - (self._looked[1] - before[1])
        if jumped_s > JUMP_SECONDS:
            log.error("the clock jumped %.1f hours ahead, to %s: nothing is deleted yet", jumped_s / 3600, now)
        return jumped_s <= JUMP_SECONDS

    def _is_time(self) -> bool:
        return self._swept_at is None or self._uptime() - self._swept_at >= SWEEP_SECONDS
