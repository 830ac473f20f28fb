"""The answer to: what may be served to this person on this surface, now?"""

from __future__ import annotations

from dataclasses import dataclass, replace

from idiolect.consent import SubjectState
from idiolect.rollouts.outcomes import Trial

POINTER_LIVE = "live"


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """Names one immutable version: caches are keyed by `weights_sha256` and `generation`, never by a name or slot."""

    id: str
    release: str
    weights_sha256: str
    generation: int


@dataclass(frozen=True, slots=True)
class OnCandidate:
    """What serves a person who is on the candidate of a rollout of the global model."""

    digest: str
    domain: ResolvedVersion | None
    user: ResolvedVersion | None


@dataclass(frozen=True, slots=True)
class Resolution:
    """Read in one transaction, so that its parts belong together. `domain` and `user` are those on the live model."""

    global_digest: str | None
    domain: ResolvedVersion | None
    user: ResolvedVersion | None  # None unless consent, generation and pointers all allow it
    state: SubjectState | None  # None if no user was named
    domain_known: bool = False
    user_withheld: bool = False  # there is no `user` because what was live is quarantined, or its key was withdrawn
    trials: tuple[Trial, ...] = ()  # rollouts that the person takes part in, in either arm
    candidate: OnCandidate | None = None

    def seen_by(self, model: str) -> Resolution:
        """As it is for the server of a candidate, if that is what serves the person."""
        on = self.candidate
        if on is None or on.digest != model:
            return self
        return replace(self, global_digest=model, domain=on.domain, user=on.user, user_withheld=False, candidate=None)


@dataclass(frozen=True, slots=True)
class ReleaseSummary:
    id: str
    scope: str
    created_at: str
    versions: int
    revoked: bool
    epsilon: float | None  # None: nothing is claimed; see ReleaseTemplate.privacy
    unit: str | None
