"""Which stack serves a request, and what it says about every text.

A score is `global + domain + user`, summed in that order for each text by itself. Nothing here trusts what is
already loaded: each request resolves consent, generation and versions anew, and a personal part is confirmed
once more after it was computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from idiolect.errors import ConfigurationError, ConsentError, CorruptArtifactError, NotFoundError, UnavailableError
from idiolect.registry.resolution import Resolution, ResolvedVersion
from idiolect.stores.ports import Store
from idiolect_adapters.runtime.bank import AdapterBank, Owner, Weights
from idiolect_adapters.runtime.features import FeatureCache, Features, Pair

Mode = Literal["auto", "off", "required"]
Reason = Literal[
    "applied",
    "off",  # the request said so
    "no_user",
    "unknown_user",
    "not_opted_in",
    "paused",
    "no_adapter",  # not trained yet, revoked, or reset
    "adapter_invalid",  # did not verify: served without it
    "zero_strength",
    "no_global_model",  # the installation has no live global model: this server's own ranks alone
    "model_changed",  # the installation's live global model is not the one that this server has loaded
    "store_unavailable",  # nothing about the person could be read
    "unconfirmed",  # the person was reset again and again while this was computed
]

# A store that is gone, busy, damaged or wrongly set: whatever it is, it confirms nothing.
STORE_TROUBLE = (UnavailableError, ConfigurationError)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """`strength` multiplies the person's own; both are in [0, 1] and scale the personal part only."""

    tenant: str
    pairs: tuple[Pair, ...]
    subject: str | None = None  # pseudonym
    domain: str | None = None
    mode: Mode = "auto"
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Personalization:
    """What was applied. `strength` is the effective one, 0 if nothing personal was."""

    applied: bool
    reason: Reason
    strength: float
    global_digest: str
    domain: str | None  # version id
    adapter: str | None  # version id
    generation: int | None  # None if no person was named, or nothing about them could be read

    def to_json(self) -> dict[str, Any]:
        return {
            "applied": self.applied,
            "reason": self.reason,
            "strength": self.strength,
            "global": self.global_digest,
            "domain": self.domain,
            "adapter": self.adapter,
            "generation": self.generation,
        }


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """`score_N[i] == (global_N[i] + domain_N[i]) + user_N[i]`, exactly."""

    score_N: list[float]
    global_N: list[float]
    domain_N: list[float]
    user_N: list[float]
    personalization: Personalization
    consented: bool  # the person is known and has opted in


@dataclass(frozen=True, slots=True)
class Stack:
    """The adapters of one request; None adds nothing, not even a zero."""

    personalization: Personalization
    domain_M: Weights | None
    user_K: Weights | None
    consented: bool


class Scorer:
    """Thread-safe. One scorer serves one global model: another one needs a new scorer, cache and bank."""

    def __init__(self, store: Store, features: FeatureCache, bank: AdapterBank) -> None:
        self.store = store
        self.features = features
        self.bank = bank
        self.model = features.projector

    def try_score(self, request: ScoreRequest) -> ScoreResult | None:
        """As `score` if all features are cached, else None. Never runs the model, so it may run on a store thread."""
        stack = self._stack(request)
        features_NW = self.features.cached(request.tenant, request.pairs)
        return None if features_NW is None else self._finish(request, stack, features_NW)

    def compute_features(self, request: ScoreRequest) -> Features:
        """The slow part, which needs no decision: runs the model on what is not cached."""
        return self.features.project(request.tenant, request.pairs)

    def score(self, request: ScoreRequest, features_NW: Features | None = None) -> ScoreResult:
        """Raises ConsentError if personalization is `required` and not possible, UnavailableError if only because the
        store can't be reached. In every other mode an unreachable store or a bad adapter only takes away its part."""
        stack = self._stack(request)
        return self._finish(request, stack, self.compute_features(request) if features_NW is None else features_NW)

    def score_without_person(self, request: ScoreRequest, features_NW: Features | None) -> ScoreResult:
        """For a person whose generation won't stand still: claims nothing about them, so it can't be outdated."""
        stack = self._stack(replace(request, subject=None, mode="auto"))
        unconfirmed = replace(stack, personalization=replace(stack.personalization, reason="unconfirmed"))
        held = _required_holds(request, unconfirmed)
        return self._finish(request, held, self.compute_features(request) if features_NW is None else features_NW)

    def _stack(self, request: ScoreRequest) -> Stack:
        try:
            resolution = self.store.resolve(request.tenant, request.subject, request.domain)
        except STORE_TROUBLE:
            return _required_holds(request, self._bare("store_unavailable"))
        return _required_holds(request, self._stack_from(request, resolution))

    def _bare(self, reason: Reason) -> Stack:
        return Stack(Personalization(False, reason, 0.0, self.model.digest, None, None, None), None, None, False)

    def _stack_from(self, request: ScoreRequest, resolution: Resolution) -> Stack:
        state = resolution.state
        strength = 0.0 if state is None else state.strength * request.strength
        reason = decide(request, resolution, self.model.digest, strength)
        domain_M, user_K = None, None
        if resolution.domain is not None and resolution.global_digest == self.model.digest:
            owner = Owner(request.tenant, "domain", request.domain or "")
            domain_M, _ = self._load(owner, resolution.domain)
        if reason == "applied" and resolution.user is not None:
            user_K, reason = self._load(Owner(request.tenant, "user", request.subject or ""), resolution.user)
        applied = user_K is not None
        said = Personalization(
            applied=applied,
            reason=reason,
            strength=strength if applied else 0.0,
            global_digest=self.model.digest,
            domain=resolution.domain.id if resolution.domain is not None and domain_M is not None else None,
            adapter=resolution.user.id if resolution.user is not None and applied else None,
            generation=None if state is None else state.generation,
        )
        return Stack(said, domain_M, user_K, state is not None and state.known and state.opted_in)

    def _load(self, owner: Owner, version: ResolvedVersion) -> tuple[Weights | None, Reason]:
        try:
            return self.bank.weights(owner, version), "applied"
        except CorruptArtifactError:
            return None, "adapter_invalid"
        except NotFoundError:
            return None, "no_adapter"
        except STORE_TROUBLE:
            return None, "store_unavailable"

    def _finish(self, request: ScoreRequest, stack: Stack, features_NW: Features) -> ScoreResult:
        result = sum_stack(stack, features_NW, self.model.user_rank)
        if stack.user_K is None:
            return result
        confirmed = _required_holds(request, self._confirmed(request, stack))
        return result if confirmed is stack else sum_stack(confirmed, features_NW, self.model.user_rank)

    def _confirmed(self, request: ScoreRequest, stack: Stack) -> Stack:
        """`stack` itself, or without its personal part if the person's generation or consent moved meanwhile."""
        said = stack.personalization
        try:
            state = self.store.subject(request.tenant, request.subject or "")
        except STORE_TROUBLE:
            return _without_person(stack, "store_unavailable", None, consented=False)
        if state.generation == said.generation and state.refusal() is None:
            return stack
        reason = state.refusal() or "no_adapter"
        return _without_person(stack, reason, state.generation, consented=state.known and state.opted_in)


def decide(request: ScoreRequest, resolution: Resolution, model: str, strength: float) -> Reason:
    """Whether the person's adapter may be loaded ("applied"), or why not. The first reason wins."""
    if request.mode == "off":
        return "off"
    if request.subject is None or resolution.state is None:
        return "no_user"
    refusal = resolution.state.refusal()
    if refusal is not None:
        return refusal
    if resolution.global_digest != model:
        return "no_global_model" if resolution.global_digest is None else "model_changed"
    if resolution.user is None:
        return "no_adapter"
    return "applied" if strength > 0.0 else "zero_strength"


def sum_stack(stack: Stack, features_NW: Features, user_rank: int) -> ScoreResult:
    """Add the parts of every row.

    Products are summed along each row and never by BLAS, whose blocking depends on the number of rows: the bits of a
    row must not depend on its neighbours, nor on whether anyone ever had an adapter.
    """
    global_N = features_NW[:, 0]
    score_N, nothing_N = global_N, [0.0] * len(features_NW)
    domain_list, user_list = nothing_N, nothing_N
    if stack.domain_M is not None:
        domain_N = (features_NW[:, 1 + user_rank :] * stack.domain_M).sum(axis=1)
        score_N, domain_list = score_N + domain_N, domain_N.tolist()
    if stack.user_K is not None:
        user_N = stack.personalization.strength * np.sum(features_NW[:, 1 : 1 + user_rank] * stack.user_K, axis=1)
        score_N, user_list = score_N + user_N, user_N.tolist()
    return ScoreResult(
        score_N.tolist(), global_N.tolist(), domain_list, user_list, stack.personalization, stack.consented
    )


def _required_holds(request: ScoreRequest, stack: Stack) -> Stack:
    reason = stack.personalization.reason
    if request.mode != "required" or stack.personalization.applied:
        return stack
    if reason in ("store_unavailable", "unconfirmed"):
        raise UnavailableError(
            "personalization was required and could not be confirmed.", mend="Try again.", code="unconfirmed"
        )
    raise ConsentError(
        f"personalization was required and is not possible: {reason}.",
        mend="Send personalization 'auto' to be served without it, or remove the reason.",
    )


def _without_person(stack: Stack, reason: Reason, generation: int | None, *, consented: bool) -> Stack:
    said = replace(
        stack.personalization, applied=False, reason=reason, strength=0.0, adapter=None, generation=generation
    )
    return replace(stack, personalization=said, user_K=None, consented=consented)
