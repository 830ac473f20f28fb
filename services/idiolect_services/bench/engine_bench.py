"""The engine benchmark: what an adapter per row costs, beside the bare model and PEFT.

In every round each contender runs once, so that whatever else the machine does hits all of them; each round gives one
ratio for each comparison, and their median is reported. vllm is no peer here: it needs an environment of its own.

Use all cores. What PEFT loses it loses in Python, between the products: on one slow core it is hidden behind them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from idiolect_adapters.evaluation.engine_cases import Case, Registration, Sizes, engine_cases
from idiolect_services.bench.form import Measured
from idiolect_services.training_runs import Stages

ROUNDS = 7
REGISTRATION = "register_adapters"
UNIT = "rows/s"

Seconds = Mapping[str, Sequence[float]]


def metrics(sizes: Sizes | None = None) -> list[str]:
    mixed = [f"mixed_{rows}x{tokens}" for rows, tokens in (sizes or Sizes()).batches]
    named = [f"{name}_{kind}" for name in mixed for kind in ("stacked", "one_adapter")]
    return [
        *named,
        REGISTRATION,
        "people_head",
        "people_core",
        "lengths_bare",
        "decoder_stacked",
        "decoder_one_adapter",
    ]


def measure(folder: Path, sizes: Sizes, rounds: int, stages: Stages) -> Iterator[Measured]:
    """`folder`: the backbone's. Rows per second, and how many times as many as the peer's."""
    for case, registration in engine_cases(folder, sizes, stages.stage("engine")):
        yield from rates(case, interleaved(case.contenders, rounds))
        if registration is not None:
            yield registered(registration)


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Wall seconds per contender and round, after one run each that does not count."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def rates(case: Case, seconds: Seconds) -> Iterator[Measured]:
    """The spread is that of the rate."""
    for compared in case.compared:
        ours, theirs = seconds[compared.ours], seconds[compared.peer]
        ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
        low, middle, high = (case.rows / of(ours) for of in (max, median, min))
        peer = case.rows / median(theirs)
        yield Measured(compared.metric, UNIT, middle, low, high, compared.peer, peer, ratio)


def registered(registration: Registration) -> Measured:
    """Once only: PEFT takes minutes."""
    ours, peft = (registration.adapters / seconds for seconds in (registration.ours, registration.peft))
    return Measured(REGISTRATION, "adapters/s", ours, peer="PEFT add_adapter", peer_value=peft)
