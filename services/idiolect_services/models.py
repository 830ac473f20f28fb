"""The global models that serve: the live one, and beside it for the time of a rollout its candidate.

Each request is answered by the one that its person is on. Which that is is resolved first; the scorer of the candidate
looks once more for itself, and where the person is no longer on its model (an abort a moment ago, an adapter that did
not verify, a store that is gone) the live model answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from idiolect.registry.resolution import Resolution
from idiolect.rollouts.outcomes import Served
from idiolect_adapters.runtime.features import Features, Projector
from idiolect_services.looks import STORE_TROUBLE, Asking
from idiolect_services.scorer import NOTHING_UNDER, Scorer, ScoreRequest, ScoreResult, Under

if TYPE_CHECKING:
    from idiolect_adapters.runtime.loras import LoraStack

T = TypeVar("T")


class OnAnotherModelError(Exception):
    """The person is not on the candidate, or no longer. `confirmed`: the store says so, rather than nothing at all."""

    def __init__(self, *, confirmed: bool) -> None:
        super().__init__("the person is on another model")
        self.confirmed = confirmed


class CandidateScorer(Scorer):
    """Serves nobody but those whom `resolve` puts on its model."""

    def _resolving(self, request: ScoreRequest, *, anew: bool = False) -> Asking[Resolution | None]:
        found = yield from super()._resolving(request, anew=anew)
        if found is None or found.global_digest != self.model.digest:
            raise OnAnotherModelError(confirmed=found is not None)
        return found

    def _failed(self, request: ScoreRequest, error: Exception) -> None:
        if not isinstance(error, OnAnotherModelError):
            super()._failed(request, error)

    def as_live(self) -> Scorer:
        """The same model, cache and adapters, for everybody."""
        return Scorer(self.store, self.features, self.bank, self.quarantine, self.on_served, self.uptime)


@dataclass(frozen=True, slots=True)
class Models:
    live: Scorer
    candidate: CandidateScorer | None = None

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        return (self.live,) if self.candidate is None else (self.live, self.candidate)

    def model_of(self, result: ScoreResult) -> Projector:
        """The one that gave it."""
        used = result.personalization.global_digest
        return next((one.model for one in self.scorers if one.model.digest == used), self.live.model)

    def serving(self, resolution: Resolution) -> tuple[Scorer, Resolution]:
        """Whose it is, and what it says as seen from there."""
        candidate = self.candidate
        if candidate is not None:
            seen = resolution.seen_by(candidate.model.digest)
            if seen.global_digest == candidate.model.digest:
                return candidate, seen
        return self.live, resolution

    def try_score(self, request: ScoreRequest, *, resident: bool = False) -> ScoreResult | None:
        """As `Scorer.try_score`."""
        if self.candidate is None:
            return self.live.try_score(request, resident=resident)
        return self._by_the_chosen(request, lambda scorer: scorer.try_score(request, resident=resident))

    def trying(self, request: ScoreRequest, *, resident: bool = False) -> Asking[ScoreResult | None]:
        """`try_score` in stages, as `Scorer.trying`; in one while there is a candidate."""
        if self.candidate is None:
            return (yield from self.live.trying(request, resident=resident))
        return self.try_score(request, resident=resident)

    def to_read(self, request: ScoreRequest, *, resident: bool = False) -> tuple[Scorer, tuple[LoraStack, ...]]:
        """By which model the request's texts are to be read, and as `Scorer.loras_of`."""
        if self.candidate is None:
            return self.live, self.live.loras_of(request, resident=resident)
        return self._by_the_chosen(request, lambda scorer: (scorer, scorer.loras_of(request, resident=resident)))

    def score(
        self, read_by: Scorer, request: ScoreRequest, features_NW: Features, under: Under, *, resident: bool = False
    ) -> ScoreResult:
        """As `Scorer.score`, of what `read_by` has read. Whoever is on the other model by now is read anew."""

        def score(scorer: Scorer) -> ScoreResult:
            if scorer is read_by:
                return scorer.score(request, features_NW, under, resident=resident)
            return scorer.score(request, None, NOTHING_UNDER, resident=resident)

        return score(self.live) if self.candidate is None else self._by_the_chosen(request, score)

    def _by_the_chosen(self, request: ScoreRequest, work: Callable[[Scorer], T]) -> T:
        resolution = self._resolved(request)
        if resolution is None:
            return work(self.live)
        chosen, _ = self.serving(resolution)
        try:
            return work(chosen)
        except OnAnotherModelError as error:
            if error.confirmed and request.subject is not None:  # it counts as what it was a moment ago
                trials = tuple(trial for trial in resolution.trials if trial.slot == "global")
                self.live.on_served(Served(request.tenant, request.subject, trials, 0.0, fallback=True))
            return work(self.live)

    def _resolved(self, request: ScoreRequest) -> Resolution | None:
        if request.subject is None:
            return None
        try:
            return self.live.store.resolve(request.tenant, request.subject, request.domain)
        except STORE_TROUBLE:
            return None


def without_global_trials(served: Served) -> Served | None:
    """None if nothing is left to count. For a server that is still loading the candidate: it counts neither arm."""
    if not any(trial.slot == "global" for trial in served.trials):
        return served
    rest = tuple(trial for trial in served.trials if trial.slot != "global")
    return replace(served, trials=rest) if rest else None
