"""A running server follows the installation's live global model, without a restart and off the hot path."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from idiolect_services.candidate import RETRY_SECONDS, CandidateKeeper
from idiolect_services.live import LiveScorer
from idiolect_services.periodic import Periodic
from idiolect_services.scorer import Scorer

log = logging.getLogger("idiolect.takeover")

LOOK_SECONDS = 1.0

Build = Callable[[str], Scorer]  # from a model's digest


class Takeover:
    """Loads the live global model when it is another one, and lets it take over; and the candidate of a rollout of one.
    Called again and again, by one thread.

    At most two models are in memory: the next is not loaded before the last but one is freed.
    """

    def __init__(
        self,
        live: LiveScorer,
        live_global: Callable[[], str | None],
        build: Build,
        *,
        candidate: CandidateKeeper | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`build` loads and verifies; what it raises keeps the old model, and is tried again after a while."""
        self._candidate = candidate
        self._live = live
        self._live_global = live_global
        self._build = build
        self._monotonic = monotonic
        self._failed: tuple[str, float] | None = None
        self.failures = 0

    def look(self) -> Scorer | None:
        """The new scorer, if one took over. Raises what the store raises."""
        keeper = self._candidate
        trial = keeper.wanted() if keeper is not None else None
        digest = self._live_global()
        if keeper is not None:
            if digest is not None and keeper.is_loaded(digest):
                log.warning("global model %s serves everybody now", digest[:12])
                return self._live.promote_candidate()
            keeper.let_go(trial, digest)
        if digest is None or digest == self._live.current.model.digest:
            self._live.outdated = None
            if keeper is not None:
                keeper.look(trial, digest)
            return None
        if self._failed is not None and self._failed[0] == digest and self._monotonic() < self._failed[1]:
            return None
        if not self._live.wait_until_drained(0.0):
            return None
        return self._load(digest)

    def _load(self, digest: str) -> Scorer | None:
        try:
            scorer = self._build(digest)
        except Exception as error:  # whatever is wrong with the new one, the old one serves
            self.failures += 1
            self._failed = (digest, self._monotonic() + RETRY_SECONDS)
            self._live.outdated = type(error).__name__
            log.error("global model %s can't be loaded, %s goes on: %s", digest[:12], self._serving(), error)
            return None
        self._failed = None
        self._live.switch(scorer)
        log.warning("global model %s serves now", digest[:12])
        return scorer

    def _serving(self) -> str:
        return self._live.current.model.digest[:12]


class TakeoverLoop(Periodic):
    """One thread that looks every second. `on_switch` is told of each scorer that took over."""

    def __init__(self, takeover: Takeover, on_switch: Callable[[Scorer], None]) -> None:
        super().__init__("takeover", LOOK_SECONDS)
        self._takeover = takeover
        self._on_switch = on_switch

    def run_once(self) -> None:
        scorer = self._takeover.look()
        if scorer is not None:
            self._on_switch(scorer)
