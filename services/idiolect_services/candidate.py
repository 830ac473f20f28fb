"""A running server follows the rollout of a global model: loads its candidate beside the live model, and lets it go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from idiolect.stores.rollout_ports import GlobalTrial
from idiolect_services.live import LiveScorer
from idiolect_services.models import CandidateScorer

log = logging.getLogger("idiolect.takeover")

RETRY_SECONDS = 30.0  # a model that could not be loaded; its folder may be mended meanwhile

Build = Callable[[str], CandidateScorer]  # from a model's digest


class CandidateKeeper:
    """Called again and again, by the thread of the takeovers. While the candidate can't be loaded, its people are
    served by the live model, and that counts against it."""

    def __init__(
        self,
        live: LiveScorer,
        trial: Callable[[], GlobalTrial | None],
        build: Build,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`build` loads and verifies; what it raises is tried again after a while."""
        self._live = live
        self._trial = trial
        self._build = build
        self._monotonic = monotonic
        self._failed: tuple[str, float] | None = None
        self.failures = 0

    def wanted(self) -> GlobalTrial | None:
        """Ask before asking what is live: a rollout that completes in between is then taken for one that still runs,
        whose candidate is in memory, rather than for one that ended badly. Raises what the store raises."""
        return self._trial()

    def is_loaded(self, digest: str) -> bool:
        return self._live.candidate is not None and self._live.candidate.model.digest == digest

    def let_go(self, trial: GlobalTrial | None, live: str | None) -> None:
        """Of a candidate that is not tried any more."""
        if self._candidate(trial, live) is None:
            self._failed = None
            self._live.end_candidate()
        elif self._live.candidate is not None and not self.is_loaded(self._candidate(trial, live) or ""):
            self._live.end_candidate()

    def look(self, trial: GlobalTrial | None, live: str | None) -> None:
        """Load what is tried, unless a third model is still in memory."""
        digest = self._candidate(trial, live)
        if digest is None or self.is_loaded(digest) or self._live.current.model.digest != live:
            return
        if self._failed is not None and self._failed[0] == digest and self._monotonic() < self._failed[1]:
            return
        if self._live.wait_until_drained(0.0):
            self._load(digest)

    def _load(self, digest: str) -> None:
        try:
            scorer = self._build(digest)
        except Exception as error:  # whatever is wrong with it, the live one serves
            self.failures += 1
            self._failed = (digest, self._monotonic() + RETRY_SECONDS)
            self._live.candidate_missing = type(error).__name__
            log.error("the candidate %s can't be loaded, the live model serves its people: %s", digest[:12], error)
            return
        self._failed = None
        self._live.begin_candidate(scorer)
        log.warning("global model %s serves its share of people now", digest[:12])

    @staticmethod
    def _candidate(trial: GlobalTrial | None, live: str | None) -> str | None:
        return trial.candidate if trial is not None and trial.served and trial.base == live else None
