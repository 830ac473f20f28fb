"""What a simulated process meets: a store that is slow, fails, or is out of reach; a Redis that forgets, or comes back
as it was a while ago; hints that get lost; clocks that run unevenly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from virtual_time import Crew, Killed, VirtualLoop

from idiolect.errors import UnavailableError
from idiolect.resets.fence import ANSWER_SECONDS

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad a run is. Of one run, drawn from its seed."""

    latency_s: float  # of a call to the store, on the average, each way
    stalls: float  # share of calls that take 10 to 60 ms more
    errors: float  # share of calls that fail before they do anything
    lost_answers: float  # share of calls that are done, and whose answer is lost
    lost_hints: float
    doubled_hints: float
    drift: float  # clocks run faster or slower by up to so much
    lost_memory: float  # share of calls to Redis that fail, or find it flushed, or turned back to an older copy
    ambushes: float  # share of last looks after which an answer is held back, while its person changes their mind

    @staticmethod
    def drawn(chance: random.Random) -> Weather:
        calm = chance.random() < 0.3
        return Weather(
            latency_s=chance.choice([0.0002, 0.001, 0.004]),
            stalls=0.0 if calm else chance.choice([0.05, 0.2]),
            errors=0.0 if calm else chance.choice([0.0, 0.01, 0.03]),
            lost_answers=0.0 if calm else chance.choice([0.0, 0.01, 0.03]),
            lost_hints=chance.choice([0.0, 0.3, 1.0]),
            doubled_hints=chance.choice([0.0, 0.3]),
            drift=0.07,  # fence: clocks that run equally fast to within a sixth, so 1.07 / 0.93 is allowed
            lost_memory=chance.choice([0.0, 0.05, 0.3]),
            ambushes=chance.choice([0.0, 0.5]),
        )


class SkewedClock:
    """Wall time, uptime and sleep of one process."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, drift: float) -> None:
        self._loop = loop
        self._rate = 1.0 + chance.uniform(-drift, drift)
        self._ahead = chance.uniform(-2.0, 2.0)
        self._booted = chance.uniform(0.0, 1e6)

    def now(self) -> datetime:
        return START + timedelta(seconds=self._ahead + self._rate * self._loop.now)

    def uptime(self) -> float:
        return self._booted + self._rate * self._loop.now

    def seconds(self, of_its_own: float) -> float:
        """In virtual time."""
        return of_its_own / self._rate


LAST_LOOKS = ("subject", "standing_each", "record_inferences")
HELD_SECONDS = ANSWER_SECONDS / 1.15  # less than an answer may take after its look, by any process' clock


class Ambush:
    """Holds answers back between the last look at their person and the moment at which they leave: until the reset
    that comes meanwhile is answered, or they may hardly leave any more. By chance alone that is hit too seldom."""

    def __init__(self, crew: Crew, chance: random.Random, share: float) -> None:
        self._crew, self._chance, self._share = crew, chance, share
        self._coming = 0  # answers to resets

    @contextmanager
    def laid(self) -> Iterator[None]:
        """While somebody changes their mind."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def hold(self, looked_at: float) -> None:
        if self._coming and self._chance.random() < self._share:
            self._crew.pause(max(0.0, looked_at + HELD_SECONDS - self._crew.loop.now), held=True)

    def answered(self) -> None:
        self._crew.let_go()


class Health(Protocol):
    @property
    def dead(self) -> bool: ...

    @property
    def cut_off(self) -> bool: ...


Committed = Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]


class FaultyStore:
    """A real store as one process reaches it. Others go on before and after every call, and a crash in between leaves
    it undone or done; never half done, which is the database's own promise."""

    embedded = False

    def __init__(
        self,
        store: Any,
        process: Health,
        crew: Crew,
        chance: random.Random,
        weather: Weather,
        ambush: Ambush,
        committed: Committed,
    ) -> None:
        self._store, self._process, self._crew = store, process, crew
        self._chance, self._weather, self._committed = chance, weather, committed
        self._ambush = ambush

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = self._crew.loop.now
            self._on_the_way(self._weather.errors)
            result = method(*args, **kwargs)
            self._committed(name, args, kwargs, result)
            self._on_the_way(self._weather.lost_answers)
            if name in LAST_LOOKS:
                self._ambush.hold(began)
            return result

        return call

    def _on_the_way(self, failing: float) -> None:
        if self._process.dead:
            raise Killed
        chance, weather = self._chance, self._weather
        seconds = chance.expovariate(1.0 / weather.latency_s)
        if chance.random() < weather.stalls:
            seconds += chance.uniform(0.010, 0.060)
        self._crew.pause(seconds)
        if self._process.dead:
            raise Killed
        if self._process.cut_off or chance.random() < failing:
            raise UnavailableError("the simulated store did not answer.")


Entries = dict[bytes, dict[bytes, bytes]]


class SharedRedis:
    """The commands that what was resolved is remembered by. `older`: some earlier state of it."""

    def __init__(self) -> None:
        self.entries: Entries = {}
        self.older: Entries = {}

    def hget(self, name: bytes, field: bytes) -> bytes | None:
        return self.entries.get(name, {}).get(field)

    def hset(self, name: bytes, field: bytes, value: bytes) -> None:
        self.entries.setdefault(name, {})[field] = value

    def expire(self, name: bytes, seconds: int) -> None:
        """A run is over sooner."""

    def unlink(self, *names: bytes) -> int:
        return sum(self.entries.pop(name, None) is not None for name in names)

    def pipeline(self, *, transaction: bool) -> _Pipeline:
        assert not transaction
        return _Pipeline(self)

    def copied(self) -> Entries:
        return {name: dict(fields) for name, fields in self.entries.items()}


class _Pipeline:
    def __init__(self, redis: SharedRedis) -> None:
        self._redis = redis
        self._asked: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self._asked.append((name, args))

    def execute(self) -> list[Any]:
        return [getattr(self._redis, name)(*args) for name, args in self._asked]


class FaultyLink:
    """That Redis as one process reaches it: as `RedisLink`."""

    def __init__(
        self, redis: SharedRedis, process: Health, crew: Crew, chance: random.Random, weather: Weather
    ) -> None:
        self._redis, self._process, self._crew = redis, process, crew
        self._chance, self._weather = chance, weather

    def ask(self, question: Callable[[Any], Any]) -> Any:
        chance, redis = self._chance, self._redis
        self._crew.pause(chance.expovariate(1.0 / self._weather.latency_s))
        if self._process.dead:
            raise Killed
        if chance.random() < self._weather.lost_memory:
            what = chance.choice(["fails", "flushed", "copied", "turned back", "turned back"])
            if what == "fails":
                return None
            if what == "copied":
                redis.older = redis.copied()
            else:
                redis.entries = {} if what == "flushed" else {name: dict(one) for name, one in redis.older.items()}
        return question(redis)


class Bus:
    """Hints between processes: late, lost, twice, and never of whom."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, weather: Weather) -> None:
        self._loop, self._chance, self._weather = loop, chance, weather
        self.listeners: dict[str, Callable[[], None]] = {}

    def publish(self, sender: str) -> None:
        for name, listener in sorted(self.listeners.items()):
            if name == sender or self._chance.random() < self._weather.lost_hints:
                continue
            for _ in range(2 if self._chance.random() < self._weather.doubled_hints else 1):
                self._loop.call_later(self._chance.uniform(0.0, 0.050), listener)
