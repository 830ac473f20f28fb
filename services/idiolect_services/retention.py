"""Keeps what is stored of people as it should be: sealed, and no longer than their tenant's retention says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from idiolect.errors import IdiolectError
from idiolect.retention import Swept, oldest_kept
from idiolect.stores.retention_ports import for_ever
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


class RetentionLoop:
    """One thread. Several servers on one database do the same work, and the one that comes second finds none."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The batch that runs is finished first."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.run_once()
            except IdiolectError as error:
                log.warning("old texts are deleted later: %s", error)
            except Exception:
                log.exception("deleting old texts failed; it is tried again in %.0f s", SWEEP_SECONDS)
            self._stop.wait(SWEEP_SECONDS)

    def run_once(self) -> None:
        store, now = self._installation.store, self._installation.clock.now()
        sealed = store.seal_existing(now, goes_on=self._goes_on)
        if sealed:
            log.info("%d rows of people that were in the clear are sealed", sealed)
        for swept in sweep_all(self._installation, goes_on=self._goes_on).values():
            if swept != Swept():
                log.info("%d answers with %d texts were older than their retention", swept.inferences, swept.texts)

    def _goes_on(self) -> bool:
        return not self._stop.is_set()
