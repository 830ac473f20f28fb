"""What becomes ready in one turn of the event loop is answered together, and each gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence

import pytest

from idiolect_services.gateway.turns import MOST_TURNS, MOST_WORK, Turns, in_step


class Doubling:
    """Answers a number with twice the number, a negative one with an exception; remembers who was together."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.broken = False

    def __call__(self, numbers: Sequence[int]) -> Sequence[int | Exception]:
        if self.broken:
            raise ZeroDivisionError("a bug")
        self.groups.append(list(numbers))
        return [2 * number if number >= 0 else ValueError(str(number)) for number in numbers]


async def ask(turns: Turns[int, int], numbers: Sequence[int], work: int = 1) -> list[int | BaseException]:
    return await asyncio.gather(*(turns.join(number, work) for number in numbers), return_exceptions=True)


def test_those_of_one_turn_are_answered_together_and_later_ones_apart() -> None:
    double = Doubling()
    turns: Turns[int, int] = Turns(double)

    async def scenario() -> None:
        assert await ask(turns, [1, 2, 3]) == [2, 4, 6]
        assert await ask(turns, [4]) == [8]

    asyncio.run(scenario())
    assert double.groups == [[1, 2, 3], [4]]


async def ask_later(turns: Turns[int, int], numbers: Sequence[int]) -> list[int]:
    """Each so many turns of the loop later as the number says."""

    async def later(number: int) -> int:
        for _ in range(number):
            await asyncio.sleep(0)
        return await turns.join(number, 1)

    return await asyncio.gather(*map(later, numbers))


def test_who_was_on_their_way_is_waited_for() -> None:
    double = Doubling()
    assert asyncio.run(ask_later(Turns(double), [0, 1, 3])) == [0, 2, 6]
    assert double.groups == [[0, 1, 3]]


def test_a_turn_that_never_falls_quiet_ends_all_the_same() -> None:
    double = Doubling()
    numbers = list(range(4 * MOST_TURNS))
    assert asyncio.run(ask_later(Turns(double), numbers)) == [2 * number for number in numbers]
    assert [number for group in double.groups for number in group] == numbers
    assert 1 < max(map(len, double.groups)) <= MOST_TURNS


def test_a_turn_takes_only_so_much_work() -> None:
    double = Doubling()
    turns: Turns[int, int] = Turns(double)
    assert asyncio.run(ask(turns, range(5), work=MOST_WORK // 2)) == [0, 2, 4, 6, 8]
    assert double.groups == [[0, 1], [2, 3], [4]]


def test_what_one_is_refused_takes_nobody_elses_answer_away() -> None:
    found = asyncio.run(ask(Turns(Doubling()), [1, -1, 2]))
    assert [found[0], found[2]] == [2, 4]
    assert isinstance(found[1], ValueError)


def test_a_bug_tells_everyone_and_the_next_turn_goes_on() -> None:
    double = Doubling()
    turns: Turns[int, int] = Turns(double)

    async def scenario() -> None:
        double.broken = True
        assert [type(one) for one in await ask(turns, [1, 2])] == [ZeroDivisionError] * 2
        double.broken = False
        assert await ask(turns, [1]) == [2]

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [1, -1])
def test_who_gave_up_waiting_holds_nobody_up(number: int) -> None:
    turns: Turns[int, int] = Turns(Doubling())

    async def scenario() -> None:
        gone = asyncio.ensure_future(turns.join(number, 1))
        stays = asyncio.ensure_future(turns.join(2, 1))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 4
        assert gone.cancelled()

    asyncio.run(scenario())


def test_a_loop_that_ended_before_its_turn_leaves_nothing_behind() -> None:
    double = Doubling()
    turns: Turns[int, int] = Turns(double)
    loop = asyncio.new_event_loop()
    task = loop.create_task(turns.join(1, 1))
    loop.call_soon(loop.stop)
    loop.run_forever()  # it has joined, and its turn has not come
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    assert asyncio.run(ask(turns, [5])) == [10]


def test_work_goes_on_in_step_each_to_its_own_end() -> None:
    seen: list[str] = []
    asked: list[list[int]] = []

    def work(name: str, stages: int, error: Exception | None = None) -> Generator[int, str, str]:
        for stage in range(stages):
            told = yield stage
            seen.append(f"{name}{told}")
        if error is not None:
            raise error
        return name

    def answers(questions: Sequence[int]) -> list[str]:
        asked.append(list(questions))
        return [f"-{question}" for question in questions]

    bug = ValueError("a bug")
    assert in_step([work("a", 2), work("b", 0), work("c", 1, bug), work("d", 3)], answers) == ["a", "b", bug, "d"]
    assert seen == ["a-0", "c-0", "d-0", "a-1", "d-1", "d-2"]
    assert asked == [[0, 0, 0], [1, 1], [2]]
    assert in_step([], answers) == []


def test_an_answer_that_is_an_exception_is_raised_where_it_was_asked_for() -> None:
    def work(number: int) -> Generator[int, None, str]:
        try:
            yield number
        except KeyError:
            return "caught"
        return "told"

    def answers(questions: Sequence[int]) -> list[Exception | None]:
        return [[KeyError(), ValueError(), None][question] for question in questions]

    caught, refused, told = in_step([work(0), work(1), work(2)], answers)
    assert (caught, told) == ("caught", "told")
    assert isinstance(refused, ValueError)
