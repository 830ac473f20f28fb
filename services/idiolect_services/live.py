"""The scorers that serve now, and how another one takes over.

A request holds on to the models that it began with until it is answered. So one answer is of one model, and a model is
freed with the last request on it.
"""

from __future__ import annotations

import threading
from collections import Counter

from idiolect.rollouts.outcomes import Served
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_services.models import CandidateScorer, Models, without_global_trials
from idiolect_services.scorer import Scorer


class Lease:
    """A context manager written out: one made of a generator costs three times as much, and each request takes one."""

    __slots__ = ("_live", "_models")

    def __init__(self, live: LiveScorer) -> None:
        self._live = live

    def __enter__(self) -> Models:
        self._models = self._live.begin()
        return self._models

    def __exit__(self, *_: object) -> None:
        self._live.end(self._models)


class LiveScorer:
    """Thread-safe."""

    def __init__(self, scorer: Scorer) -> None:
        self._models = Models(scorer)
        self._leases: Counter[AdapterBank] = Counter()  # a candidate that becomes live is another scorer on its bank
        self._draining: list[Scorer] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.switches = 0
        # Why the live global model, or the candidate of a rollout, is not served; no place for secrets.
        self.outdated: str | None = None
        self.candidate_missing: str | None = None

    @property
    def models(self) -> Models:
        return self._models

    @property
    def current(self) -> Scorer:
        return self._models.live

    @property
    def candidate(self) -> CandidateScorer | None:
        return self._models.candidate

    @property
    def draining(self) -> int:
        return len(self._draining)

    def lease(self) -> Lease:
        return Lease(self)

    def begin(self) -> Models:
        """They stay until they are handed to `end`."""
        with self._lock:
            models = self._models
            for scorer in models.scorers:
                self._leases[scorer.bank] += 1
            return models

    def end(self, models: Models) -> None:
        with self._lock:
            for scorer in models.scorers:
                self._let_go(scorer)

    def _let_go(self, scorer: Scorer) -> None:
        """Under the lock."""
        self._leases[scorer.bank] -= 1
        if not self._leases[scorer.bank]:
            del self._leases[scorer.bank]
            self._free_drained()

    def switch(self, scorer: Scorer) -> None:
        """From now on requests begin on `scorer`. What the old one keeps is freed once nobody is on it."""
        with self._lock:
            self._switch(Models(scorer, self._models.candidate))

    def _switch(self, models: Models) -> None:
        """Under the lock."""
        self._draining.append(self._models.live)
        self._models = models
        self.switches += 1
        self.outdated = None
        self._free_drained()

    def begin_candidate(self, scorer: CandidateScorer) -> None:
        """From now on it answers for its people. There must be none."""
        with self._lock:
            assert self._models.candidate is None
            self._models = Models(self._models.live, scorer)
            self.candidate_missing = None

    def end_candidate(self) -> None:
        """Everybody is on the live model again. Without a candidate nothing changes."""
        with self._lock:
            self.candidate_missing = None
            candidate = self._models.candidate
            if candidate is not None:
                self._models = Models(self._models.live)
                self._draining.append(candidate)
                self._free_drained()

    def promote_candidate(self) -> Scorer:
        """It is in memory already, so nobody waits. The new live scorer."""
        with self._lock:
            candidate = self._models.candidate
            assert candidate is not None
            self._switch(Models(candidate.as_live()))
            return self._models.live

    def countable(self, served: Served) -> Served | None:
        """What of it counts here: while the candidate is being loaded, neither arm of its rollout does."""
        if self._models.candidate is not None or self.candidate_missing is not None:
            return served
        return without_global_trials(served)

    def _free_drained(self) -> None:
        """Under the lock."""
        free = [scorer for scorer in self._draining if not self._leases[scorer.bank]]
        for scorer in free:
            self._draining.remove(scorer)
            threading.Thread(target=scorer.bank.close, name="free-model", daemon=True).start()  # it waits for loads
        if free:
            self._changed.notify_all()

    def wait_until_drained(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._draining, seconds)

    def forget(self, tenant: str, subject: str) -> None:
        """On both models, and where the last requests on an old one may have put something."""
        with self._lock:
            scorers = [*self._models.scorers, *self._draining]
        for scorer in scorers:
            scorer.forget(tenant, subject)

    def close(self) -> None:
        for scorer in self._models.scorers:
            scorer.bank.close()
