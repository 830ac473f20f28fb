"""Requests over a server are worked on together with those that came meanwhile, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from idiolect.errors import UnavailableError
from idiolect_services.gateway.groups import AT_ONCE, PATIENCE_SECONDS, Groups
from idiolect_services.gateway.lanes import Lane
from idiolect_services.gateway.turns import MOST_WORK


class Doubling:
    """On threads, as long as it is held: twice the number, an exception for a negative one."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.broken = False

    def __call__(self, numbers: Sequence[int]) -> Sequence[int | Exception]:
        self.groups.append(list(numbers))
        assert self.may_go_on.wait(10)
        if self.broken:
            raise ZeroDivisionError("a bug")
        return [2 * number if number >= 0 else ValueError(str(number)) for number in numbers]


@asynccontextmanager
async def held(double: Doubling, count: int = AT_ONCE, depth: int = 64) -> AsyncIterator[Groups[int, int]]:
    """As many groups as may be are under way, each of one number, and none goes on before the end of the block."""
    lane = Lane("test", threads=AT_ONCE, depth=depth)
    groups: Groups[int, int] = Groups(lane, double)
    busy = [asyncio.create_task(groups.join(100 + number, 1)) for number in range(count)]
    while len(double.groups) < count:
        await asyncio.sleep(0)
    try:
        yield groups
    finally:
        double.may_go_on.set()
        assert await asyncio.gather(*busy, return_exceptions=True)
        lane.close()


async def asked(groups: Groups[int, int], numbers: Sequence[int], work: int = 1) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(groups.join(number, work)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


def test_who_comes_while_others_are_worked_on_is_in_the_next_group_with_its_own_answer() -> None:
    double = Doubling()

    async def scenario() -> list[int | BaseException]:
        async with held(double) as groups:
            tasks = await asked(groups, [1, -2, 3])
            assert len(double.groups) == AT_ONCE
            double.may_go_on.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    one, refused, three = asyncio.run(scenario())
    assert (one, three) == (2, 6)
    assert isinstance(refused, ValueError)
    assert double.groups[AT_ONCE:] == [[1, -2, 3]]


def test_a_group_holds_only_so_much_work_and_what_is_more_goes_alone() -> None:
    double = Doubling()

    async def scenario() -> None:
        async with held(double) as groups:
            halves = await asked(groups, [1, 2, 3], MOST_WORK // 2)
            large = await asked(groups, [4], 3 * MOST_WORK)
            double.may_go_on.set()
            assert await asyncio.gather(*halves, *large) == [2, 4, 6, 8]

    asyncio.run(scenario())
    assert sorted(double.groups[AT_ONCE:]) == [[1, 2], [3], [4]]


def test_nothing_is_done_for_who_left_before_and_nobody_else_notices() -> None:
    double = Doubling()

    async def scenario() -> None:
        async with held(double) as groups:
            leaves, stays = await asked(groups, [1, 2])
            leaves.cancel()
            await asyncio.sleep(0)
            double.may_go_on.set()
            assert await stays == 4

    asyncio.run(scenario())
    assert double.groups[AT_ONCE:] == [[2]]


def test_who_leaves_while_their_group_is_under_way_takes_nobody_along() -> None:
    double = Doubling()

    async def scenario() -> None:
        async with held(double) as groups:
            double.may_go_on.set()
            leaves, stays = await asked(groups, [1, 2])
            while len(double.groups) == AT_ONCE:
                await asyncio.sleep(0)
            leaves.cancel()
            assert await stays == 4

    asyncio.run(scenario())


def test_a_bug_and_a_full_lane_fail_those_of_the_group_and_the_next_one_goes_on() -> None:
    double = Doubling()

    async def broken() -> None:
        async with held(double) as groups:
            double.broken = True
            tasks = await asked(groups, [1, 2])
            double.may_go_on.set()
            for task in tasks:
                with pytest.raises(ZeroDivisionError):
                    await task
            double.broken = False
            assert await groups.join(3, 1) == 6

    async def full() -> None:
        async with held(Doubling(), count=1, depth=1) as groups:
            with pytest.raises(UnavailableError) as caught:
                await groups.join(1, 1)
            assert caught.value.code == "overloaded"

    asyncio.run(broken())
    asyncio.run(full())


def test_who_would_wait_longer_than_is_of_use_is_refused_at_once_until_the_queue_moves() -> None:
    double, now = Doubling(), [0.0]

    async def scenario() -> None:
        lane = Lane("test", threads=AT_ONCE, depth=64)
        groups: Groups[int, int] = Groups(lane, double, lambda: now[0])
        busy = await asked(groups, [1] * AT_ONCE)
        now[0] = 1.0
        first = await asked(groups, [2])
        now[0] += PATIENCE_SECONDS
        second = await asked(groups, [3])
        now[0] += 0.001
        with pytest.raises(UnavailableError) as caught:
            await groups.join(4, 1)
        assert caught.value.code == "overloaded"
        double.may_go_on.set()
        assert await asyncio.gather(*busy, *first, *second) == [2] * AT_ONCE + [4, 6]
        assert await groups.join(5, 1) == 10
        lane.close()

    asyncio.run(scenario())
