"""The engine benchmark: what an adapter per row costs, beside the bare model and PEFT.

In every round each contender runs once, so that whatever else the machine does hits all of them; each round gives one
ratio for each comparison, and their median is reported. vLLM and infinity-emb need environments of their own (make
peers); where those are missing, so are their rows.

Use all cores. What PEFT loses it loses in Python, between the products: on one slow core it is hidden behind them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType

from idiolect.errors import ConfigurationError
from idiolect_adapters.evaluation.engine_cases import Case, Comparison, Registration, Sizes, engine_cases
from idiolect_adapters.evaluation.peer_cases import PeerCase, decoder_case, encoder_case, threads
from idiolect_services.bench import peer_infinity, peer_vllm
from idiolect_services.bench.form import Measured, Missing
from idiolect_services.bench.peer_process import PeerProcess
from idiolect_services.bench.peers import peer_python
from idiolect_services.training_runs import Stages

ROUNDS = 7
REGISTRATION = "register_adapters"
UNIT = "rows/s"

Seconds = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Peer:
    """`make(backbone, folder, sizes)` writes what the peer reads into the folder."""

    metric: str
    name: str
    script: ModuleType
    make: Callable[[Path, Path, Sizes], PeerCase]


PEERS = (
    Peer("lengths_infinity", "infinity", peer_infinity, encoder_case),
    Peer("decoder_vllm", "vllm", peer_vllm, lambda _backbone, folder, sizes: decoder_case(folder, sizes)),
)
CPU_METRICS = ("lengths_int8", *(peer.metric for peer in PEERS))


def metrics(sizes: Sizes | None = None) -> list[str]:
    mixed = [f"mixed_{rows}x{tokens}" for rows, tokens in (sizes or Sizes()).batches]
    named = [f"{name}_{kind}" for name in mixed for kind in ("stacked", "one_adapter")]
    return [
        *named,
        REGISTRATION,
        "people_head",
        "people_core",
        "lengths_bare",
        "lengths_bfloat16",
        "lengths_int8",
        "decoder_stacked",
        "decoder_one_adapter",
        *(peer.metric for peer in PEERS),
    ]


def measure(
    folder: Path, sizes: Sizes, rounds: int, stages: Stages, device: str = "cpu"
) -> Iterator[Measured | Missing]:
    """`folder`: the backbone's. Rows per second, and how many times as many as the peer's."""
    for case, registration in engine_cases(folder, sizes, stages.stage("engine"), device):
        yield from rates(case, interleaved(case.contenders, rounds))
        if registration is not None:
            yield registered(registration)
    if device != "cpu":
        yield from (Missing(metric, "It is measured on CPUs only.") for metric in CPU_METRICS)
        return
    progress = stages.stage("peers of their own environment")
    for done, peer in enumerate(PEERS):
        yield from against_peer(peer, folder, sizes, rounds)
        progress(done + 1, len(PEERS))


def against_peer(peer: Peer, backbone: Path, sizes: Sizes, rounds: int) -> Iterator[Measured | Missing]:
    """Raises IdiolectError if the two do not agree."""
    with tempfile.TemporaryDirectory(prefix="idio-bench-") as folder:
        try:
            python = peer_python(peer.name)
            case = peer.make(backbone, Path(folder), sizes)
            with PeerProcess(python, peer.script, Path(folder), threads()) as theirs:
                case.check_agrees(theirs(), peer.name)
                seconds = interleaved({"ours": case.ours, peer.name: theirs}, rounds)
        except ConfigurationError as error:
            yield Missing(peer.metric, f"{error.message} {error.mend}")
            return
    compared = (Comparison(peer.metric, "ours", peer.name),)
    yield from rates(Case(peer.name, case.rows, {}, compared), seconds)


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Wall seconds per contender and round, after one run each that does not count."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            took = time.perf_counter() - started
            seconds[name].append(run.seconds if isinstance(run, PeerProcess) else took)
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
