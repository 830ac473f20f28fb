"""What a person has agreed to, as one frozen value per (tenant, subject)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from idiolect.canonical import canonical_json
from idiolect.errors import InvalidInputError
from idiolect.ids import check_name
from idiolect.registry.signing import Signer

# The text that a person agrees to when opting in; a new text gets a new version.
POLICY_VERSION = "2026-11"

Refusal = Literal["unknown_user", "not_opted_in", "paused", "domain_opted_out"]

MAX_DOMAINS = 64  # choices that one person can make; they are read with every request of theirs


@dataclass(frozen=True, slots=True)
class DomainChoice:
    """What a person decided for one domain. Whoever decided nothing there is in, at full strength."""

    domain: str
    opted_in: bool = True
    strength: float = 1.0  # in [0, 1]; multiplies the person's own

    @property
    def says_nothing(self) -> bool:
        return self.opted_in and self.strength == 1.0


@dataclass(frozen=True, slots=True)
class SubjectState:
    """`generation` fences everything older; `revision` counts every change and is the ETag."""

    subject: str  # pseudonym
    known: bool = False
    opted_in: bool = False
    paused: bool = False
    strength: float = 1.0  # in [0, 1]; scales the personal part only
    generation: int = 0
    revision: int = 0
    policy_version: str | None = None
    updated_at: datetime | None = None
    domains: tuple[DomainChoice, ...] = ()  # in order of name, without those that say nothing

    def refusal(self, domain: str | None = None) -> Refusal | None:
        """Why this person gets no personal part (in `domain`, if one is named), or None if they may."""
        if not self.known:
            return "unknown_user"
        if not self.opted_in:
            return "not_opted_in"
        if self.paused:
            return "paused"
        return None if self.agrees_in(domain) else "domain_opted_out"

    def choice(self, domain: str | None) -> DomainChoice | None:
        """None if they decided nothing there."""
        for choice in self.domains:
            if choice.domain == domain:
                return choice
        return None

    def agrees_in(self, domain: str | None) -> bool:
        """Whether what this person does in `domain` may be kept under their name, and learned from."""
        choice = self.choice(domain)
        return self.opted_in and (choice is None or choice.opted_in)

    def strength_in(self, domain: str | None) -> float:
        choice = self.choice(domain)
        return self.strength if choice is None else self.strength * choice.strength


@dataclass(frozen=True, slots=True)
class DomainChange:
    """For one domain; None leaves a field as it is."""

    domain: str
    opted_in: bool | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        check_name("domain", self.domain)
        _check_strength(self.strength)


@dataclass(frozen=True, slots=True)
class ConsentChange:
    """A change that the person asked for; None leaves a field as it is."""

    opted_in: bool | None = None
    paused: bool | None = None
    strength: float | None = None
    domains: tuple[DomainChange, ...] = ()  # other domains stay as they are

    def __post_init__(self) -> None:
        _check_strength(self.strength)
        if len({change.domain for change in self.domains}) != len(self.domains):
            raise InvalidInputError("a domain is named twice.", mend="Name each domain once.")

    @property
    def refuses(self) -> bool:
        """Whether it says no to anything: then what was learned may have to go."""
        return self.opted_in is False or any(change.opted_in is False for change in self.domains)


def _check_strength(strength: float | None) -> None:
    if strength is not None and not (math.isfinite(strength) and 0.0 <= strength <= 1.0):
        raise InvalidInputError(f"strength {strength!r} is out of range.", mend="Send a number from 0 to 1.")


def _choices_after(state: SubjectState, changes: tuple[DomainChange, ...]) -> tuple[DomainChoice, ...]:
    """Raises InvalidInputError for more than MAX_DOMAINS."""
    choices = {choice.domain: choice for choice in state.domains}
    for change in changes:
        old = choices.get(change.domain, DomainChoice(change.domain))
        choices[change.domain] = DomainChoice(
            change.domain,
            old.opted_in if change.opted_in is None else change.opted_in,
            old.strength if change.strength is None else change.strength,
        )
    kept = tuple(choice for _, choice in sorted(choices.items()) if not choice.says_nothing)
    if len(kept) > MAX_DOMAINS:
        raise InvalidInputError(
            f"{len(kept)} domains are over the limit of {MAX_DOMAINS}.", mend="Take back choices for other domains."
        )
    return kept


def refused_domains(state: SubjectState) -> frozenset[str]:
    return frozenset(choice.domain for choice in state.domains if not choice.opted_in)


def apply_change(state: SubjectState, change: ConsentChange, now: datetime) -> SubjectState:
    """The next state. Opting out, also of one domain alone, raises the generation: what was learned before was learned
    from that domain too, so none of it is served again."""
    opted_in = state.opted_in if change.opted_in is None else change.opted_in
    domains = _choices_after(state, change.domains)
    leaves = refused_domains(replace(state, domains=domains)) - refused_domains(state)
    withdrawn = state.opted_in and (not opted_in or bool(leaves))
    return replace(
        state,
        known=True,
        opted_in=opted_in,
        paused=state.paused if change.paused is None else change.paused,
        strength=state.strength if change.strength is None else change.strength,
        generation=state.generation + 1 if withdrawn else state.generation,
        revision=state.revision + 1,
        # Only opting in agrees to the text of today; another change keeps what was agreed to.
        policy_version=POLICY_VERSION if change.opted_in else state.policy_version if opted_in else None,
        updated_at=now,
        domains=domains,
    )


def signed_consent(tenant: str, state: SubjectState, signer: Signer) -> dict[str, Any]:
    """A receipt of what the person decided, and for which text: `signature` is hex Ed25519 over the canonical JSON of
    everything but `key_id` and itself. The same state always gives the same receipt."""
    assert state.updated_at is not None
    body = {
        "format": "idiolect-consent-receipt/1",
        "tenant": tenant,
        "subject": state.subject,
        "opted_in": state.opted_in,
        "paused": state.paused,
        "strength": state.strength,
        "domains": {one.domain: {"opted_in": one.opted_in, "strength": one.strength} for one in state.domains},
        "policy_version": state.policy_version,
        "generation": state.generation,
        "revision": state.revision,
        "updated_at": state.updated_at.isoformat(),
    }
    return body | {"key_id": signer.key_id, "signature": signer.sign(canonical_json(body)).hex()}
