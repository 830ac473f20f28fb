"""The reset benchmark: several real servers over Postgres and Redis, load, resets, and everything that can go wrong.

Three runs: a calm one, which says how long a reset takes; one in which servers are paused, killed and started again,
connections to Postgres are cut, and Redis is flushed, paused and killed; and one of servers that are wrong on purpose,
which the checker must notice.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

from idiolect.errors import UnavailableError
from idiolect.ids import new_id
from idiolect.stores.ports import Progress
from idiolect_services.bench.form import Measured
from idiolect_services.bench.reset_checker import violations
from idiolect_services.bench.reset_client import Clients, Journal
from idiolect_services.bench.reset_faults import Faults
from idiolect_services.bench.reset_fleet import START_SECONDS, Fleet, stores
from idiolect_services.bench.reset_home import People, replica_settings
from idiolect_services.training_runs import Stages
from idiolect_services.wiring import open_installation

P50, P99 = "reset_to_no_longer_served_p50", "reset_to_no_longer_served_p99"
FAULTY_P50, FAULTY_P99 = "reset_under_faults_p50", "reset_under_faults_p99"
RESETS, ANSWERS, FAULTS = "resets", "responses_checked", "faults"
UNCONFIRMED, FAULTY_UNCONFIRMED = "unconfirmed", "unconfirmed_under_faults"
RATE, FAULTY_RATE = "rankings", "rankings_under_faults"
VIOLATIONS, PLANTED = "violations", "planted_violation_caught"
METRICS = (
    P50,
    P99,
    FAULTY_P50,
    FAULTY_P99,
    RATE,
    FAULTY_RATE,
    UNCONFIRMED,
    FAULTY_UNCONFIRMED,
    RESETS,
    ANSWERS,
    FAULTS,
    VIOLATIONS,
    PLANTED,
)


@dataclass(frozen=True, slots=True)
class Work:
    """`resets` are those under faults; `calm` and `planted` those of the other two runs. Rates are per second."""

    replicas: int = 4
    people: int = 48
    resets: int = 10_000
    calm: int = 1_000
    planted: int = 30
    rate: float = 200.0
    resets_rate: float = 16.0  # with 10,000 of them the whole takes twelve minutes
    connections: int = 8  # to each server
    fault_spacing: float = 1.0  # seconds
    warm_up: float = 10.0  # seconds of rankings before the first reset that is timed: servers read every text once
    seed: int = 0

    @staticmethod
    def of(resets: int) -> Work:
        """As large as asked for; the other runs shrink with it."""
        return Work(resets=resets, calm=max(50, resets // 10))


@dataclass(frozen=True, slots=True)
class Run:
    journal: Journal
    faults: Counter[str]
    seconds: float

    @property
    def rate(self) -> float:
        return self.journal.answers / self.seconds

    @property
    def unconfirmed(self) -> float:
        """Share of the rankings that name nobody, because their person could not be confirmed in time."""
        return self.journal.reasons["unconfirmed"] / max(1, self.journal.answers)

    @property
    def violations(self) -> int:
        return len(violations(self.journal.events))


def measure(root: Path, work: Work, stages: Stages) -> list[Measured]:
    """Raises UnavailableError if the servers do not come up, ConfigurationError without a Postgres or Redis."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-reset-", dir=root) as folder, ExitStack() as running:
        postgres, database_url, redis = running.enter_context(stores())
        home = Path(folder) / "home"
        installation = running.enter_context(open_installation(replica_settings(home, database_url, redis.url)))
        people = People(installation, work.people)
        secret = people.settle()
        with _fleet(Fleet(home, postgres, database_url, redis, work.replicas), "right") as fleet:
            bench = _Bench(fleet, people, secret, work)
            calm = asyncio.run(bench.run(work.calm, None, stages.stage("resets in calm")))
            faulty = asyncio.run(bench.run(work.resets, work.fault_spacing, stages.stage("resets under faults")))
        with _fleet(Fleet(home, postgres, database_url, redis, 2), "planted") as fleet:
            bench = _Bench(fleet, people, secret, work)
            planted = asyncio.run(bench.run(work.planted, None, stages.stage("resets on servers that are wrong")))
        return summary(calm, faulty, planted)


def summary(calm: Run, faulty: Run, planted: Run) -> list[Measured]:
    quiet, loud = (np.percentile(run.journal.acknowledged, (50, 99)) for run in (calm, faulty))
    resets = len(calm.journal.acknowledged) + len(faulty.journal.acknowledged)
    return [
        Measured(P50, "ms", float(quiet[0])),
        Measured(P99, "ms", float(quiet[1])),
        Measured(FAULTY_P50, "ms", float(loud[0])),
        Measured(FAULTY_P99, "ms", float(loud[1])),
        Measured(RATE, "answers/s", calm.rate),
        Measured(FAULTY_RATE, "answers/s", faulty.rate),
        Measured(UNCONFIRMED, "share", calm.unconfirmed),
        Measured(FAULTY_UNCONFIRMED, "share", faulty.unconfirmed),
        Measured(RESETS, "resets", resets),
        Measured(ANSWERS, "responses", calm.journal.answers + faulty.journal.answers),
        Measured(FAULTS, "faults", faulty.faults.total()),
        Measured(VIOLATIONS, "responses", calm.violations + faulty.violations),
        Measured(PLANTED, "yes or no", float(planted.violations > 0)),
    ]


@contextmanager
def _fleet(fleet: Fleet, kind: str) -> Iterator[Fleet]:
    try:
        for index, port in enumerate(fleet.ports):
            fleet.start(index, kind)
            wait_until_ready(port)
        yield fleet
    finally:
        fleet.stop()


def wait_until_ready(port: int) -> None:
    """The socket listens already: the kernel holds the connection until the server takes it."""
    try:
        urlopen(f"http://127.0.0.1:{port}/readyz", timeout=START_SECONDS).close()
    except (URLError, OSError) as error:
        raise UnavailableError(f"a server of the benchmark is not ready: {error}.", mend="See its output.") from error


class _Bench:
    """One fleet and one crowd. Each run has its own clients and journal; people go on where they were."""

    def __init__(self, fleet: Fleet, people: People, secret: str, work: Work) -> None:
        self._fleet = fleet
        self._people = people
        self._secret = secret
        self._work = work

    async def run(self, resets: int, fault_spacing: float | None, progress: Progress) -> Run:
        work, stop = self._work, asyncio.Event()
        clients = Clients(self._fleet.ports, work.connections, self._secret, self._people.users, work.seed)
        faults = Faults(self._fleet, work.seed, fault_spacing or 0.0)
        tasks = [asyncio.create_task(clients.connect(stop))]
        try:
            idle = await self._begin(clients)
            began = time.monotonic()
            tasks.append(asyncio.create_task(clients.rank(work.rate, stop)))
            await asyncio.sleep(work.warm_up / 2)
            await asyncio.to_thread(self._fleet.learn_sizes)
            await asyncio.sleep(work.warm_up / 2)
            if fault_spacing is not None:
                tasks.append(asyncio.create_task(faults.strike(stop)))
            await self._reset_all(clients, resets, idle, progress)
            seconds = time.monotonic() - began
        finally:
            stop.set()
            await asyncio.gather(*tasks)
        return Run(clients.journal, faults.done, seconds)

    async def _begin(self, clients: Clients) -> asyncio.Queue[str]:
        """Everybody, each reset once before anything is measured: so it is known which adapter and generation they
        have, whatever an earlier run left behind."""
        idle: asyncio.Queue[str] = asyncio.Queue()
        for user in self._people.users:
            await self._reset_one(clients, user, idle)
        clients.journal.acknowledged.clear()
        return idle

    async def _reset_all(self, clients: Clients, resets: int, idle: asyncio.Queue[str], progress: Progress) -> None:
        """At a steady pace, each person at most once at a time; whoever was reset gets a new adapter at once."""
        under_way: set[asyncio.Task[None]] = set()
        for done in range(resets):
            await asyncio.sleep(1.0 / self._work.resets_rate)
            task = asyncio.create_task(self._reset_one(clients, await idle.get(), idle))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            progress(done + 1, resets)
        await asyncio.gather(*under_way)

    async def _reset_one(self, clients: Clients, user: str, idle: asyncio.Queue[str]) -> None:
        generation = await clients.reset(user, new_id())
        template, version = self._people.draw(user, generation)
        clients.published(user, version.id, generation)  # it may be served before the call below comes back
        while True:
            try:
                await asyncio.to_thread(self._people.publish, template, version)
                break
            except UnavailableError:  # its connection was cut, perhaps after the commit: the same again is harmless
                await asyncio.sleep(0.05)
        idle.put_nowait(user)
