"""The scorer that serves now, and how another one takes over.

A request holds on to the scorer that it began with until it is answered. So one answer is of one model, and the old
model is freed with the last request on it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from idiolect_services.scorer import Scorer


class LiveScorer:
    """Thread-safe."""

    def __init__(self, scorer: Scorer) -> None:
        self._current = scorer
        self._leases: Counter[Scorer] = Counter()
        self._draining: list[Scorer] = []
        self._changed = threading.Condition()
        self.switches = 0
        self.outdated: str | None = None  # why the live global model is not the one that serves; no place for secrets

    @property
    def current(self) -> Scorer:
        return self._current

    @property
    def draining(self) -> int:
        return len(self._draining)

    @contextmanager
    def lease(self) -> Iterator[Scorer]:
        with self._changed:
            scorer = self._current
            self._leases[scorer] += 1
        try:
            yield scorer
        finally:
            with self._changed:
                self._leases[scorer] -= 1
                if not self._leases[scorer]:
                    del self._leases[scorer]
                    self._free_drained()

    def switch(self, scorer: Scorer) -> None:
        """From now on requests begin on `scorer`. What the old one keeps is freed once nobody is on it."""
        with self._changed:
            old, self._current = self._current, scorer
            self.switches += 1
            self.outdated = None
            self._draining.append(old)
            self._free_drained()

    def _free_drained(self) -> None:
        """Under the lock."""
        free = [scorer for scorer in self._draining if not self._leases[scorer]]
        for scorer in free:
            self._draining.remove(scorer)
            threading.Thread(target=scorer.bank.close, name="free-model", daemon=True).start()  # it waits for loads
        if free:
            self._changed.notify_all()

    def wait_until_drained(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._draining, seconds)

    def forget(self, tenant: str, subject: str) -> None:
        """Also where the last requests on an old model may have put something."""
        with self._changed:
            scorers = [self._current, *self._draining]
        for scorer in scorers:
            scorer.forget(tenant, subject)

    def close(self) -> None:
        self._current.bank.close()
