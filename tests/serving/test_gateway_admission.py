"""However many requests come, so many are under way; the others are told to come again."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from serving_world import World, assert_problem, world_at
from starlette.types import Receive, Scope, Send
from test_gateway_storm import serving

from idiolect_services.gateway.edge import Edge

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


POST = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n"
LAST = b"GET /v1/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def refused_with(status: int, *pieces: bytes) -> list[bytes]:
    """All that a client gets for these, of a server that reads no body and answers with this status."""

    async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with serving(Edge(refuse)) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        answers = []
        for piece in pieces:
            connection.sendall(piece)
            answers.append(b"")
            while not answers[-1].endswith(b"\r\n\r\n") and (more := connection.recv(65536)):
                answers[-1] += more
            if b"connection: close" in answers[-1]:
                assert connection.recv(65536) == b""
                break
        return answers


@pytest.mark.parametrize("status", [429, 503])
def test_whoever_is_to_come_again_comes_over_the_same_connection(status: int) -> None:
    first, second, last = refused_with(status, POST + b"\r\n{}{}", POST + b"\r\n{}{}", LAST)
    for answer in (first, second, last):
        assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" not in first + second


@pytest.mark.parametrize(
    ("status", "rest"),
    [(503, b"\r\n{}"), (503, b"Expect: 100-continue\r\n\r\n"), (503, b"\r\n"), (401, b"\r\n{}{}")],
    ids=["half a body", "a body that waits to be asked for", "no body yet", "a caller that is not to come again"],
)
def test_a_refusal_waits_for_no_body_and_then_closes(status: int, rest: bytes) -> None:
    (only,) = refused_with(status, POST + rest, LAST)
    assert only.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in only
