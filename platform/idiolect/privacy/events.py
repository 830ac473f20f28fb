"""What a private mechanism did, as a frozen value that can be stored and composed.

Every mechanism here is Gaussian: `steps` releases, each of a sum with L2 sensitivity `clip_norm` plus Gaussian noise
of standard deviation `noise_multiplier * clip_norm`. One release of everybody satisfies rho-zCDP with
rho = 1 / (2 * noise_multiplier^2) (Bun & Steinke 2016, Proposition 1.6); releases add. Some mechanisms read a secret
Poisson sample of the units in each release instead of all of them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from idiolect.errors import InvalidInputError

Unit = Literal["comparison", "subject"]
UNITS: tuple[Unit, ...] = ("comparison", "subject")

# Below this epsilon is over 10^11, and the cost in zCDP soon overflows.
MIN_NOISE_MULTIPLIER = 1e-6


def is_positive(value: object) -> bool:
    """A finite number above 0; no bool, string or NaN is one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


@dataclass(frozen=True, slots=True)
class GaussianEvent:
    """`steps` adaptive releases of the Gaussian mechanism with `noise_multiplier` (sigma / sensitivity)."""

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not is_positive(self.noise_multiplier) or self.noise_multiplier < MIN_NOISE_MULTIPLIER:
            raise InvalidInputError(
                f"noise multiplier {self.noise_multiplier!r} gives no privacy.",
                mend=f"Use a finite number from {MIN_NOISE_MULTIPLIER:g}.",
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InvalidInputError(f"steps {self.steps!r} is not usable.", mend="Use a whole number from 1.")

    @property
    def rho(self) -> float:
        """The cost in zCDP; it adds up exactly over runs."""
        return self.steps / (2.0 * self.noise_multiplier**2)

    @property
    def sample_rate(self) -> float:
        return 1.0

    @property
    def charged(self) -> GaussianEvent:
        return self


@dataclass(frozen=True, slots=True)
class SampledGaussianEvent:
    """As GaussianEvent, but all but `unsampled_steps` of the `steps` releases read a Poisson sample: each unit is in it
    with probability `sample_rate`, drawn anew, secret and independent of everything else.

    The ledger charges it as if every release had read everybody, which is sound: with x the unit that may be missing
    and S a sample of the others, a release is the mixture over S of (1 - q) N(f(S)) + q N(f(S + x)) in one world and of
    N(f(S)) in the other. Renyi divergence is jointly quasi-convex (van Erven & Harremoes 2014, Theorem 13), so in
    either direction it is at most the largest of one S and one component, which is that of the Gaussian mechanism.
    Nothing tighter is: at high Renyi orders sampling gains nothing, and zCDP bounds all orders at once.

    What that costs: sampling buys a smaller epsilon for the one run (by its privacy loss distribution), and none of
    the budget. A run planned for the same epsilon has less noise, so it spends *more* of the budget than a full batch.
    """

    noise_multiplier: float
    steps: int
    sample_rate: float
    unsampled_steps: int = 0

    def __post_init__(self) -> None:
        GaussianEvent(self.noise_multiplier, self.steps)  # checks both
        if check_sample_rate(self.sample_rate) == 1.0:
            raise InvalidInputError("a sample of everybody is no sample.", mend="Use GaussianEvent.")
        unsampled = self.unsampled_steps
        if isinstance(unsampled, bool) or not isinstance(unsampled, int) or not 0 <= unsampled < self.steps:
            raise InvalidInputError(
                f"{unsampled!r} of {self.steps} steps can't be the ones that read everybody.",
                mend="Leave at least one step that samples.",
            )

    @property
    def rho(self) -> float:
        """What the ledger charges; an upper bound."""
        return self.charged.rho

    @property
    def charged(self) -> GaussianEvent:
        return GaussianEvent(self.noise_multiplier, self.steps)


Event = GaussianEvent | SampledGaussianEvent


def check_sample_rate(rate: float) -> float:
    """A probability above 0; 1 is everybody, every time."""
    if not is_positive(rate) or rate > 1.0:
        raise InvalidInputError(f"sample rate {rate!r} is not usable.", mend="Use a number above 0, up to 1.")
    return float(rate)
