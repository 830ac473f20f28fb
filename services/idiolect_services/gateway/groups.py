"""Requests that wait for a server's store are worked on together, on threads.

Few groups are under way at once. Whoever comes while they are is in the next one, together with all who came meanwhile:
alone where little is asked for, and the larger the group, hence the cheaper each request, the more there is to do.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from idiolect.errors import UnavailableError
from idiolect_services.gateway.lanes import Lane
from idiolect_services.gateway.turns import MOST_WORK

AT_ONCE = 2  # one waits for the store while the other one computes
PATIENCE_SECONDS = 0.5  # once the first in the queue has waited so long, whoever comes is refused

Asked = TypeVar("Asked")
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Asked, Given]):
    asked: Asked
    work: int
    since: float
    landed: asyncio.Future[Given]


class Groups(Generic[Asked, Given]):
    """Only for the event loop's thread."""

    def __init__(
        self,
        lane: Lane,
        answer: Callable[[Sequence[Asked]], Sequence[Given | Exception]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`answer` runs on a thread of `lane`. It gives an answer or an exception for each."""
        self._monotonic = monotonic
        self._lane = lane
        self._answer = answer
        self._waiting: deque[_Waiting[Asked, Given]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def join(self, one: Asked, work: int) -> Given:
        """Raises what `answer` gives as its exception, or UnavailableError (code `overloaded`) if the lane is full, or
        so slow that the wait would be of no use."""
        now = self._monotonic()
        if self._waiting and now - self._waiting[0].since > PATIENCE_SECONDS:
            raise UnavailableError(
                "rankings come faster than they are answered.", mend="Try again after a moment.", code="overloaded"
            )
        landed: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(one, work, now, landed))
        self._begin()
        return await landed

    def _begin(self) -> None:
        while len(self._under_way) < AT_ONCE and (group := self._next()):
            task = asyncio.get_running_loop().create_task(self._work(group))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():  # else the loop ends
            self._begin()

    def _next(self) -> list[_Waiting[Asked, Given]]:
        group: list[_Waiting[Asked, Given]] = []
        work = 0
        while self._waiting and (not group or work + self._waiting[0].work <= MOST_WORK):
            one = self._waiting.popleft()
            if not one.landed.done():  # cancelled: its client is gone
                group.append(one)
                work += one.work
        return group

    async def _work(self, group: Sequence[_Waiting[Asked, Given]]) -> None:
        try:
            given = await self._lane.run(self._answer, [one.asked for one in group])
        except Exception as error:
            given = [error] * len(group)
        for one, answer in zip(group, given, strict=True):
            if one.landed.done():
                continue
            if isinstance(answer, Exception):
                one.landed.set_exception(answer)
            else:
                one.landed.set_result(answer)
