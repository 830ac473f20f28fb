"""Keeps what is stored of people as it should be: sealed, and no longer than their tenant's retention says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from idiolect.retention import Swept, oldest_kept
from idiolect.stores.retention_ports import for_ever
from idiolect_services.periodic import Periodic
from idiolect_services.wiring import Installation

log = logging.getLogger("idiolect.retention")

SWEEP_SECONDS = 3600.0
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
    """One thread. Several servers on one database do the same work, and the one that comes second finds none."""

    def __init__(self, installation: Installation) -> None:
        super().__init__("retention", SWEEP_SECONDS, begins=True)
        self._installation = installation

    def run_once(self) -> None:
        store, now = self._installation.store, self._installation.clock.now()
        sealed = store.seal_existing(now, goes_on=self.goes_on)
        if sealed:
            log.info("%d rows of people that were in the clear are sealed", sealed)
        for swept in sweep_all(self._installation, goes_on=self.goes_on).values():
            if swept != Swept():
                log.info("%d answers with %d texts were older than their retention", swept.inferences, swept.texts)
