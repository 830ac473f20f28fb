"""The swap benchmark: new versions in a warm process, a million people, and loads beside warm traffic.

Everything runs in this process, against a registry that makes signed versions on demand: what is measured is the bank.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from idiolect_adapters.evaluation.peft_registration import peft_registration_seconds
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache, Pair
from idiolect_services.bench.form import Measured
from idiolect_services.bench.swap_registry import TENANT, PlainProjector, SyntheticRegistry, owner_of, pairs_of
from idiolect_services.training_runs import Stages

P50, P99, BYTES = "activate_p50", "activate_p99", "million_people_resident_bytes"
THROUGHPUT, BUSY_P99 = "million_people_throughput", "warm_p99_while_loading"
METRICS = (P50, P99, BYTES, THROUGHPUT, BUSY_P99)
PEER = "PEFT add_adapter"
DOCUMENTS = 10


@dataclass(frozen=True, slots=True)
class Work:
    resident: int = 10_000
    swaps: int = 1_000
    peft_resident: int = 256
    peft_swaps: int = 10
    people: int = 1_000_000
    few_people: int = 1_000
    requests: int = 20_000  # of one window
    rounds: int = 5
    cold: int = 10_000
    swaps_per_second: float = 100.0


class Traffic:
    """Warm rankings of ten cached candidates, as the scorer does them after the resolve."""

    def __init__(self, people: int, registry: SyntheticRegistry) -> None:
        self.registry = registry
        self.bank = AdapterBank(PlainProjector(), registry.load, registry.signer)  # type: ignore[arg-type]
        self._features = FeatureCache(PlainProjector(), max_bytes=1 << 20)  # type: ignore[arg-type]
        self._pairs: tuple[Pair, ...] = pairs_of(DOCUMENTS)
        self._features.project(TENANT, self._pairs)
        shares = np.cumsum(np.arange(1.0, people + 1.0) ** -1.1)
        self._shares = shares / shares[-1]
        self._rng = np.random.default_rng(0)

    def draw(self, count: int) -> list[int]:
        """Zipf with exponent 1.1 among the people there are."""
        drawn: list[int] = np.searchsorted(self._shares, self._rng.random(count)).tolist()
        return drawn

    def rank(self, person: int) -> None:
        features_NW = self._features.cached(TENANT, self._pairs)
        assert features_NW is not None
        user_K = self.bank.weights(owner_of(person), self.registry.resolve(person))
        score_N = features_NW[:, 0] + np.sum(features_NW[:, 1 : 1 + len(user_K)] * user_K, axis=1)
        sorted(range(DOCUMENTS), key=score_N.tolist().__getitem__, reverse=True)

    def rate(self, people: Sequence[int]) -> float:
        began = time.perf_counter()
        for person in people:
            self.rank(person)
        return len(people) / (time.perf_counter() - began)

    def latencies(self, people: Sequence[int]) -> list[float]:
        seconds = []
        for person in people:
            began = time.perf_counter()
            self.rank(person)
            seconds.append(time.perf_counter() - began)
        return seconds


def measure(work: Work, stages: Stages) -> list[Measured]:
    return [*_activations(work, stages), *_many_people(work, stages), _beside_loads(work, stages)]


def _activations(work: Work, stages: Stages) -> list[Measured]:
    progress = stages.stage("PEFT adapters")
    theirs = [1000.0 * one for one in peft_registration_seconds(work.peft_resident, work.peft_swaps, progress)]
    traffic = Traffic(work.resident, SyntheticRegistry())
    for person in range(work.resident):
        traffic.bank.install(owner_of(person), traffic.registry.stored(person))
    mine = sorted(1000.0 * _activation(traffic, person % work.resident) for person in range(work.swaps))
    traffic.bank.close()
    found = []
    for metric, share in ((P50, 0.50), (P99, 0.99)):
        value, peer = _quantile(mine, share), median(theirs)
        found.append(Measured(metric, "ms", value, mine[0], mine[-1], PEER, peer, peer / value))
    return found


def _activation(traffic: Traffic, person: int) -> float:
    """From the signed version to weights that a request was served with."""
    stored = traffic.registry.swap(person)
    began = time.perf_counter()
    wanted = traffic.bank.install(owner_of(person), stored)
    traffic.bank.weights(owner_of(person), wanted)
    return time.perf_counter() - began


def _many_people(work: Work, stages: Stages) -> list[Measured]:
    before = _resident_bytes()  # the bench's own table of people counts as well: 8 bytes each
    many = Traffic(work.people, SyntheticRegistry())
    _register(many, work.people, stages.stage("registering people, each verified"))
    grown = _resident_bytes() - before
    few = Traffic(work.few_people, SyntheticRegistry())
    _register(few, work.few_people, lambda _done, _total: None)
    progress = stages.stage("zipf traffic")
    rates = []
    for done in range(work.rounds):
        rates.append((many.rate(many.draw(work.requests)), few.rate(few.draw(work.requests))))
        progress(done + 1, work.rounds)
    many.bank.close()
    few.bank.close()
    ratios = [mine / theirs for mine, theirs in rates]
    mine, theirs = (median(pair[side] for pair in rates) for side in (0, 1))
    peer = f"{work.few_people:,} people"
    spread = (min(pair[0] for pair in rates), max(pair[0] for pair in rates))
    return [
        Measured(BYTES, "bytes", float(grown)),
        Measured(THROUGHPUT, "requests/s", mine, *spread, peer, theirs, median(ratios)),
    ]


def _beside_loads(work: Work, stages: Stages) -> Measured:
    progress = stages.stage("loads beside warm traffic")
    traffic = Traffic(work.few_people, SyntheticRegistry())
    traffic.rate(range(work.few_people))
    people = traffic.draw(work.requests)
    pairs = []
    for done in range(work.rounds):
        quiet = _p99(traffic, people)
        with _loading(traffic, work, first=work.few_people + done * work.cold):
            pairs.append((_p99(traffic, people), quiet))
        progress(done + 1, work.rounds)
    traffic.bank.close()
    busy = [pair[0] for pair in pairs]
    ratio = median(pair[0] / pair[1] for pair in pairs)
    quiet = median(pair[1] for pair in pairs)
    return Measured(BUSY_P99, "ms", median(busy), min(busy), max(busy), "the same without loads", quiet, ratio)


def _register(traffic: Traffic, people: int, progress: Callable[[int, int], None]) -> None:
    """All of them, as in a bank that has met everybody: with Zipf's tail that takes tens of millions of requests."""
    for person in range(people):
        traffic.bank.install(owner_of(person), traffic.registry.stored(person))
        if person % 1000 == 999 or person + 1 == people:
            progress(person + 1, people)


@contextmanager
def _loading(traffic: Traffic, work: Work, first: int) -> Iterator[None]:
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.wait(1.0 / work.swaps_per_second):
            person = number % work.few_people
            traffic.bank.install(owner_of(person), traffic.registry.swap(person))
            number += 1

    for person in range(first, first + work.cold):
        traffic.bank.prefetch(owner_of(person), traffic.registry.resolve(person))
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        yield
    finally:
        stop.set()
        swapper.join()
        while traffic.bank.stats().prefetches_waiting:
            time.sleep(0.01)


def _p99(traffic: Traffic, people: Sequence[int]) -> float:
    return 1000.0 * _quantile(sorted(traffic.latencies(people)), 0.99)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _resident_bytes() -> int:
    """Of this process, now. Where the system does not tell (macOS), the highest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
