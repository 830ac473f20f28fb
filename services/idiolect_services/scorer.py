"""Which stack serves a request, and what it says about every text.

A score is `global + domain + user`, summed in that order for each text by itself. Nothing here trusts what is
already loaded: each request resolves consent, generation and versions anew, and a personal part is confirmed
once more after it was computed.

A head adapter multiplies features that everybody shares. A LoRA of inner layers has features of its own, of every text
that is read under it: its part is what the score is there, less what it is without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from idiolect.consent import SubjectState
from idiolect.errors import (
    ConsentError,
    CorruptArtifactError,
    IdiolectError,
    NotFoundError,
    UnavailableError,
)
from idiolect.registry.resolution import Resolution, ResolvedVersion
from idiolect.resets.fence import uptime
from idiolect.rollouts.outcomes import Served, Trial
from idiolect.stores.ports import Store
from idiolect_adapters.runtime.bank import AdapterBank, Owner, Weights
from idiolect_adapters.runtime.features import FeatureCache, Features, Pair
from idiolect_services.looks import STORE_TROUBLE, Asking, Confirm, LookAgain, Resolve, ResolveAnew, alone
from idiolect_services.quarantine import Quarantine

if TYPE_CHECKING:  # it imports torch
    from idiolect_adapters.runtime.loras import Lora, LoraStack

Mode = Literal["auto", "off", "required"]
Reason = Literal[
    "applied",
    "off",  # the request said so
    "no_user",
    "unknown_user",
    "not_opted_in",
    "paused",
    "domain_opted_out",  # the person is out of this domain alone
    "no_adapter",  # not trained yet, revoked, or reset
    "adapter_invalid",  # did not verify: served without it
    "zero_strength",
    "no_global_model",  # the installation has no live global model: this server's own ranks alone
    "model_changed",  # the installation's live global model is not the one that this server has loaded
    "store_unavailable",  # nothing about the person could be read
    "unconfirmed",  # the person was reset again and again meanwhile, or could not be looked up in time
]

Unrecorded = Literal["store_unavailable", "quota_exceeded"]

# Versions of one stack that may turn out bad within one request; the next request goes on from there.
FALLBACKS = 8


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """`strength` multiplies the person's own; both are in [0, 1] and scale the personal part only."""

    tenant: str
    pairs: tuple[Pair, ...]
    subject: str | None = None  # pseudonym
    domain: str | None = None
    mode: Mode = "auto"
    strength: float = 1.0
    explain: bool = False  # also say what each direction adds


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
    missing: str | None = None  # the candidate of a rollout, which the person is on and this server can't serve

    def to_json(self) -> dict[str, Any]:
        missing = {} if self.missing is None else {"candidate_missing": self.missing}
        return missing | {
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
    """`score_N[i] == (global_N[i] + domain_N[i]) + user_N[i]`, exactly.

    Of a request to `explain`, each row of the directions adds up to that text's domain or user part, but for rounding:
    to 1e-12 of the largest of them. Empty rows where nothing was applied.
    """

    score_N: list[float]
    global_N: list[float]
    domain_N: list[float]
    user_N: list[float]
    personalization: Personalization
    consented: bool  # the person is known and has opted in, also in this domain
    unrecorded: Unrecorded | None = None  # why nothing of it may be kept
    # Of fence.uptime, before the last read that says that the generation is the current one.
    looked_at: float = field(default=0.0, compare=False)
    domain_directions_N_M: list[list[float]] | None = None
    user_directions_N_K: list[list[float]] | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """The adapters of one request; None adds nothing, not even a zero. Domain and person have a head adapter or a LoRA
    each, never both."""

    personalization: Personalization
    domain_M: Weights | None
    user_K: Weights | None
    consented: bool
    trials: tuple[Trial, ...] = ()  # rollouts that this request counts in
    since: float = 0.0  # of time.perf_counter, when it was resolved
    fell_back: bool = False  # something that was resolved could not be applied
    domain_lora: LoraStack | None = None
    user_lora: LoraStack | None = None  # with the domain's, if there is one

    @property
    def personal(self) -> bool:
        return self.user_K is not None or self.user_lora is not None

    @property
    def loras(self) -> tuple[LoraStack, ...]:
        return tuple(stack for stack in (self.domain_lora, self.user_lora) if stack is not None)


@dataclass(frozen=True, slots=True)
class Rows:
    """Features [N, W] of a request's texts under each part of its stack; the same array where a part is no LoRA."""

    bare_NW: Features
    domain_NW: Features
    user_NW: Features


# By the key of a LoraStack, what was computed for a request.
Under = Mapping[str, Features]
NOTHING_UNDER: Under = {}


OnServed = Callable[[Served], None]
Part = Callable[[Owner, ResolvedVersion], "Weights | Lora"]  # as AdapterBank.part


def nobody_counts(_served: Served) -> None:
    """Where no rollout is evaluated."""


class NotResidentError(Exception):
    """Something would have to be loaded first."""


class _QuarantinedError(Exception):
    """A version was quarantined just now: what was resolved is out of date."""


class Scorer:
    """Thread-safe. One scorer serves one global model: another one needs a new scorer, cache and bank."""

    def __init__(
        self,
        store: Store,
        features: FeatureCache,
        bank: AdapterBank,
        quarantine: Quarantine | None = None,
        on_served: OnServed = nobody_counts,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        """`on_served` counts requests of people who take part in a rollout; it must not block. `uptime`: that of the
        process, by which answers are fenced."""
        self.uptime = uptime
        self.on_served = on_served
        self.quarantine = quarantine or Quarantine(store)
        self.store = store
        self.features = features
        self.bank = bank
        self.model = features.projector
        self._last_domain: tuple[ResolvedVersion | None, Weights | None] = (None, None)

    def try_score(self, request: ScoreRequest, *, resident: bool = False) -> ScoreResult | None:
        """As `score` if all features are cached, else None: never runs the model.

        With `resident` NotResidentError is raised if an adapter had to be loaded first; all that is left are point
        reads of the store.
        """
        return alone(self.trying(request, resident=resident), self.store)

    def trying(self, request: ScoreRequest, *, resident: bool = False) -> Asking[ScoreResult | None]:
        """`try_score` in stages, for whoever tries several requests: each stage is faster right after another's."""
        features_NW = self.features.cached(request.tenant, request.pairs, request.subject)
        if features_NW is None:
            return None
        looked_at = self.uptime()
        resolution = yield from self._resolving(request)
        if resolution is not None and resolution.remembered:
            result = yield from self._from_memory(request, resolution, features_NW, self._part(resident))
            if result is not None:
                return result
            looked_at = self.uptime()
            resolution = yield from self._resolving(request, anew=True)
        try:
            stack = self._stack(request, resolution, self._part(resident))
            rows = self._cached_rows(request, stack, features_NW, NOTHING_UNDER)
            yield None
            return None if rows is None else (yield from self._finishing(request, stack, rows, looked_at))
        except Exception as error:
            self._failed(request, error)
            raise

    def _from_memory(
        self, request: ScoreRequest, remembered: Resolution, features_NW: Features, part: Part
    ) -> Asking[ScoreResult | None]:
        """None if the store does not confirm it, or if it does not lead to an answer: then it may only be outdated."""
        try:
            stack = self._stack(request, remembered, part)
        except (NotResidentError, IdiolectError):
            return None
        rows = self._cached_rows(request, stack, features_NW, NOTHING_UNDER)
        if rows is None:
            return None
        yield None
        looked_at = self.uptime()
        result = sum_stack(stack, rows, self.model.user_rank, looked_at, explain=request.explain)
        try:
            holds: bool = yield Confirm(request.tenant, request.subject, request.domain, remembered)
        except STORE_TROUBLE:
            return None
        return result if holds else None

    def loras_of(self, request: ScoreRequest, *, resident: bool = False) -> tuple[LoraStack, ...]:
        """What the request's texts have to be read under, beside the bare model. Loads what is not in memory; with
        `resident` it raises NotResidentError instead. What fails here is said when the request is scored."""
        if self.bank.engine is None:
            return ()
        try:
            return self._strongest(request, self._resolved(request), self._part(resident)).loras
        except IdiolectError:
            return ()

    def prefetch(self, request: ScoreRequest, resolution: Resolution) -> None:
        """Have the person's adapter loaded in the background, if they may be served one. It confirms nothing: each
        request resolves anew."""
        if resolution.user is not None and decide(request, resolution, self.model.digest, 1.0) == "applied":
            self.bank.prefetch(_owner_of_user(request), resolution.user)

    def forget(self, tenant: str, subject: str) -> None:
        """Free what this process keeps of a person's own, and of the texts that only they had scored."""
        self.bank.purge(tenant, subject)
        self.features.purge_person(tenant, subject)

    def _failed(self, request: ScoreRequest, error: Exception) -> None:
        if request.subject is not None and not isinstance(error, ConsentError | NotResidentError):
            self.on_served(Served(request.tenant, request.subject, (), 0.0, failed=True))

    def _served(self, request: ScoreRequest, stack: Stack) -> None:
        seconds = time.perf_counter() - stack.since
        self.on_served(Served(request.tenant, request.subject or "", stack.trials, seconds, fallback=stack.fell_back))

    def compute_features(self, request: ScoreRequest) -> Features:
        """The slow part, which needs no decision: runs the model on what is not cached."""
        return self.features.project(request.tenant, request.pairs, request.subject)

    def score(
        self,
        request: ScoreRequest,
        features_NW: Features | None = None,
        under: Under = NOTHING_UNDER,
        *,
        resident: bool = False,
    ) -> ScoreResult:
        """Raises ConsentError if personalization is `required` and not possible, UnavailableError if only because the
        store can't be reached. In every other mode an unreachable store or a bad adapter only takes away its part.

        `under`: features that were computed for what `loras_of` said. Where the stack has changed since, they are
        computed here. With `resident` NotResidentError is raised instead of loading anything.
        """
        if features_NW is None:
            features_NW = self.compute_features(request)
        looked_at = self.uptime()
        try:
            stack = self._stack(request, self._resolved(request), self._part(resident))
            return self._finish(request, stack, self._rows(request, stack, features_NW, under), looked_at)
        except Exception as error:
            self._failed(request, error)
            raise

    def score_without_person(
        self,
        request: ScoreRequest,
        features_NW: Features | None,
        under: Under = NOTHING_UNDER,
        *,
        resident: bool = False,
    ) -> ScoreResult:
        """For a person whose generation won't stand still: claims nothing about them, so it can't be outdated."""
        shared = replace(request, subject=None, mode="auto")
        stack = self._stack(shared, self._resolved(shared), self._part(resident))
        unconfirmed = replace(stack, personalization=replace(stack.personalization, reason="unconfirmed"))
        held = _required_holds(request, unconfirmed)
        if features_NW is None:
            features_NW = self.compute_features(request)
        return self._finish(request, held, self._rows(request, held, features_NW, under), self.uptime())

    def _cached_rows(self, request: ScoreRequest, stack: Stack, bare_NW: Features, under: Under) -> Rows | None:
        """None if a LoRA's features have to be computed first."""
        domain_NW = bare_NW if stack.domain_lora is None else self._cached(request, stack.domain_lora, under)
        user_NW = domain_NW if stack.user_lora is None else self._cached(request, stack.user_lora, under)
        return None if domain_NW is None or user_NW is None else Rows(bare_NW, domain_NW, user_NW)

    def _cached(self, request: ScoreRequest, stack: LoraStack, under: Under) -> Features | None:
        found = under.get(stack.key)
        return self.features.cached(request.tenant, request.pairs, request.subject, stack) if found is None else found

    def _rows(self, request: ScoreRequest, stack: Stack, bare_NW: Features, under: Under) -> Rows:
        missing = [lora for lora in stack.loras if self._cached(request, lora, under) is None]
        computed = {
            lora.key: self.features.project(request.tenant, request.pairs, request.subject, lora) for lora in missing
        }
        rows = self._cached_rows(request, stack, bare_NW, {**under, **computed})
        # What was in the cache a moment ago may have had to go for what was computed.
        return self._rows(request, stack, bare_NW, {**under, **computed}) if rows is None else rows

    def _resolved(self, request: ScoreRequest) -> Resolution | None:
        return alone(self._resolving(request), self.store)

    def _resolving(self, request: ScoreRequest, *, anew: bool = False) -> Asking[Resolution | None]:
        """None if the store can't be read: then nothing about anybody is confirmed."""
        question = ResolveAnew if anew else Resolve
        try:
            found: Resolution = yield question(request.tenant, request.subject, request.domain)
        except STORE_TROUBLE:
            return None
        return found if found.candidate is None else found.seen_by(self.model.digest)

    def _stack(self, request: ScoreRequest, resolution: Resolution | None, part: Part) -> Stack:
        return _required_holds(request, self._strongest(request, resolution, part))

    def _strongest(self, request: ScoreRequest, resolution: Resolution | None, part: Part) -> Stack:
        """The strongest stack whose parts all verify: a bad version is quarantined, and the next one tried."""
        first = resolution
        for attempt in range(FALLBACKS):
            if resolution is None:
                return self._bare("store_unavailable")
            try:
                stack = self._stack_from(request, resolution, part)
            except _QuarantinedError:
                resolution = self._resolved(request)
                continue
            if attempt and first is not None:  # it counts as what it was before its version was found to be bad
                stack = replace(stack, trials=_counted(request, first), fell_back=True)
            return stack
        return self._bare("adapter_invalid")

    def _part(self, resident: bool) -> Part:
        return self._resident_part if resident else self.bank.part

    def _resident_part(self, owner: Owner, version: ResolvedVersion) -> Weights | Lora:
        """Raises NotResidentError instead of loading anything, or of quarantining: whoever loads it does."""
        try:
            found = self.bank.resident(owner, version)
        except CorruptArtifactError:
            found = None
        if found is None:
            raise NotResidentError
        return found

    def _bare(self, reason: Reason) -> Stack:
        return Stack(Personalization(False, reason, 0.0, self.model.digest, None, None, None), None, None, False)

    def _stack_from(self, request: ScoreRequest, resolution: Resolution, part: Part) -> Stack:
        state = resolution.state
        since = time.perf_counter()
        strength = 0.0 if state is None else state.strength_in(request.domain) * request.strength
        for trial in resolution.trials:
            strength *= trial.strength
        reason = decide(request, resolution, self.model.digest, strength)
        domain: Weights | Lora | None = None
        user: Weights | Lora | None = None
        wants_domain = resolution.domain is not None and resolution.global_digest == self.model.digest
        wants_user = reason == "applied"
        if wants_domain and resolution.domain is not None:
            domain = self._domain(part, request, resolution.domain)
        if reason == "applied" and resolution.user is not None:
            user, reason = self._load(part, _owner_of_user(request), resolution.user)
        domain_lora, user_lora = stacked(domain, user, strength)
        if user is not None and not isinstance(user, np.ndarray) and user_lora is None:
            user, reason = None, "adapter_invalid"  # it and the domain's replace the same layer
        applied = user is not None
        fell_back = (
            (wants_user and not applied) or (wants_domain and domain is None) or resolution.candidate is not None
        )
        said = Personalization(
            applied=applied,
            reason=reason,
            strength=strength if applied else 0.0,
            global_digest=self.model.digest,
            domain=resolution.domain.id if resolution.domain is not None and domain is not None else None,
            adapter=resolution.user.id if resolution.user is not None and applied else None,
            generation=None if state is None else state.generation,
            missing=None if resolution.candidate is None else resolution.candidate.digest,
        )
        consented = state is not None and state.known and state.agrees_in(request.domain)
        return Stack(
            said,
            domain if isinstance(domain, np.ndarray) else None,
            user if isinstance(user, np.ndarray) else None,
            consented,
            _counted(request, resolution),
            since,
            fell_back,
            domain_lora,
            user_lora,
        )

    def _domain(self, part: Part, request: ScoreRequest, version: ResolvedVersion) -> Weights | Lora | None:
        """Those who are looked up together on one surface are given the same object: then what the first of them found
        serves them all. Nobody keeps it longer, so no later request has the same one."""
        known, weights = self._last_domain
        if known is version:
            return weights
        found, _ = self._load(part, _owner_of_domain(request), version)
        if isinstance(found, np.ndarray):
            self._last_domain = (version, found)
        return found

    def _load(self, part: Part, owner: Owner, version: ResolvedVersion) -> tuple[Weights | Lora | None, Reason]:
        try:
            return part(owner, version), "applied"
        except CorruptArtifactError as error:
            if self.quarantine.report(owner.tenant, version.id, error):
                raise _QuarantinedError from error
            return None, "adapter_invalid"
        except NotFoundError:
            return None, "no_adapter"
        except STORE_TROUBLE:
            return None, "store_unavailable"

    def _finish(self, request: ScoreRequest, stack: Stack, rows: Rows, looked_at: float) -> ScoreResult:
        return alone(self._finishing(request, stack, rows, looked_at), self.store)

    def _finishing(self, request: ScoreRequest, stack: Stack, rows: Rows, looked_at: float) -> Asking[ScoreResult]:
        """`looked_at`: before what `stack` was resolved from was read."""
        if stack.personal:
            looked_at = self.uptime()  # it is read once more
        result = sum_stack(stack, rows, self.model.user_rank, looked_at, explain=request.explain)
        confirmed = _required_holds(request, (yield from self._confirming(request, stack))) if stack.personal else stack
        if confirmed is not stack:
            return sum_stack(confirmed, rows, self.model.user_rank, looked_at, explain=request.explain)
        if stack.trials:
            self._served(request, stack)
        return result

    def _confirming(self, request: ScoreRequest, stack: Stack) -> Asking[Stack]:
        """`stack` itself, or without its personal part if the person's generation or consent moved meanwhile."""
        said = stack.personalization
        try:
            state: SubjectState = yield LookAgain(request.tenant, request.subject or "")
        except STORE_TROUBLE:
            return _without_person(stack, "store_unavailable", None, consented=False)
        refusal = state.refusal(request.domain)
        if state.generation == said.generation and refusal is None:
            return stack
        reason = refusal or "no_adapter"
        return _without_person(
            stack, reason, state.generation, consented=state.known and state.agrees_in(request.domain)
        )


def decide(request: ScoreRequest, resolution: Resolution, model: str, strength: float) -> Reason:
    """Whether the person's adapter may be loaded ("applied"), or why not. The first reason wins."""
    if request.mode == "off":
        return "off"
    if request.subject is None or resolution.state is None:
        return "no_user"
    refusal = resolution.state.refusal(request.domain)
    if refusal is not None:
        return refusal
    if resolution.global_digest != model:
        return "no_global_model" if resolution.global_digest is None else "model_changed"
    if resolution.user is None:
        return "adapter_invalid" if resolution.user_withheld else "no_adapter"
    return "applied" if strength > 0.0 else "zero_strength"


def stacked(
    domain: Weights | Lora | None, user: Weights | Lora | None, strength: float
) -> tuple[LoraStack | None, LoraStack | None]:
    """What texts are read under for the domain's part, and for the person's. None for the person also if the two
    can't be one stack."""
    if (domain is None or isinstance(domain, np.ndarray)) and (user is None or isinstance(user, np.ndarray)):
        return None, None
    from idiolect_adapters.runtime.loras import Lora, LoraStack, clash

    below = ((domain, 1.0),) if isinstance(domain, Lora) else ()
    of_domain = LoraStack(below) if below else None
    if not isinstance(user, Lora) or any(clash(lora, user) for lora, _ in below):
        return of_domain, None
    return of_domain, LoraStack((*below, (user, strength)))


def sum_stack(
    stack: Stack, rows: Rows | Features, user_rank: int, looked_at: float = 0.0, *, explain: bool = False
) -> ScoreResult:
    """Add the parts of every row.

    Products are summed along each row and never by BLAS, whose blocking depends on the number of rows: the bits of a
    row must not depend on its neighbours, nor on whether anyone ever had an adapter.
    """
    bare_NW, domain_NW, user_NW = (
        (rows.bare_NW, rows.domain_NW, rows.user_NW) if isinstance(rows, Rows) else (rows, rows, rows)
    )
    global_N = bare_NW[:, 0]
    score_N, nothing_N = global_N, [0.0] * len(bare_NW)
    domain_list, user_list = nothing_N, nothing_N
    if stack.domain_lora is not None:
        domain_N = domain_NW[:, 0] - global_N
        score_N, domain_list = score_N + domain_N, domain_N.tolist()
    elif stack.domain_M is not None:
        domain_N = _domain_sum(bare_NW, stack.domain_M, user_rank)
        score_N, domain_list = score_N + domain_N, domain_N.tolist()
    if stack.user_lora is not None:
        user_N = user_NW[:, 0] - domain_NW[:, 0]
        if stack.domain_M is not None:  # the domain's head reads what the person's LoRA made of the text
            user_N = user_N + (_domain_sum(user_NW, stack.domain_M, user_rank) - domain_N)
        score_N, user_list = score_N + user_N, user_N.tolist()
    elif stack.user_K is not None:
        user_N = stack.personalization.strength * np.sum(domain_NW[:, 1 : 1 + user_rank] * stack.user_K, axis=1)
        score_N, user_list = score_N + user_N, user_N.tolist()
    said = stack.personalization
    unrecorded: Unrecorded | None = "store_unavailable" if said.reason == "store_unavailable" else None
    lists = (score_N.tolist(), global_N.tolist(), domain_list, user_list)
    result = ScoreResult(*lists, said, stack.consented, unrecorded, looked_at)
    if not explain:
        return result
    domain_N_M = _each(bare_NW[:, 1 + user_rank :], stack.domain_M, 1.0)
    user_N_K = _each(domain_NW[:, 1 : 1 + user_rank], stack.user_K, said.strength)
    return replace(result, domain_directions_N_M=domain_N_M, user_directions_N_K=user_N_K)


def _domain_sum(features_NW: Features, domain_M: Weights, user_rank: int) -> Features:
    summed_N: Features = (features_NW[:, 1 + user_rank :] * domain_M).sum(axis=1)
    return summed_N


def _each(features_N_K: Features, weights_K: Weights | None, strength: float) -> list[list[float]]:
    if weights_K is None:
        return [[] for _ in features_N_K]
    contributions: list[list[float]] = (strength * (features_N_K * weights_K)).tolist()
    return contributions


def _counted(request: ScoreRequest, resolution: Resolution) -> tuple[Trial, ...]:
    """Whoever asked for no personalization was shown nothing personal, in either arm."""
    if request.mode != "off":
        return resolution.trials
    return tuple(trial for trial in resolution.trials if trial.slot in ("domain", "global"))


def _owner_of_domain(request: ScoreRequest) -> Owner:
    return Owner(request.tenant, "domain", request.domain or "")


def _owner_of_user(request: ScoreRequest) -> Owner:
    return Owner(request.tenant, "user", request.subject or "")


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
    return replace(stack, personalization=said, user_K=None, user_lora=None, consented=consented)
