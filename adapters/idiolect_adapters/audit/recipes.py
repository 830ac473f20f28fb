"""Public constants under which a released adapter shows the most."""

from __future__ import annotations

import numpy as np

from idiolect_adapters.audit.canary import CLIP_NORM
from idiolect_adapters.training.descent import Recipe

MANY_DIRECTIONS = 32  # the scale of noise shows in its norm the better, the more directions there are


def summing(steps: int, rank: int = 2) -> Recipe:
    """A prior of almost nothing and unit curvature: the adapter is the plain sum of all noisy sums.

    T equal Gaussian releases have that sum as their sufficient statistic, so no test of all T sees more.
    """
    return Recipe(CLIP_NORM, 1e-12, steps, np.eye(rank))


def alternating(rank: int = 2) -> Recipe:
    """Two steps, of which the second takes the first back: the adapter is the second noisy sum minus the first.

    With B1 = sum1 / (2 - 1), the second step is B1 + (sum2 - 2 B1) / (2 - 1).
    """
    return Recipe(CLIP_NORM, 2.0, 2, -np.eye(rank))
