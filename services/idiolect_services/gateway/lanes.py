"""Bounded thread pools: what blocks (the store, the model) runs here, and a full lane says so at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from idiolect.errors import UnavailableError
from idiolect_services.gateway.process import Process

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """`threads` workers and at most `depth` calls waiting or running. Call it from one event loop only."""

    def __init__(self, name: str, *, threads: int, depth: int, process: Process | None = None) -> None:
        self.name = name
        self._depth = depth
        self._inside = 0
        self._begun: set[asyncio.Task[object]] = set()
        self._pool: Executor = (process or Process()).threads(name, threads)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises UnavailableError (code `overloaded`) at once if the lane is full."""
        if self._inside >= self._depth:
            raise UnavailableError(
                f"the {self.name} lane is full.",
                mend="Try again after a moment, with fewer at once.",
                code="overloaded",
            )
        self._inside += 1
        try:
            future = asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))
        except BaseException:
            self._inside -= 1
            raise
        future.add_done_callback(self._leave)
        return await future

    def begin(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether it will run, with nobody waiting for what becomes of it: not where the lane is half full."""
        if self._inside >= self._depth // 2:
            return False
        task = asyncio.ensure_future(self.run(call, *args, **kwargs))
        self._begun.add(task)
        task.add_done_callback(self._ended)
        return True

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            task.exception()  # asked for, so that nobody complains that it was not

    def _leave(self, _future: asyncio.Future[T]) -> None:
        self._inside -= 1

    def close(self) -> None:
        """Drop what waits, and wait for what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Lanes:
    """So that neither a flood of rankings nor what an operator does can hold up a reset, and adapters that are slow to
    load, or large and being registered, hold up only those who need them. What needs the model waits elsewhere
    (batching).

    `control` is for what people decide about themselves alone, also for finding out who asks for it. `keys` is for who
    asks for anything else, `admin` for everything that is neither.
    """

    def __init__(self, process: Process | None = None) -> None:
        self.serving = Lane("serving", threads=4, depth=256, process=process)
        self.loading = Lane("loading", threads=4, depth=256, process=process)
        self.control = Lane("control", threads=4, depth=256, process=process)
        self.keys = Lane("keys", threads=1, depth=1024, process=process)
        self.admin = Lane("admin", threads=2, depth=64, process=process)

    def close(self) -> None:
        for lane in (self.serving, self.loading, self.control, self.keys, self.admin):
            lane.close()
