"""What goes wrong during the reset benchmark, in an order that a seed replays."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from subprocess import SubprocessError

from idiolect_services.bench.reset_fleet import Fleet

LONGEST_PAUSE_SECONDS = 0.8


class Faults:
    """One at a time, `spacing` seconds apart on average. `done` counts them by kind."""

    def __init__(self, fleet: Fleet, seed: int, spacing: float) -> None:
        self._fleet = fleet
        self._random = random.Random(seed)  # noqa: S311  not a secret: a schedule
        self._spacing = spacing
        self.done: Counter[str] = Counter()

    async def strike(self, stop: asyncio.Event) -> None:
        """Until told to stop; leaves everything running."""
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "replica paused": self._pause,
            "replica killed": self._kill,
            "replica cut off from postgres": self._cut_off,
            "postgres connections cut": self._cut,
            "redis flushed": self._flush,
            "redis killed": self._kill_redis,
            "redis paused": self._pause_redis,
            "redis turned back": self._turn_back_redis,
        }
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._random.uniform(0.2, 1.8) * self._spacing)
                return
            kind = self._random.choice(list(kinds))
            await kinds[kind]()
            self.done[kind] += 1

    def _one(self) -> int:
        return self._random.randrange(len(self._fleet.ports))

    def _while(self) -> float:
        return self._random.uniform(0.02, LONGEST_PAUSE_SECONDS)

    async def _pause(self) -> None:
        index = self._one()
        self._fleet.pause(index)
        await asyncio.sleep(self._while())
        self._fleet.resume(index)

    async def _kill(self) -> None:
        index = self._one()
        self._fleet.kill(index)
        await asyncio.sleep(self._while())
        await asyncio.to_thread(self._fleet.start, index)

    async def _cut_off(self) -> None:
        with suppress(SubprocessError):
            hanging = await asyncio.to_thread(self._fleet.hang_connections, self._one())
            await asyncio.sleep(self._while())
            self._fleet.unhang(hanging)

    async def _cut(self) -> None:
        with suppress(SubprocessError):
            await asyncio.to_thread(self._fleet.cut_connections)

    async def _flush(self) -> None:
        await asyncio.to_thread(self._fleet.redis.flush)

    async def _kill_redis(self) -> None:
        await asyncio.to_thread(self._fleet.redis.stop)
        await asyncio.sleep(self._while())
        await asyncio.to_thread(self._fleet.redis.start)

    async def _pause_redis(self) -> None:
        self._fleet.redis.signal(signal.SIGSTOP)
        await asyncio.sleep(self._while())
        self._fleet.redis.signal(signal.SIGCONT)

    async def _turn_back_redis(self) -> None:
        await asyncio.to_thread(self._fleet.redis.turned_back, self._while())
