"""Requests that become ready at about the same time are worked on together, one stage after the other.

What they share, such as a transaction, they pay for once. And a stage that has just run for one request finds its code
and data in the processor's caches when it runs for the next, where the stages of one request after the other push each
other out: see deploy/decisions/0021-warm-requests.md.

A turn gathers as long as requests keep coming, which is counted in turns of the event loop and not in time: nobody
waits while the loop has nothing to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

MOST_WORK = 160  # of one turn, in texts: the loop has others to serve too
# Of the loop. A request is read in one of its turns and ready in the next: after two that brought nobody, nobody who
# has come is still on their way.
QUIET_TURNS, MOST_TURNS = 2, 8

Asked = TypeVar("Asked")
Given = TypeVar("Given")
Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Turn(Generic[Asked, Given]):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.work = 0
        self.turns = self.quiet = 0
        self.asked: list[Asked] = []
        self.waiting: list[asyncio.Future[Given]] = []


class Turns(Generic[Asked, Given]):
    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Given | Exception]]) -> None:
        """`answer` runs on the loop of those who asked. It gives an answer or an exception for each."""
        self._answer = answer
        self._open: _Turn[Asked, Given] | None = None

    async def join(self, one: Asked, work: int) -> Given:
        loop = asyncio.get_running_loop()
        turn = self._open
        if turn is None or turn.loop is not loop:
            turn = self._open = _Turn(loop)
            loop.call_soon(self._gather, turn)
        landed: asyncio.Future[Given] = loop.create_future()
        turn.asked.append(one)
        turn.waiting.append(landed)
        turn.work += work
        turn.quiet = 0
        if turn.work >= MOST_WORK:
            self._open = None  # whoever comes later is in the next one
        return await landed

    def _gather(self, turn: _Turn[Asked, Given]) -> None:
        """In every turn of the loop, until it ends."""
        turn.turns += 1
        turn.quiet += 1
        if self._open is not turn or turn.quiet > QUIET_TURNS or turn.turns >= MOST_TURNS:
            self._end(turn)
        else:
            turn.loop.call_soon(self._gather, turn)

    def _end(self, turn: _Turn[Asked, Given]) -> None:
        if self._open is turn:
            self._open = None
        for landed, given in zip(turn.waiting, self._answers(turn.asked), strict=True):
            if landed.done():  # cancelled: its client is gone
                continue
            if isinstance(given, Exception):
                landed.set_exception(given)
            else:
                landed.set_result(given)

    def _answers(self, asked: Sequence[Asked]) -> Sequence[Given | Exception]:
        try:
            return self._answer(asked)
        except Exception as error:  # a bug: whoever waits must not wait for ever
            return [error] * len(asked)


def in_step(
    works: Sequence[Generator[Question, Answer, Given]],
    answers: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
) -> list[Given | Exception]:
    """What each gives in the end, or raises. All are brought to their next `yield` before any goes on from it, with its
    part of what `answers` says to the questions of all; an exception is raised there."""
    given: dict[int, Given | Exception] = {}
    told: dict[int, Answer | Exception | None] = dict.fromkeys(range(len(works)))
    while told:
        asked: dict[int, Question] = {}
        for place, answer in told.items():
            try:
                asked[place] = _go_on(works[place], answer)
            except StopIteration as done:
                given[place] = done.value
            except Exception as error:
                given[place] = error
        told = dict(zip(asked, answers(list(asked.values())), strict=True)) if asked else {}
    return [given[place] for place in range(len(works))]


def _go_on(work: Generator[Question, Answer, Given], answer: Answer | Exception | None) -> Question:
    if isinstance(answer, Exception):
        return work.throw(answer)
    return next(work) if answer is None else work.send(answer)
