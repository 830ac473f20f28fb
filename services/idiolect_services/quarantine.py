"""What happens to a version that does not verify when it is loaded: it is quarantined in the store, once and for all.

From then on no process resolves it, and each owner falls back to the strongest version that is left. Only what is wrong
with the version itself counts. A key that this home folder does not know is not: a wrongly restored folder would
otherwise condemn a million good versions, and restoring the right one would not bring them back.
"""

from __future__ import annotations

import logging
import threading

from idiolect.clock import Clock, SystemClock
from idiolect.errors import ConfigurationError, CorruptArtifactError, UnavailableError
from idiolect.stores.registry_ports import QuarantineStore

log = logging.getLogger("idiolect.quarantine")

ACTOR = "serving"
_MAX_REASON = 300


class Quarantine:
    """Thread-safe. `count` is how many versions this process quarantined: it should stay 0, alert when it rises."""

    def __init__(self, store: QuarantineStore, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._count = 0

    @property
    def count(self) -> int:
        return self._count

    def report(self, tenant: str, version_id: str, error: CorruptArtifactError) -> bool:
        """Whether resolving again will give another version, or none."""
        if error.code != CorruptArtifactError.code:
            return False
        reason, now = error.message[:_MAX_REASON], self._clock.now()
        try:
            new = self._store.quarantine(tenant, version_id, reason, now, actor=ACTOR)
        except (UnavailableError, ConfigurationError) as trouble:
            log.warning("version %s does not verify and can't be quarantined now: %s", version_id, trouble.message)
            return False
        if new:
            with self._lock:
                self._count += 1
            log.error("version %s is quarantined: %s", version_id, error.message)
        return True
