"""Time that passes only when nothing else is left to do, and threads of which one runs at a time.

Everything happens in one order, which the seed decides: a thread runs until it pauses, the event loop decides who goes
on next, and a clock that nobody waits for jumps to the next moment at which something happens.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class StuckError(Exception):
    """Everybody waits for somebody."""


class Killed(BaseException):
    """What a thread of a process that was killed ends with. Not an Exception, so nobody handles it."""


class _Selector(selectors.SelectSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StuckError("nothing will ever happen again")
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-9
        # In the order in which they began, which a set has not. asyncio's own references are weak: what a killed
        # process was waiting for is garbage, and would end whenever that is collected.
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.set_task_factory(self._kept)

    def _kept(self, loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **kwargs)
        self.tasks[task] = None
        task.add_done_callback(self.tasks.pop)
        return task

    def time(self) -> float:
        return self.now


def _closed() -> threading.Lock:
    """As a gate: `acquire` waits until somebody lets one through with `release`."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class _Worker:
    """A real thread, at work only while the loop's thread waits for it."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.go, self.back = _closed(), _closed()
        self.job: Callable[[], None] | None = None
        self.dead: Callable[[], bool] = bool
        threading.Thread(target=self._run, daemon=True, name="simulated").start()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            if self.job is None:
                return
            self.job()
            self.job = None
            self.crew.idle.append(self)
            self.back.release()

    def resume(self) -> None:
        """On the loop's thread: returns once the worker pauses or is done."""
        before, self.crew.current = self.crew.current, self
        self.go.release()
        self.back.acquire()
        self.crew.current = before

    def pause(self, seconds: float, *, held: bool) -> None:
        """On the worker's own thread."""
        timer = self.crew.loop.call_later(seconds, self.resume)
        if held:
            self.crew.held[self] = timer
        self.back.release()
        self.go.acquire()
        self.crew.held.pop(self, None)
        if self.dead():
            raise Killed


class Crew:
    """All simulated threads of one run."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.idle: list[_Worker] = []
        self.held: dict[_Worker, asyncio.TimerHandle] = {}
        self.current: _Worker | None = None

    def start(self, job: Callable[[], None], dead: Callable[[], bool]) -> None:
        worker = self.idle.pop() if self.idle else _Worker(self)
        worker.job, worker.dead = job, dead
        worker.resume()

    def pause(self, seconds: float, *, held: bool = False) -> None:
        """Let others go on. On the event loop's own thread nobody can. `held`: until `let_go`, if that comes first."""
        if self.current is not None:
            self.current.pause(seconds, held=held)

    def let_go(self) -> None:
        """Whoever is held goes on, once whoever calls this has come to an end."""
        for worker, timer in self.held.items():
            timer.cancel()
            self.loop.call_soon(worker.resume)
        self.held.clear()

    def dismiss(self) -> None:
        for worker in self.idle:
            worker.go.release()  # without a job: it ends
        self.idle.clear()


class CrewFuture(Future[Any]):
    """Whoever waits for it lets others go on meanwhile."""

    crew: Crew  # of the run that is under way

    def result(self, timeout: float | None = None) -> Any:
        self._wait()
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait()
        return super().exception(0)

    def _wait(self) -> None:
        while not self.done():
            if self.crew.current is None:
                raise StuckError("the event loop waits for a thread")
            self.crew.pause(0.0005)


class CrewExecutor(Executor):
    """`count` simulated threads of one process."""

    def __init__(self, crew: Crew, count: int, chance: random.Random, dead: Callable[[], bool]) -> None:
        self._crew, self._count, self._chance, self._dead = crew, count, chance, dead
        self._waiting: deque[tuple[CrewFuture, Callable[[], Any]]] = deque()
        self._busy = 0
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._closed or self._dead():
            raise RuntimeError("this process takes no more work")
        future = CrewFuture()
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        self._crew.loop.call_later(self._chance.uniform(0.0, 0.0004), self._next)
        return future

    def _next(self) -> None:
        if self._dead() or not self._waiting or self._busy >= self._count:
            return
        future, call = self._waiting.popleft()
        if not future.set_running_or_notify_cancel():
            self._next()
            return
        self._busy += 1
        self._crew.start(lambda: self._run(future, call), self._dead)

    def _run(self, future: CrewFuture, call: Callable[[], Any]) -> None:
        try:
            result = call()
        except Killed:
            return  # nobody is left who could be told
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            self._busy -= 1
        self._crew.loop.call_soon(self._next)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        if cancel_futures:
            self._waiting.clear()
