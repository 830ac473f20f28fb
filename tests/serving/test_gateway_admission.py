"""However many requests come, so many are under way; the others are told to come again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serving_world import World, assert_problem, world_at

PATH = "/v1/releases"


class Held:
    """Requests that stay under way until they are let go."""

    def __init__(self, world: World) -> None:
        self.gate = asyncio.Event()
        self.entered = 0
        authenticator = world.app.state.gateway.authenticator
        caller = authenticator.caller

        async def slow(header: str | None, **more: bool) -> object:
            self.entered += 1
            await self.gate.wait()
            return await caller(header, **more)

        authenticator.caller = slow


def test_what_is_over_the_bound_is_refused_at_once_and_what_is_under_way_is_finished(tmp_path: Path) -> None:
    with world_at(tmp_path, max_requests=2) as world:
        key = world.key()

        async def crowd() -> None:
            held, api = Held(world), world.api(key)
            first = [asyncio.create_task(api._send("GET", PATH)) for _ in range(2)]
            while held.entered < 2:
                await asyncio.sleep(0)
            refused = await api._send("GET", PATH)
            assert_problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert (await api._send("GET", "/healthz")).status_code == 200
            assert (await api._send("GET", "/readyz")).status_code == 200
            assert held.entered == 2
            held.gate.set()
            assert [(await task).status_code for task in first] == [200, 200]
            assert (await api._send("GET", PATH)).status_code == 200

        asyncio.run(crowd())


def test_a_client_that_goes_away_leaves_its_place(tmp_path: Path) -> None:
    with world_at(tmp_path, max_requests=1) as world:
        key = world.key()

        async def leave() -> None:
            held, api = Held(world), world.api(key)
            task = asyncio.create_task(api._send("GET", PATH))
            while not held.entered:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            held.gate.set()
            assert (await api._send("GET", PATH)).status_code == 200

        asyncio.run(leave())
