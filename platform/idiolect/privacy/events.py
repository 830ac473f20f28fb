"""What a private mechanism did, as a frozen value that can be stored and composed.

Every mechanism here is Gaussian and full batch: `steps` releases, each of a sum with L2 sensitivity `clip_norm`
plus Gaussian noise of standard deviation `noise_multiplier * clip_norm`. One release satisfies
rho-zCDP with rho = 1 / (2 * noise_multiplier^2) (Bun & Steinke 2016, Proposition 1.6); releases add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from idiolect.errors import InvalidInputError

Unit = Literal["comparison", "subject"]


@dataclass(frozen=True, slots=True)
class GaussianEvent:
    """`steps` adaptive releases of the Gaussian mechanism with `noise_multiplier` (sigma / sensitivity)."""

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise InvalidInputError(
                f"noise multiplier {self.noise_multiplier!r} gives no privacy.",
                mend="Use a finite number above 0.",
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InvalidInputError(f"steps {self.steps!r} is not usable.", mend="Use a whole number from 1.")

    @property
    def rho(self) -> float:
        """The cost in zCDP; it adds up exactly over runs."""
        return self.steps / (2.0 * self.noise_multiplier**2)
