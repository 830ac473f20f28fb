"""The load benchmark: one real server under a mix of calls, for long at most of what it can do, then at far more.

First the capacity: as many good answers a second as a few callers get who never wait. Then a long run at a part of it,
and an overload at a multiple of it that passes into a quiet time, which shows when all is well again. There calls come
when they are due, like those of people who know nothing of each other, however long the others take. They come from
locust, in an environment of its own (`make peers`).

In an overload more of the cheap calls are answered than of those that need the model, so the sum of all good answers
says little by itself: each kind is also set against as many of it as there were at capacity.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

KINDS = ("rerank_known", "rerank_new", "feedback", "consent", "score", "reset")  # of calls, as peer_locust names them
CAPACITY, STEADY_RATE = "capacity", "steady_rate"
STEADY_5XX, STEADY_REFUSED, STEADY_P50, STEADY_P99 = "steady_5xx", "steady_429", "steady_p50", "steady_p99"
STEADY_UNCONFIRMED, OVERLOAD_UNCONFIRMED = "steady_unconfirmed", "overload_unconfirmed"
MEMORY, MEMORY_GROWTH, OVERLOAD_MEMORY = "steady_memory", "steady_memory_growth", "overload_memory"
OFFERED, LATE, GOODPUT, REFUSED = "overload_offered", "overload_late_p99", "overload_goodput", "overload_refused"
GOODPUT_OF = {kind: f"{GOODPUT}_{kind}" for kind in KINDS}
UNCLEAR, OVERLOAD_P99, RECOVERY, WRONG = "overload_unclear", "overload_p99", "recovery", "wrong_answers"
SERVER_CORES, LOAD_CORES = "overload_server_cores", "overload_load_cores"
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
    LATE,
    LOAD_CORES,
    SERVER_CORES,
    GOODPUT,
    *GOODPUT_OF.values(),
    REFUSED,
    UNCLEAR,
    OVERLOAD_P99,
    OVERLOAD_UNCONFIRMED,
    OVERLOAD_MEMORY,
    RECOVERY,
    WRONG,
)
REFUSALS = (429, 503)
SAMPLE_SECONDS = 2.0
WARM_UP_SECONDS = 10.0  # what comes first is never as fast, and on a busy machine not there at once
PEER = "the capacity"
# So small that it is full long before the steady run is over: what grows after that is no cache.
CACHE_BYTES = 2 << 20
# A fifth of the default. Fewer than there are callers in the overload, so that some are refused whatever they ask for,
# and more than in the steady run: there a pause of the machine makes calls late, which counts in their time.
MOST_REQUESTS = 200
WAIT_SECONDS = 60.0  # for the last answers


@dataclass(frozen=True, slots=True)
class Work:
    """Rates are shares of the capacity; `callers` have one request under way each. Where there is a rate, they are so
    many that somebody is free whenever a call is due."""

    people: int = 50
    capacity_s: float = 60.0
    capacity_callers: int = 32
    steady_s: float = 600.0
    steady_share: float = 0.7
    steady_callers: int = 150
    overload_s: float = 60.0
    overload_share: float = 3.0
    overload_callers: int = 1000
    after_s: float = 30.0
    after_share: float = 0.3

    @staticmethod
    def of(seconds: float) -> Work:
        """With a long run of so many seconds; the others shrink with it."""
        short = max(5.0, seconds / 10)
        return Work(steady_s=seconds, capacity_s=short, overload_s=short, after_s=short)


@dataclass(frozen=True, slots=True)
class Answer:
    """The times are seconds since its run began. `status` 0: none came; `clear`: a refusal has a Retry-After; `right`:
    what came is an answer to what was asked."""

    due: float
    sent: float
    came: float
    kind: str
    status: int
    clear: bool
    right: bool = True
    said: str = ""  # of personalization, if anything

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300 and self.right

    @property
    def unclear(self) -> bool:
        """Neither what was asked for, nor a refusal that says when to come again."""
        return not self.good and not (self.status in REFUSALS and self.clear)

    @property
    def milliseconds(self) -> float:
        """Since it was due: a load that is late must flatter nobody."""
        return (self.came - self.due) * 1000.0


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked within so many seconds, whenever it was answered."""

    seconds: float
    answers: Sequence[Answer]
    load_cores: float = 0.0  # processor time for each second, of the load
    server_cores: float = 0.0

    def offered(self) -> float:
        """Calls a second. One that nobody was free to make before the end was not offered."""
        return sum(one.sent < self.seconds for one in self.answers) / self.seconds

    def goodput(self, kind: str | None = None) -> float:
        """Good answers a second that came within the time. None: of all kinds."""
        came = [one for one in self.answers if one.good and one.came <= self.seconds and kind in (None, one.kind)]
        return len(came) / self.seconds

    def count(self, lowest: int, highest: int) -> int:
        return sum(lowest <= answer.status <= highest for answer in self.answers)

    def wrong(self) -> int:
        return sum(not answer.right for answer in self.answers)

    def quantile(self, share: float) -> float:
        """Milliseconds, of good answers."""
        return _quantile([answer.milliseconds for answer in self.answers if answer.good], share)

    def late(self, share: float) -> float:
        """Milliseconds by which calls were made later than they were due."""
        return _quantile([(answer.sent - answer.due) * 1000.0 for answer in self.answers], share)

    def unconfirmed(self) -> float:
        """Share of the rankings that name nobody, because their person could not be confirmed in time."""
        said = [answer.said for answer in self.answers if answer.good and answer.said]
        return said.count("unconfirmed") / max(1, len(said))

    def bad_until(self) -> float:
        """Seconds until the last answer that was not good, since the run began; also if it came after its end."""
        return max((answer.came for answer in self.answers if not answer.good), default=0.0)


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


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
            load = _Load(locust, port, pid, secret, people.users)
            return _phases(load, pid, work, stages)


def _phases(load: _Load, pid: int, work: Work, stages: Stages) -> list[Measured]:
    progress = stages.stage("load")
    load.run(work.capacity_callers, (None, max(WARM_UP_SECONDS, work.capacity_s / 4)))
    (capacity,) = load.run(work.capacity_callers, (None, work.capacity_s))
    progress(1, 3)
    at = capacity.goodput()
    with watched_memory(pid) as memory:
        (steady,) = load.run(work.steady_callers, (work.steady_share * at, work.steady_s))
    progress(2, 3)
    much, little = (work.overload_share * at, work.overload_s), (work.after_share * at, work.after_s)
    with watched_memory(pid) as most:
        overload, after = load.run(work.overload_callers, much, little)
    progress(3, 3)
    return summary(capacity, steady, memory, overload, most, after)


def summary(
    capacity: Run, steady: Run, memory: Sequence[float], overload: Run, most: Sequence[float], after: Run
) -> list[Measured]:
    """`memory` and `most` are bytes that the server held, at even times of the steady run and of the overload."""
    at = capacity.goodput()
    third = max(1, len(memory) // 3)
    before, last = median(memory[third : 2 * third] or memory), median(memory[-third:])
    refused = sum(answer.status in REFUSALS for answer in overload.answers)
    bad_until = max(overload.bad_until() - overload.seconds, after.bad_until())
    return [
        Measured(CAPACITY, "requests/s", at),
        Measured(STEADY_RATE, "requests/s", steady.offered()),
        Measured(STEADY_5XX, "answers", steady.count(500, 599) + steady.count(0, 0)),
        Measured(STEADY_REFUSED, "answers", steady.count(429, 429)),
        Measured(STEADY_P50, "ms", steady.quantile(0.5)),
        Measured(STEADY_P99, "ms", steady.quantile(0.99)),
        Measured(STEADY_UNCONFIRMED, "share", steady.unconfirmed()),
        Measured(MEMORY, "MB", last / 1e6, min(memory) / 1e6, max(memory) / 1e6),
        Measured(MEMORY_GROWTH, "x", last / before),
        Measured(OFFERED, "requests/s", overload.offered(), peer=PEER, peer_value=at),
        Measured(LATE, "ms", overload.late(0.99)),
        Measured(LOAD_CORES, "cores", overload.load_cores),
        Measured(SERVER_CORES, "cores", overload.server_cores, peer=PEER, peer_value=capacity.server_cores),
        Measured(GOODPUT, "requests/s", overload.goodput(), peer=PEER, peer_value=at),
        *(
            Measured(metric, "requests/s", overload.goodput(kind), peer=PEER, peer_value=capacity.goodput(kind))
            for kind, metric in GOODPUT_OF.items()
        ),
        Measured(REFUSED, "share", refused / max(1, len(overload.answers))),
        Measured(UNCLEAR, "answers", sum(answer.unclear for answer in overload.answers)),
        Measured(OVERLOAD_P99, "ms", overload.quantile(0.99)),
        Measured(OVERLOAD_UNCONFIRMED, "share", overload.unconfirmed()),
        Measured(OVERLOAD_MEMORY, "MB", max(most) / 1e6, peer="the steady run", peer_value=last / 1e6),
        Measured(RECOVERY, "s", max(0.0, bad_until)),
        Measured(WRONG, "answers", sum(run.wrong() for run in (capacity, steady, overload, after))),
    ]


def runs_of(outcome: dict[str, Any], seconds: Sequence[float]) -> list[Run]:
    """What the load wrote, by phases of so many seconds. A call is of that in which it was made, or of the last one."""
    answers = [Answer(*row) for row in outcome["calls"]]
    runs, begins, whole = [], 0.0, sum(seconds)
    for phase_s, (load_cores, server_cores) in zip(seconds, outcome["cores"], strict=True):
        ends = begins + phase_s
        mine = [one for one in answers if begins <= one.sent < ends or (ends >= whole and one.sent >= ends)]
        moved = [replace(one, due=one.due - begins, sent=one.sent - begins, came=one.came - begins) for one in mine]
        runs.append(Run(phase_s, moved, load_cores, server_cores))
        begins = ends
    return runs


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
    server: int
    secret: str
    users: Sequence[str]

    def run(self, callers: int, *phases: tuple[float | None, float]) -> list[Run]:
        """A run for each of the phases (calls a second, seconds), which follow each other at once."""
        plan = {
            "port": self.port,
            "server": self.server,
            "secret": self.secret,
            "domain": DOMAIN,
            "users": list(self.users),
            "callers": callers,
            "phases": phases,
        }
        seconds = [phase_s for _, phase_s in phases]
        script = Path(__file__).with_name("peer_locust.py")
        done = subprocess.run(  # noqa: S603
            [self.locust, str(script)],
            input=json.dumps(plan).encode(),
            stdout=subprocess.PIPE,
            timeout=sum(seconds) + WAIT_SECONDS + 2 * START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise UnavailableError("locust failed.", mend="See its output above.")
        runs = runs_of(json.loads(done.stdout), seconds)
        if not all(run.goodput() for run in runs):
            raise UnavailableError("the server gave no good answer under load.", mend="See its output above.")
        return runs
