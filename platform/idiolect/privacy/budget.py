"""What may be spent, and the statement that travels with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from idiolect.errors import CorruptArtifactError, InvalidInputError
from idiolect.privacy.accountant import (
    check_delta,
    check_epsilon,
    epsilon_of_run,
    filter_rho,
    noise_multiplier_for,
    sampled_run_for,
)
from idiolect.privacy.events import (
    Event,
    GaussianEvent,
    SampledGaussianEvent,
    Unit,
    check_sample_rate,
    is_positive,
)
from idiolect.settings import MAX_EPSILON

DEFAULT_DELTA = 1e-5

# Above this a run protects so little that it must be asked for: exp(20) is half a billion.
WEAK_EPSILON = MAX_EPSILON

# A training reads a window of a person's newest comparisons. One more comparison pushes another out of a full window,
# so what is protected is all that a comparison says, not that it took a place (Kairouz et al. 2021, section 2).
ADJACENCY: Mapping[Unit, str] = {
    "comparison": "zero out one comparison: its content is replaced by nothing, its place in the window that is read "
    "stays (Kairouz et al. 2021)",
    "subject": "add or remove one subject with all their data",
}


_MECHANISM = "full-batch clipped gradient descent with Gaussian noise"
_WITH_MOMENT = ", and a clipped second moment of gradients"
_SAMPLED_MECHANISM = "clipped gradient descent on secret Poisson samples with Gaussian noise"
_ACCOUNTANT = "exact Gaussian composition (Balle & Wang 2018; Dong, Roth & Su 2022)"
_SAMPLED_ACCOUNTANT = "privacy loss distribution of the Poisson-sampled Gaussian mechanism (dp_accounting), rounded up"


def default_delta(units: int) -> float:
    """The delta of a run over `units` protected units: DEFAULT_DELTA, and for many units at most a tenth of 1 / units.

    Rounded down to a power of ten, since the manifest shows it and the exact number of people is nobody's business.
    """
    if units * DEFAULT_DELTA <= 0.1:
        return DEFAULT_DELTA
    return float(10.0 ** -(math.ceil(math.log10(units)) + 1))


@dataclass(frozen=True)
class Budget:
    """The most that runs together may cost one unit: epsilon at delta, kept by an adaptive filter in zCDP.

    With a `window` that holds for the charges of every stretch of that length, and over a lifetime epsilon has no
    bound; without one it holds for ever.
    """

    unit: Unit
    epsilon: float
    delta: float = DEFAULT_DELTA
    window: timedelta | None = None

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon), check_delta(self.delta)
        if self.window is not None and self.window <= timedelta(0):
            raise InvalidInputError(f"a budget window of {self.window} is not usable.", mend="Use more than no time.")

    @cached_property
    def rho(self) -> float:
        return filter_rho(self.epsilon, self.delta)

    def since(self, now: datetime) -> datetime | None:
        """Charges before this no longer count; None if all count."""
        if self.window is None:
            return None
        try:
            return now - self.window
        except OverflowError:  # longer than the calendar
            return None


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """The claim of one version, as its signed manifest carries it. Build it with `statement_for`.

    A field with a default is left out of the JSON where it has that default: manifests signed before the field existed
    keep their bytes, and so their signature.
    """

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
    weak: bool = False  # epsilon is over WEAK_EPSILON: someone asked for that
    local_epsilon: float | None = None  # feedback was randomised with this before it was stored
    budget_epsilon: float | None = None  # what all runs on the same data may reach together ...
    budget_days: float | None = None  # ... within so many days; None is for ever
    sample_rate: float | None = None  # each step read a Poisson sample of the units; None is everybody ...
    unsampled_steps: int | None = None  # ... but so many of the steps read everybody

    def to_json(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        optional = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in own.items() if name not in optional or value != optional[name]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PrivacyStatement:
        """Raises CorruptArtifactError for a field too many or too few."""
        try:
            return PrivacyStatement(**data)
        except TypeError as error:
            raise CorruptArtifactError(f"a privacy statement does not have the right fields: {error}.") from error

    @property
    def event(self) -> Event:
        if self.sample_rate is None:
            return GaussianEvent(self.noise_multiplier, self.steps)
        return SampledGaussianEvent(self.noise_multiplier, self.steps, self.sample_rate, self.unsampled_steps or 0)


def statement_for(
    unit: Unit,
    event: Event,
    clip_norm: float,
    delta: float,
    *,
    budget: Budget | None = None,
    local_epsilon: float | None = None,
    moment: bool = False,
) -> PrivacyStatement:
    """The true statement for a run of `event` on sums clipped to `clip_norm` per unit, within `budget`.

    With a `moment` the last of them is of second moments, which a basis was learned from.
    """
    if not is_positive(clip_norm):
        raise InvalidInputError(f"clip norm {clip_norm!r} is not usable.", mend="Use a finite number above 0.")
    epsilon = epsilon_of_run(event, delta)
    window = None if budget is None else budget.window
    sampled = event if isinstance(event, SampledGaussianEvent) else None
    return PrivacyStatement(
        unit=unit,
        adjacency=ADJACENCY[unit],
        mechanism=(_MECHANISM if sampled is None else _SAMPLED_MECHANISM) + (_WITH_MOMENT if moment else ""),
        epsilon=epsilon,
        delta=delta,
        rho=event.rho,
        noise_multiplier=event.noise_multiplier,
        clip_norm=clip_norm,
        steps=event.steps,
        accountant=_ACCOUNTANT if sampled is None else _SAMPLED_ACCOUNTANT,
        weak=epsilon > WEAK_EPSILON,
        local_epsilon=None if local_epsilon is None else check_epsilon(local_epsilon),
        budget_epsilon=None if budget is None else budget.epsilon,
        budget_days=None if window is None else window / timedelta(days=1),
        sample_rate=None if sampled is None else sampled.sample_rate,
        unsampled_steps=None if sampled is None else sampled.unsampled_steps,
    )


def plan_run(
    epsilon: float,
    delta: float,
    steps: int,
    *,
    units: int | None = None,
    allow_weak: bool = False,
    sample_rate: float = 1.0,
    unsampled_steps: int = 0,
) -> Event:
    """The event of a run that will cost exactly (epsilon, delta): decided before any data is read.

    `units`: how many are protected, where that is known; delta must be below 1 / units. Over WEAK_EPSILON only with
    `allow_weak`, and the statement then says so. With a `sample_rate` below 1 all but `unsampled_steps` of the `steps`
    read a Poisson sample.
    """
    check_epsilon(epsilon), check_delta(delta, units), check_sample_rate(sample_rate)
    if epsilon > WEAK_EPSILON and not allow_weak:
        raise InvalidInputError(
            f"epsilon {epsilon:g} protects almost nothing.",
            mend=f"Use at most {WEAK_EPSILON:g}, or set IDIOLECT_ALLOW_WEAK_PRIVACY=true; the manifest will say so.",
        )
    if sample_rate == 1.0:
        return GaussianEvent(noise_multiplier_for(epsilon, delta, steps), steps)
    return sampled_run_for(epsilon, delta, steps, sample_rate, unsampled_steps)
