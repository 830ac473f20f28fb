"""The answer to: what may be served to this person on this surface, now?"""

from __future__ import annotations

from dataclasses import dataclass

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
class Resolution:
    """Read in one transaction, so that its parts belong together."""

    global_digest: str | None
    domain: ResolvedVersion | None
    user: ResolvedVersion | None  # None unless consent, generation and pointers all allow it
    state: SubjectState | None  # None if no user was named
    domain_known: bool = False
    user_withheld: bool = False  # there is no `user` because what was live is quarantined, or its key was withdrawn
    trials: tuple[Trial, ...] = ()  # rollouts that the person takes part in, in either arm


@dataclass(frozen=True, slots=True)
class ReleaseSummary:
    id: str
    scope: str
    created_at: str
    versions: int
    revoked: bool
    epsilon: float | None  # None: nothing is claimed; see ReleaseTemplate.privacy
    unit: str | None
