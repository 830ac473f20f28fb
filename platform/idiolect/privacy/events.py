"""What a private mechanism did, as a frozen value that can be stored and composed.

Every mechanism here is Gaussian and full batch: `steps` releases, each of a sum with L2 sensitivity `clip_norm`
plus Gaussian noise of standard deviation `noise_multiplier * clip_norm`. One release satisfies
rho-zCDP with rho = 1 / (2 * noise_multiplier^2) (Bun & Steinke 2016, Proposition 1.6); releases add.
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
