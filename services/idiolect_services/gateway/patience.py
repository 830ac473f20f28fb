"""Bounds on how long is waited, which cost nothing where nothing has to be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises TimeoutError if it takes longer. The timer is only set once it waits for something."""
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        given: T = done.value
        return given
    async with asyncio.timeout(seconds):
        return await _resumed(work, waits_for)


def at_once(work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives if it waits for nothing. Else it is given up."""
    try:
        work.send(None)
    except StopIteration as done:
        given: T = done.value
        return given
    work.close()
    return None


@coroutine
def _resumed(work: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """As `await work` goes on after its first step."""
    try:
        while True:
            try:
                told = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(told)
    except StopIteration as done:
        given: T = done.value
        return given
