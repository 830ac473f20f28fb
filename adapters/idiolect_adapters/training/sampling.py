"""Poisson sampling of subjects, as a part of the mechanism: the trainings draw their batches here, and take none.

Amplification by sampling holds only if each unit is in each batch independently with the stated probability, and if
nobody learns the batch. So draws come from the operating system's CSPRNG, one per unit and step, and no batch, seed or
generator can be handed in from outside. Shuffled or fixed-size batches are another mechanism with another account.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from idiolect.privacy.events import check_sample_rate

_BITS = 64


def poisson_sample(units: int, sample_rate: float) -> NDArray[np.bool_]:
    """[units]: who is in this step's batch. Each is with probability `sample_rate`, rounded down to 64 bits.

    Nobody may be in it: the step then releases noise alone, as it must.
    """
    if check_sample_rate(sample_rate) == 1.0:
        return np.ones(units, dtype=np.bool_)
    drawn = np.frombuffer(os.urandom(units * _BITS // 8), dtype=np.uint64)
    sampled: NDArray[np.bool_] = drawn < np.uint64(int(sample_rate * 2**_BITS))
    return sampled
