"""What secure noise costs: the same trainings with it and with numpy's, by turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_services.bench.form import Measured

WITH_SECURE, DRAWS = "training_with_secure_noise", "noise_draws_per_second"
METRICS = (WITH_SECURE, DRAWS)
PEER = "numpy's noise"
ROUNDS = 7
DRAWN = (4096, 16)


class PlainNoise:
    """What training would draw if nobody attacked it. A generator for each thread, so that none waits for another."""

    any_order = True

    def __init__(self) -> None:
        self._own = threading.local()

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        if not hasattr(self._own, "generator"):
            self._own.generator = np.random.default_rng()
        drawn: NDArray[np.float64] = self._own.generator.standard_normal(shape)
        return drawn


def measure_noise(train: Callable[[NoiseSource], Any], people: int, rounds: int = ROUNDS) -> list[Measured]:
    """`train` trains `people` adapters with the noise it is given."""
    secure, plain = SecureNoise(), PlainNoise()
    trained = by_turns([lambda: train(secure), lambda: train(plain)], rounds)
    drawn = by_turns([lambda: secure.normal(DRAWN), lambda: plain.normal(DRAWN)], rounds)
    draws = DRAWN[0] * DRAWN[1]
    return [
        rates(WITH_SECURE, "adapters/s", people, trained[0], PEER, people, trained[1]),
        rates(DRAWS, "draws/s", draws, drawn[0], PEER, draws, drawn[1]),
    ]


def by_turns(tasks: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each task in each round; a round before them, which does not count, warms up."""
    seconds: list[list[float]] = [[] for _ in tasks]
    for task in tasks:
        task()
    for _ in range(rounds):
        for task, spent in zip(tasks, seconds, strict=True):
            started = time.perf_counter()
            task()
            spent.append(time.perf_counter() - started)
    return seconds


def rates(
    metric: str, unit: str, count: int, ours: Sequence[float], peer: str, peer_count: int, theirs: Sequence[float]
) -> Measured:
    """From the seconds of paired rounds: median rates with their spread, and the median of the rounds' ratios."""
    mine, its = [count / spent for spent in ours], [peer_count / spent for spent in theirs]
    ratio = median(a / b for a, b in zip(mine, its, strict=True))
    return Measured(metric, unit, median(mine), min(mine), max(mine), peer, median(its), ratio)
