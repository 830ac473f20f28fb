"""The audit of one mechanism: every canary, at a confidence that holds for all of them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from idiolect.errors import InvalidInputError
from idiolect.privacy.accountant import check_delta, check_epsilon
from idiolect.privacy.budget import plan_run
from idiolect_adapters.audit.bounds import epsilon_bounds
from idiolect_adapters.audit.canary import Canary, Mechanism
from idiolect_adapters.audit.structure import undeclared_weights

Train = TypeVar("Train")

MIN_TRIALS = 500
CONFIDENCE = 0.999  # the attack is as good as the claim allows, so this is also how seldom a true claim is refuted
BOUNDS_PER_CANARY = 2


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """`trials` with the canary and as many without; half of them chose the threshold. Both bounds are on epsilon."""

    canary: str
    trials: int
    lower_bound: float
    lower_bound_gdp: float
    tpr_at_least: float
    fpr_at_most: float


@dataclass(frozen=True, slots=True)
class AuditReport:
    """With `confidence` every bound of the report holds at once (Bonferroni over canaries and kinds of bound)."""

    mechanism: str
    unit: str
    epsilon_claimed: float
    delta: float
    confidence: float
    trials: int
    canaries: tuple[CanaryResult, ...]
    structure: tuple[str, ...]  # what is wrong; empty if nothing

    @property
    def lower_bound(self) -> float:
        return max((result.lower_bound for result in self.canaries), default=0.0)

    @property
    def lower_bound_gdp(self) -> float:
        return max((result.lower_bound_gdp for result in self.canaries), default=0.0)

    @property
    def ratio(self) -> float:
        return max(self.lower_bound, self.lower_bound_gdp) / self.epsilon_claimed

    @property
    def caught(self) -> bool:
        """The claim is false: the bound is above it, or the structure leaks."""
        return bool(self.structure) or self.ratio > 1.0

    @property
    def evidence(self) -> str:
        """What shows most: the first complaint about the structure, or the canary with the highest bound."""
        if self.structure:
            return "structure"
        return max(self.canaries, key=lambda r: max(r.lower_bound, r.lower_bound_gdp)).canary if self.canaries else ""

    def to_json(self) -> dict[str, Any]:
        derived = ("lower_bound", "lower_bound_gdp", "ratio", "caught", "evidence")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def audit_mechanism(
    mechanism: Mechanism[Train],
    epsilon: float,
    delta: float,
    *,
    trials: int | None = None,
    confidence: float = CONFIDENCE,
    stop_when_caught: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> AuditReport:
    """Attack `mechanism`, run with the noise that claims (epsilon, delta). `trials` is of the main canary, per side.

    InvalidInputError for settings that are not usable, before anything runs.
    """
    check_epsilon(epsilon), check_delta(delta)
    if not 0.5 <= confidence < 1.0:
        raise InvalidInputError(f"confidence {confidence!r} is not usable.", mend="Use a number from 0.5, below 1.")
    trials = mechanism.trials if trials is None else trials
    if trials < MIN_TRIALS:
        raise InvalidInputError(f"{trials} trials show nothing.", mend=f"Use at least {MIN_TRIALS}.")
    structure = tuple(undeclared_weights(mechanism.weights) + mechanism.touched(mechanism.train))
    alpha = (1.0 - confidence) / (BOUNDS_PER_CANARY * len(mechanism.canaries))
    results: list[CanaryResult] = []

    def report() -> AuditReport:
        found = (mechanism.name, mechanism.unit, epsilon, delta, confidence, trials)
        return AuditReport(*found, tuple(results), structure)

    cheap_first = sorted(mechanism.canaries, key=lambda canary: canary.share)
    for done, canary in enumerate(cheap_first if stop_when_caught else mechanism.canaries):
        if stop_when_caught and report().caught:
            break
        results.append(_attack(mechanism, canary, epsilon, delta, trials, alpha))
        progress(done + 1, len(mechanism.canaries))
    return report()


def _attack(
    mechanism: Mechanism[Train], canary: Canary[Train], epsilon: float, delta: float, trials: int, alpha: float
) -> CanaryResult:
    count = max(MIN_TRIALS, round(canary.share * trials))
    event = plan_run(
        epsilon,
        delta,
        mechanism.releases(canary.steps),
        allow_weak=True,
        sample_rate=mechanism.sample_rate,
        unsampled_steps=mechanism.releases(0),
    )
    multiplier = event.noise_multiplier
    with_N, without_N = (canary.scores(mechanism.train, multiplier, there, count) for there in (True, False))
    bounds = epsilon_bounds(with_N, without_N, delta, alpha)
    return CanaryResult(canary.name, count, bounds.threshold, bounds.gaussian, bounds.rates.tpr, bounds.rates.fpr)
