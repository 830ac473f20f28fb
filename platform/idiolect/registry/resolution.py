"""The answer to: what may be served to this person on this surface, now?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    user_withheld: bool = False  # there is no `user` because what was live is quarantined, or its key was withdrawn
    trials: tuple[Trial, ...] = ()  # rollouts that the person takes part in, in either arm
    candidate: OnCandidate | None = None
    # By which it may be remembered, see `Standing`; None: it may not.
    mark: str | None = field(default=None, compare=False)
    # It was not read now: nothing of it is served before `Standing` agrees.
    remembered: bool = field(default=False, compare=False)

    def seen_by(self, model: str) -> Resolution:
        """As it is for the server of a candidate, if that is what serves the person."""
        on = self.candidate
        if on is None or on.digest != model:
            return self
        return replace(self, global_digest=model, domain=on.domain, user=on.user, user_withheld=False, candidate=None)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a remembered resolution must agree with, read anew each time: all that it was made of and that can change.

    That is little, since only what is plain is remembered: nothing is rolled out, and what is served of domain and
    person is what their pointers name. Whether that was revoked or withheld since is in the tenant's `mark`, which is
    another one after every such write. So versions and releases need not be looked at.
    """

    global_digest: str | None
    state: SubjectState | None  # None if no user was named
    domain: str | None  # ids of the live versions, whatever has become of those
    user: str | None
    mark: str | None  # None while anything is rolled out

    def agrees(self, with_: Resolution, domain: str | None) -> bool:
        """Whether `resolve` would say the same of `domain` now."""
        served = self.state is not None and self.state.refusal(domain) is None
        return (
            self.mark is not None
            and (self.mark, self.global_digest, self.state) == (with_.mark, with_.global_digest, with_.state)
            and self.domain == _id_of(with_.domain)
            and (not served or self.user == _id_of(with_.user))
        )


def _id_of(version: ResolvedVersion | None) -> str | None:
    return None if version is None else version.id


@dataclass(frozen=True, slots=True)
class ReleaseSummary:
    id: str
    scope: str
    created_at: str
    versions: int
    revoked: bool
    epsilon: float | None  # None: nothing is claimed; see ReleaseTemplate.privacy
    unit: str | None
