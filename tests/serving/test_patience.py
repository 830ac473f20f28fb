"""Waiting for a bounded time, with a timer only where anything is waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from idiolect_services.gateway.patience import at_once, within

NEVER_MET = 3600.0


def test_what_waits_for_nothing_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once() -> str:
        return "given"

    def no_timer(_seconds: float) -> Any:
        raise AssertionError("a timer was set")

    monkeypatch.setattr(asyncio, "timeout", no_timer)
    assert asyncio.run(within(NEVER_MET, at_once())) == "given"


def test_what_has_to_wait_goes_on_where_it_was_each_time() -> None:
    async def scenario() -> list[Any]:
        first, second = (asyncio.get_running_loop().create_future() for _ in range(2))

        async def work() -> list[Any]:
            heard = [await first]
            await asyncio.sleep(0)
            try:
                await second
            except KeyError as error:
                heard.append(str(error))
            return heard

        async def tell() -> None:
            first.set_result("first")
            await asyncio.sleep(0)
            second.set_exception(KeyError("second"))

        told = asyncio.create_task(tell())
        heard = await within(NEVER_MET, work())
        await told
        return heard

    assert asyncio.run(scenario()) == ["first", "'second'"]


def test_errors_are_raised_before_and_after_the_first_wait() -> None:
    async def fails(waits: bool) -> None:
        if waits:
            await asyncio.sleep(0)
        raise ZeroDivisionError

    for waits in (False, True):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(within(NEVER_MET, fails(waits)))


def test_who_runs_out_of_time_is_stopped_where_they_wait() -> None:
    stopped: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("stopped")

    with pytest.raises(TimeoutError):
        asyncio.run(within(0.0, waits()))
    assert stopped == ["stopped"]


def test_who_is_cancelled_is_cancelled_where_they_wait() -> None:
    seen: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def scenario() -> None:
        task = asyncio.create_task(within(NEVER_MET, waits()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert seen == ["cancelled"]


def test_what_would_have_to_wait_is_given_up_and_cleans_up() -> None:
    left: list[str] = []

    async def waits() -> str:
        try:
            return str(await asyncio.get_running_loop().create_future())
        finally:
            left.append("left")

    async def ready() -> str:
        return "given"

    async def scenario() -> tuple[str | None, str | None]:
        return at_once(ready()), at_once(waits())

    assert asyncio.run(scenario()) == ("given", None)
    assert left == ["left"]
