"""What may be spent, and the statement that travels with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from idiolect.errors import InvalidInputError
from idiolect.privacy.accountant import (
    check_delta,
    check_epsilon,
    epsilon_of_run,
    filter_rho,
    noise_multiplier_for,
)
from idiolect.privacy.events import GaussianEvent, Unit, is_positive

DEFAULT_DELTA = 1e-5

# A training reads a window of a person's newest comparisons. One more comparison pushes another out of a full window,
# so what is protected is all that a comparison says, not that it took a place (Kairouz et al. 2021, section 2).
ADJACENCY: Mapping[Unit, str] = {
    "comparison": "zero out one comparison",
    "subject": "add or remove one subject",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that all runs together may cost one unit: epsilon at delta, kept by an adaptive filter in zCDP."""

    unit: Unit
    epsilon: float
    delta: float = DEFAULT_DELTA

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon), check_delta(self.delta)

    @property
    def rho(self) -> float:
        return filter_rho(self.epsilon, self.delta)


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """The claim of one version, as its signed manifest carries it. Build it with `statement_for`."""

    unit: Unit
    adjacency: str
    mechanism: str
    epsilon: float
    delta: float
    rho: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    accountant: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def event(self) -> GaussianEvent:
        return GaussianEvent(self.noise_multiplier, self.steps)


def statement_for(unit: Unit, event: GaussianEvent, clip_norm: float, delta: float) -> PrivacyStatement:
    """The true statement for a run of `event` on sums clipped to `clip_norm` per unit."""
    if not is_positive(clip_norm):
        raise InvalidInputError(f"clip norm {clip_norm!r} is not usable.", mend="Use a finite number above 0.")
    return PrivacyStatement(
        unit=unit,
        adjacency=ADJACENCY[unit],
        mechanism="full-batch clipped gradient descent with Gaussian noise",
        epsilon=epsilon_of_run(event, delta),
        delta=delta,
        rho=event.rho,
        noise_multiplier=event.noise_multiplier,
        clip_norm=clip_norm,
        steps=event.steps,
        accountant="exact Gaussian composition (Balle & Wang 2018; Dong, Roth & Su 2022)",
    )


def plan_run(epsilon: float, delta: float, steps: int) -> GaussianEvent:
    """The event of a run that will cost exactly (epsilon, delta): decided before any data is read."""
    return GaussianEvent(noise_multiplier_for(epsilon, delta, steps), steps)
