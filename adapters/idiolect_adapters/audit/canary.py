"""What is audited, and with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from idiolect.registry.weights import dump_weights
from idiolect_adapters.runtime.bank import HEAD_B

FloatArray = NDArray[np.float64]
Train = TypeVar("Train")

CLIP_NORM = 0.7  # not 1: noise that forgot to scale with it would pass unseen


@dataclass(frozen=True, slots=True)
class Canary(Generic[Train]):
    """A pair of neighbouring data sets, and the attack on adapters that tells them apart if anything does.

    `scores(train, noise_multiplier, present, trials)` trains `trials` adapters with or without the canary and returns
    the attack's score of each [trials]; high means that the canary seems to be there.
    """

    name: str
    steps: int
    share: float  # of the trials: what shows only in a broken mechanism shows in few
    scores: Callable[[Train, float, bool, int], FloatArray]


def one_tensor(adapter_K: FloatArray) -> bytes:
    """The file of a released adapter."""
    return dump_weights({HEAD_B: adapter_K[None, :].astype(np.float32)})


@dataclass(frozen=True, slots=True)
class Mechanism(Generic[Train]):
    """`releases` maps steps to what the ledger is charged; `touched` names the inputs that a training changed.

    With a `sample_rate` below 1 the claim is that of Poisson samples in all but `releases(0)` of the releases.
    """

    name: str
    unit: str
    train: Train
    canaries: tuple[Canary[Train], ...]
    releases: Callable[[int], int]
    touched: Callable[[Train], list[str]]
    trials: int
    weights: Callable[[FloatArray], bytes] = one_tensor
    sample_rate: float = 1.0


def plain_sum(adapters_N_K: FloatArray) -> FloatArray:
    """Score by the entry along the canary's direction: with recipe `summing` the sufficient statistic of all steps."""
    return adapters_N_K[:, 0]


def norms(adapters_N_K: FloatArray) -> FloatArray:
    norms_N: FloatArray = np.linalg.norm(adapters_N_K, axis=1)
    return norms_N
