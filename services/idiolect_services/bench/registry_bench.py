"""The registry benchmark: one release of a million people, its resolves, its revocation, and writers that race.

On a SQLite file and on a Postgres of its own. MLflow's registry, on SQLite, does what it can do as well: create a
version, move an alias, resolve one; rounds of both alternate.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from idiolect.errors import ConfigurationError, PreconditionError
from idiolect.ids import new_id
from idiolect.registry.pointers import Adapter, Pointer
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store
from idiolect.stores.sql import open_key_store, open_store
from idiolect_services.bench import peer_mlflow
from idiolect_services.bench.form import Measured
from idiolect_services.bench.peers import peer_python
from idiolect_services.bench.postgres_server import BenchPostgres
from idiolect_services.bench.registry_crowd import DOMAIN, TENANT, Crowd, gather, moment
from idiolect_services.training_runs import Stages

DATABASES = ("sqlite", "postgres")
OF_DATABASE = (
    "winners_per_generation",
    "lost_updates",
    "publish_seconds_a_million",
    "reset_beside_publish",
    "bytes_per_version",
    "resolve_p50",
    "resolve_p50_growth",
    "resolve_p99",
    "resolve_p99_growth",
    "revoke",
    "still_served",
)
AGAINST_PEER = ("create_in_release", "create_alone", "move_in_release", "move_alone", "resolve")
PEER = "MLflow"


def metrics() -> tuple[str, ...]:
    return (*[f"{of}_{name}" for of in DATABASES for name in OF_DATABASE], *[f"mlflow_{name}" for name in AGAINST_PEER])


@dataclass(frozen=True, slots=True)
class Work:
    people: int = 1_000_000
    few_people: int = 1_000
    resolves: int = 2_000  # of one window
    rounds: int = 5
    writers: int = 32
    moves: int = 20  # that each writer tries
    peer_models: int = 100
    peer_operations: int = 50  # of each kind and round
    databases: tuple[str, ...] = DATABASES


@dataclass(frozen=True, slots=True)
class Place:
    """Two empty databases with one key store, and the bytes that all take together."""

    many: str
    few: str
    keys: str
    size: Callable[[], int]


def measure(work: Work, stages: Stages, python: Path | None = None) -> list[Measured]:
    """Raises ConfigurationError, before anything is measured, if the peer is not set up or no Postgres starts."""
    python = python or peer_python("mlflow")
    found: list[Measured] = []
    for name in work.databases:
        with _place(name) as place:
            found += [*_database(name, place, work, stages)]
    return found + _against_peer(python, work, stages)


@contextmanager
def _place(name: str) -> Iterator[Place]:
    if name == "postgres":
        server = BenchPostgres()
        try:
            many, few, keys = map(server.create_database, ("many", "few", "keys"))
            yield Place(many, few, keys, server.data_bytes)
        finally:
            server.stop()
        return
    with tempfile.TemporaryDirectory(prefix="idio-bench-") as folder:
        files = Path(folder)
        many, few, keys = (f"sqlite:///{files / of}.db" for of in ("many", "few", "keys"))
        yield Place(many, few, keys, lambda: sum(file.stat().st_size for file in files.iterdir()))


@contextmanager
def _opened(place: Place, url: str) -> Iterator[Store]:
    keys = open_key_store(place.keys, lambda _tenant: bytes(32), lock_timeout_s=60.0)
    store = open_store(url, keys, lock_timeout_s=60.0)
    try:
        yield store
    finally:
        store.close()


def _database(name: str, place: Place, work: Work, stages: Stages) -> Iterator[Measured]:
    progress = stages.stage(f"{name}: {work.people:,} people")
    with _opened(place, place.few) as store:
        few = gather(store, work.few_people)
        few.publish(few.people)
        yield from _race(name, place, few, work)
    progress(1, 4)
    with _opened(place, place.many) as store:
        many = gather(store, work.people)
    progress(2, 4)
    before = place.size()  # of closed files: what lies in a log as well would count twice
    with _opened(place, place.many) as store:
        many = replace(many, store=store)
        with _opened(place, place.many) as other, _resets(other) as waited:
            began = time.perf_counter()
            release = many.publish(many.people)
            seconds = time.perf_counter() - began
        yield Measured(f"{name}_publish_seconds_a_million", "s", seconds * 1e6 / work.people)
        yield Measured(f"{name}_reset_beside_publish", "s", max(waited))
    yield Measured(f"{name}_bytes_per_version", "bytes", (place.size() - before) / work.people)
    progress(3, 4)
    with _opened(place, place.many) as store, _opened(place, place.few) as other:
        many, few = replace(many, store=store), replace(few, store=other)
        yield from _resolves(name, many, few, work)
        yield from _revocation(name, many, release, work)
    progress(4, 4)


@contextmanager
def _resets(store: Store) -> Iterator[list[float]]:
    """The seconds that each of some resets took, one after the other, of people of no release."""
    took: list[float] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def reset() -> None:
        plan = plan_reset("adapter")
        try:
            while not done.wait(0.0 if not took else 0.5):
                took.append(_seconds(lambda: store.apply_reset(TENANT, new_id(), new_id(), plan, moment())))
        except BaseException as error:
            failed.append(error)

    resetting = threading.Thread(target=reset)
    resetting.start()
    try:
        yield took
    finally:
        done.set()
        resetting.join()
    if failed:
        raise failed[0]


def _resolves(name: str, many: Crowd, few: Crowd, work: Work) -> Iterator[Measured]:
    windows: list[tuple[list[float], list[float]]] = []
    for _ in range(1 + work.rounds):  # the first warms up
        windows.append((_resolve_ms(many, work.resolves), _resolve_ms(few, work.resolves)))
    for metric, share in (("resolve_p50", 0.50), ("resolve_p99", 0.99)):
        pairs = [(_quantile(of_many, share), _quantile(of_few, share)) for of_many, of_few in windows[1:]]
        mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        peer = f"{work.few_people:,} people"
        growth = [a / b for a, b in pairs]
        yield Measured(f"{name}_{metric}", "ms", median(mine), min(mine), max(mine), peer, median(theirs))
        yield Measured(f"{name}_{metric}_growth", "x", median(growth), min(growth), max(growth))


def _resolve_ms(crowd: Crowd, count: int) -> list[float]:
    """Sorted."""
    return sorted(1000.0 * _seconds(_served, crowd.store, person) for person in _some(crowd, count))


def _some(crowd: Crowd, count: int) -> list[str]:
    return random.choices(crowd.people, k=count)  # noqa: S311  not a secret


def _served(store: Store, person: str) -> bool:
    return store.resolve(TENANT, person, DOMAIN).user is not None


def _revocation(name: str, crowd: Crowd, release: str, work: Work) -> Iterator[Measured]:
    if not all(_served(crowd.store, person) for person in _some(crowd, work.resolves)):
        raise AssertionError("a person of the release was not served before its revocation")
    took = _seconds(lambda: crowd.store.revoke_release(TENANT, release, moment(), reason="bench", actor="bench"))
    yield Measured(f"{name}_revoke", "ms", 1000.0 * took)
    still = sum(_served(crowd.store, person) for person in _some(crowd, work.resolves))
    yield Measured(f"{name}_still_served", "people", float(still))


def _race(name: str, place: Place, crowd: Crowd, work: Work) -> Iterator[Measured]:
    """Every writer reads the live pointer and moves it if it is still what was read; each has a store of its own."""
    person = crowd.people[0]
    for _ in range(2):
        crowd.publish([person])
    versions = [stored.version.id for stored in crowd.store.versions(TENANT, subject=person)]
    adapter = Adapter("user", person)
    first = _live(crowd.store, adapter)
    won: list[int] = []
    failed: list[BaseException] = []

    def write(seed: int) -> None:
        try:
            with _opened(place, place.few) as store:
                won.extend(_moves(store, adapter, versions, work.moves, random.Random(seed)))  # noqa: S311
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(work.writers)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    if failed:
        raise failed[0]
    generations = Counter(won)
    lost = len(won) - (_live(crowd.store, adapter).revision - first.revision)
    yield Measured(f"{name}_winners_per_generation", "winners", float(max(generations.values())))
    yield Measured(f"{name}_lost_updates", "updates", float(abs(lost)))


def _moves(store: Store, adapter: Adapter, versions: Sequence[str], count: int, rng: random.Random) -> Iterator[int]:
    """The generations that this writer won."""
    for _ in range(count):
        seen = _live(store, adapter)
        wanted = rng.choice([version for version in versions if version != seen.version])
        try:
            moved = store.promote(TENANT, wanted, moment(), reason="race", actor="bench", if_match=seen.etag)
        except PreconditionError:
            continue
        yield moved.revision


def _live(store: Store, adapter: Adapter) -> Pointer:
    return store.pointers(TENANT, adapter)[0]


def _against_peer(python: Path, work: Work, stages: Stages) -> list[Measured]:
    progress = stages.stage("MLflow")
    with _place("sqlite") as place, _opened(place, place.few) as store, _Peer(python, work.peer_models) as peer:
        crowd = gather(store, work.few_people)
        releases = [crowd.publish(crowd.people), crowd.publish(crowd.people)]
        rounds: list[tuple[Mapping[str, float], Mapping[str, float]]] = []
        for done in range(1 + work.rounds):  # the first warms up
            theirs = peer.measure(work.peer_operations)
            rounds.append((_operations_ms(crowd, releases[done % 2], work.peer_operations), theirs))
            progress(done + 1, 1 + work.rounds)
    return [_compared(name, rounds[1:]) for name in AGAINST_PEER]


def _compared(name: str, rounds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Measured:
    """`ratio`: how many times as fast."""
    of = name.split("_")[0]
    mine, theirs = [one[name] for one, _ in rounds], [one[of] for _, one in rounds]
    ratio = median(b / a for a, b in zip(mine, theirs, strict=True))
    return Measured(f"mlflow_{name}", "ms", median(mine), min(mine), max(mine), PEER, median(theirs), ratio)


def _operations_ms(crowd: Crowd, release: str, count: int) -> dict[str, float]:
    """Medians of one round, and for a release its time divided by its versions."""
    people = _some(crowd, count)
    store = crowd.store
    others = {person: [one.version.id for one in store.versions(TENANT, subject=person)] for person in people}
    return {
        "create_in_release": 1000.0 * _seconds(crowd.publish, crowd.people) / len(crowd.people),
        "create_alone": _median_ms([_seconds(crowd.publish, [one]) for one in people]),
        "move_in_release": 1000.0 * _seconds(_promote, store, release) / len(crowd.people),
        "move_alone": _median_ms([_seconds(_move, store, _not_live(store, one, others[one])) for one in people]),
        "resolve": _median_ms([_seconds(_served, store, one) for one in people]),
    }


def _promote(store: Store, release: str) -> None:
    """Of everybody at once."""
    store.promote_release(TENANT, release, moment(), reason="bench", actor="bench")


def _not_live(store: Store, person: str, versions: Sequence[str]) -> str:
    live = _live(store, Adapter("user", person)).version
    return random.choice([version for version in versions if version != live])  # noqa: S311  not a secret


def _move(store: Store, version: str) -> None:
    """As an alias of MLflow moves: to a version of the same person."""
    store.promote(TENANT, version, moment(), reason="bench", actor="bench")


class _Peer:
    """MLflow in a process of its own: it needs an environment of its own, and shares nothing with ours."""

    def __init__(self, python: Path, models: int) -> None:
        self._python, self._models = python, models

    def __enter__(self) -> _Peer:
        self._folder = tempfile.TemporaryDirectory(prefix="idio-bench-")
        command = [str(self._python), peer_mlflow.__file__, self._folder.name, str(self._models)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            self._line("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def measure(self, count: int) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return {kind: _median_ms(seconds) for kind, seconds in json.loads(self._line()).items()}

    def _line(self, expected: str | None = None) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line or (expected is not None and line != expected):
            raise ConfigurationError(f"the benchmark's peer, MLflow, stopped ({line!r}).", mend="Run: make peers.")
        return line

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._folder.cleanup()


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _median_ms(seconds: Sequence[float]) -> float:
    return 1000.0 * median(seconds)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
