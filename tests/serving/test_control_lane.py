"""What people decide about themselves is done while everything else that the server has to do is stuck."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_world import DOCUMENTS, Api, World, assert_problem, world_at

from idiolect.registry.resolution import Resolution
from idiolect.tenancy import Scope, hash_secret

PATIENCE = 20.0  # seconds; what it is given to a test that would hang
ME = "/v1/users/ann"


class Stuck:
    """Calls of a store's method, those that `concern` it, until `go_on`."""

    def __init__(self, store: Any, name: str, concerns: Callable[..., bool] = lambda *_: True) -> None:
        self.inside = 0
        self._go_on = threading.Event()
        real = getattr(store, name)

        def stuck(*asked: Any, **named: Any) -> Any:
            if concerns(*asked):
                self.inside += 1
                assert self._go_on.wait(2 * PATIENCE)
            return real(*asked, **named)

        setattr(store, name, stuck)

    def go_on(self) -> None:
        self._go_on.set()


async def controls_are_answered(api: Api) -> None:
    """Each kind of them."""
    for method, path, body in (
        ("PUT", "/personalization", {"paused": True}),
        ("POST", "/personalization/reset", {"scope": "adapter"}),
        ("GET", "/personalization", None),
        ("DELETE", "", None),
    ):
        sent = api._send(method, ME + path, **({} if body is None else {"json": body}))
        assert (await asyncio.wait_for(sent, PATIENCE)).status_code == 200


def while_stuck(world: World, stuck: Stuck, least: int, hangs: Callable[[], list[Any]]) -> list[httpx.Response]:
    """What hangs is answered in the end."""
    api = world.api(world.key("acme", Scope.CONTROLS))

    async def scenario() -> list[httpx.Response]:
        hanging = [asyncio.create_task(one) for one in hangs()]
        try:
            while stuck.inside < least:
                await asyncio.sleep(0.001)
            await controls_are_answered(api)
            assert not any(one.done() for one in hanging)
        finally:
            stuck.go_on()
            answers = await asyncio.gather(*hanging)
        return list(answers)

    return asyncio.run(scenario())


def test_while_the_keys_of_many_rankings_wait_to_be_looked_up(world: World) -> None:
    world.opt_in("ann")
    keys = [world.key("acme", Scope.INFER) for _ in range(8)]
    hashes = {hash_secret(key) for key in keys}
    stuck = Stuck(world.store, "authenticate", lambda secret_hash: secret_hash in hashes)
    body = {"query": "q", "documents": DOCUMENTS}
    answers = while_stuck(
        world, stuck, 1, lambda: [world.api(key)._send("POST", "/v1/rerank", json=body) for key in keys]
    )
    assert {one.status_code for one in answers} == {200}


def test_while_what_operators_asked_for_takes_its_time(world: World) -> None:
    world.opt_in("ann")
    stuck = Stuck(world.store, "releases")
    api = world.api(world.key())
    answers = while_stuck(world, stuck, 2, lambda: [api._send("GET", "/v1/releases") for _ in range(8)])
    assert {one.status_code for one in answers} == {200}


def test_while_rankings_fill_the_server_and_more_of_them_are_refused(tmp_path: Path) -> None:
    with world_at(tmp_path, max_requests=2) as world:
        world.opt_in("ann")
        api, body = world.api(world.key()), {"query": "q", "documents": DOCUMENTS, "user": "ann"}
        world.app.state.gateway.pace._embedded = False  # through threads, as over a server
        stuck = Stuck(world.store, "resolve")

        def hangs() -> list[Any]:
            return [api._send("POST", "/v1/rerank", json=body) for _ in range(2)]

        answers = while_stuck(world, stuck, 2, hangs)
        assert {one.status_code for one in answers} == {200}


def test_a_ranking_beyond_the_bound_is_refused_where_a_reset_is_not(tmp_path: Path) -> None:
    with world_at(tmp_path, max_requests=1) as world:
        api, body = world.api(world.key()), {"query": "q", "documents": DOCUMENTS}
        stuck = Stuck(world.store, "authenticate")

        async def crowd() -> None:
            first = asyncio.create_task(api._send("POST", "/v1/rerank", json=body))
            while not stuck.inside:
                await asyncio.sleep(0.001)
            assert_problem(await api._send("POST", "/v1/rerank", json=body), 503, "overloaded")
            reset = asyncio.create_task(api._send("POST", f"{ME}/personalization/reset", json={"scope": "adapter"}))
            while stuck.inside < 2:
                assert not reset.done()
                await asyncio.sleep(0.001)
            also = await api._send("POST", f"{ME}/personalization/reset", json={"scope": "adapter"})
            assert_problem(also, 503, "overloaded")  # their own places are bounded too
            stuck.go_on()
            assert [(await one).status_code for one in (first, reset)] == [200, 200]

        asyncio.run(crowd())


def test_a_ranking_whose_adapter_has_to_be_loaded_resolves_it_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to find that out, and once beside the load."""
    world.opt_in("ann")
    api = world.api(world.key())
    api.rerank("ann")
    world.publish_user("ann")
    resolved: list[str | None] = []
    real = world.store.resolve

    def counted(tenant: str, subject: str | None, domain: str | None) -> Resolution:
        resolved.append(subject)
        found: Resolution = real(tenant, subject, domain)
        return found

    monkeypatch.setattr(world.store, "resolve", counted)
    assert api.rerank("ann")["personalization"]["applied"]
    assert len(resolved) == 2
