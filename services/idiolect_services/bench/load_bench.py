"""The load benchmark: one real server under a mix of calls, for long at most of what it can do, then at far more.

First the capacity: as many good answers a second as a few callers get who never wait. Then a long run at a part of it,
an overload at a multiple of it, and a quiet run after it, which shows when all is well again. The calls come from
locust, in an environment of its own (`make peers`).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from idiolect.errors import UnavailableError
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.evaluation.random_model import random_model
from idiolect_services.bench.form import Measured
from idiolect_services.bench.http_bench import START_SECONDS, server_process
from idiolect_services.bench.http_home import home_settings
from idiolect_services.bench.peers import peer_python
from idiolect_services.bench.reset_bench import wait_until_ready
from idiolect_services.bench.reset_home import DOMAIN, People
from idiolect_services.training_runs import Stages
from idiolect_services.wiring import open_installation

CAPACITY, STEADY_RATE = "capacity", "steady_rate"
STEADY_5XX, STEADY_REFUSED, STEADY_P50, STEADY_P99 = "steady_5xx", "steady_429", "steady_p50", "steady_p99"
STEADY_UNCONFIRMED, OVERLOAD_UNCONFIRMED = "steady_unconfirmed", "overload_unconfirmed"
MEMORY, MEMORY_GROWTH = "steady_memory", "steady_memory_growth"
OFFERED, GOODPUT, REFUSED = "overload_offered", "overload_goodput", "overload_refused"
UNCLEAR, OVERLOAD_P99, RECOVERY = "overload_unclear", "overload_p99", "recovery"
METRICS = (
    CAPACITY,
    STEADY_RATE,
    STEADY_5XX,
    STEADY_REFUSED,
    STEADY_P50,
    STEADY_P99,
    STEADY_UNCONFIRMED,
    MEMORY,
    MEMORY_GROWTH,
    OFFERED,
    GOODPUT,
    REFUSED,
    UNCLEAR,
    OVERLOAD_P99,
    OVERLOAD_UNCONFIRMED,
    RECOVERY,
)
REFUSALS = (429, 503)
SAMPLE_SECONDS = 2.0
WARM_UP_SECONDS = 10.0  # what comes first is never as fast, and on a busy machine not there at once
PEER = "the capacity"
# So small that it is full long before the steady run is over: what grows after that is no cache.
CACHE_BYTES = 2 << 20
# Fewer than there are callers in the overload, so that some are refused whatever they ask for.
MOST_REQUESTS = 200


@dataclass(frozen=True, slots=True)
class Work:
    """Rates are shares of the capacity; `callers` have one request under way each."""

    people: int = 50
    capacity_s: float = 60.0
    capacity_callers: int = 32
    steady_s: float = 600.0
    steady_share: float = 0.7
    steady_callers: int = 64
    overload_s: float = 60.0
    overload_share: float = 3.0
    overload_callers: int = 400
    after_s: float = 30.0
    after_share: float = 0.3

    @staticmethod
    def of(seconds: float) -> Work:
        """With a long run of so many seconds; the others shrink with it."""
        short = max(5.0, seconds / 10)
        return Work(steady_s=seconds, capacity_s=short, overload_s=short, after_s=short)


@dataclass(frozen=True, slots=True)
class Answer:
    """`second` since its run began; `status` 0: none came; `clear`: it has a Retry-After."""

    second: int
    kind: str
    status: int
    milliseconds: float
    clear: bool
    said: str = ""  # of personalization, if anything

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def unclear(self) -> bool:
        """Neither what was asked for, nor a refusal that says when to come again."""
        return not self.good and not (self.status in REFUSALS and self.clear)


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    answers: Sequence[Answer]

    def rate(self, *, good: bool = False) -> float:
        return sum(answer.good or not good for answer in self.answers) / self.seconds

    def count(self, lowest: int, highest: int) -> int:
        return sum(lowest <= answer.status <= highest for answer in self.answers)

    def quantile(self, share: float) -> float:
        """Milliseconds, of good answers."""
        took = [answer.milliseconds for answer in self.answers if answer.good]
        return float(np.quantile(took, share)) if took else float("nan")

    def unconfirmed(self) -> float:
        """Share of the rankings that name nobody, because their person could not be confirmed in time."""
        said = [answer.said for answer in self.answers if answer.good and answer.said]
        return said.count("unconfirmed") / max(1, len(said))

    def recovery(self) -> float:
        """Seconds until the first second from which on every answer is good."""
        return 1.0 + max((answer.second for answer in self.answers if not answer.good), default=-1)


def measure(root: Path, backbone: Path, work: Work, stages: Stages) -> list[Measured]:
    """Raises ConfigurationError without locust, UnavailableError if the server or the load fails."""
    locust = peer_python("locust")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-load-", dir=root) as folder:
        home = Path(folder) / "home"
        with open_installation(home_settings(home)) as installation:
            model = random_model(installation.models, backbone=Backbone.load(backbone))
            people = People(installation, work.people, model)
            secret = people.settle()
        bounds = {"IDIOLECT_FEATURE_CACHE_BYTES": str(CACHE_BYTES), "IDIOLECT_MAX_REQUESTS": str(MOST_REQUESTS)}
        with server_process("ours", str(home), bounds) as (port, pid):
            wait_until_ready(port)
            load = _Load(locust, port, secret, people.users)
            return _phases(load, pid, work, stages)


def _phases(load: _Load, pid: int, work: Work, stages: Stages) -> list[Measured]:
    progress = stages.stage("load")
    load.run(work.capacity_callers, None, max(WARM_UP_SECONDS, work.capacity_s / 4))
    capacity = load.run(work.capacity_callers, None, work.capacity_s)
    progress(1, 4)
    at = capacity.rate(good=True)
    with watched_memory(pid) as memory:
        steady = load.run(work.steady_callers, work.steady_share * at, work.steady_s)
    progress(2, 4)
    overload = load.run(work.overload_callers, work.overload_share * at, work.overload_s)
    progress(3, 4)
    after = load.run(work.steady_callers, work.after_share * at, work.after_s)
    progress(4, 4)
    return summary(capacity, steady, memory, overload, after)


def summary(capacity: Run, steady: Run, memory: Sequence[float], overload: Run, after: Run) -> list[Measured]:
    """`memory` are bytes that the server held, at even times of the steady run."""
    at, goodput = capacity.rate(good=True), overload.rate(good=True)
    third = max(1, len(memory) // 3)
    before, last = median(memory[third : 2 * third] or memory), median(memory[-third:])
    refused = sum(answer.status in REFUSALS for answer in overload.answers)
    return [
        Measured(CAPACITY, "requests/s", at),
        Measured(STEADY_RATE, "requests/s", steady.rate()),
        Measured(STEADY_5XX, "answers", steady.count(500, 599) + steady.count(0, 0)),
        Measured(STEADY_REFUSED, "answers", steady.count(429, 429)),
        Measured(STEADY_P50, "ms", steady.quantile(0.5)),
        Measured(STEADY_P99, "ms", steady.quantile(0.99)),
        Measured(STEADY_UNCONFIRMED, "share", steady.unconfirmed()),
        Measured(MEMORY, "MB", last / 1e6, min(memory) / 1e6, max(memory) / 1e6),
        Measured(MEMORY_GROWTH, "x", last / before),
        Measured(OFFERED, "requests/s", overload.rate()),
        Measured(GOODPUT, "requests/s", goodput, peer=PEER, peer_value=at),
        Measured(REFUSED, "share", refused / max(1, len(overload.answers))),
        Measured(UNCLEAR, "answers", sum(answer.unclear for answer in overload.answers)),
        Measured(OVERLOAD_P99, "ms", overload.quantile(0.99)),
        Measured(OVERLOAD_UNCONFIRMED, "share", overload.unconfirmed()),
        Measured(RECOVERY, "s", after.recovery()),
    ]


def answers_of(outcome: Sequence[Sequence[Any]]) -> list[Answer]:
    return [Answer(*row) for row in outcome]


@contextmanager
def watched_memory(pid: int) -> Iterator[list[float]]:
    """Resident bytes of the process, added to the list as time passes."""
    samples: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while True:
            samples.append(_resident(pid))
            if done.wait(SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1]) * 1024
    raise UnavailableError("the benchmark's server is gone.", mend="See its output above.")


@dataclass(frozen=True, slots=True)
class _Load:
    locust: Path
    port: int
    secret: str
    users: Sequence[str]

    def run(self, callers: int, rate: float | None, seconds: float) -> Run:
        plan = {
            "port": self.port,
            "secret": self.secret,
            "domain": DOMAIN,
            "users": list(self.users),
            "callers": callers,
            "rate": rate,
            "seconds": seconds,
        }
        script = Path(__file__).with_name("peer_locust.py")
        done = subprocess.run(  # noqa: S603
            [self.locust, str(script)],
            input=json.dumps(plan).encode(),
            stdout=subprocess.PIPE,
            timeout=seconds + 2 * START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise UnavailableError("locust failed.", mend="See its output above.")
        found = answers_of(json.loads(done.stdout))
        if not any(answer.good for answer in found):
            raise UnavailableError("the server gave no good answer under load.", mend="See its output above.")
        return Run(seconds, found)
