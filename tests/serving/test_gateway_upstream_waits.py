"""Completions that wait for upstreams that take their time: what that may cost everybody else."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_world import World, assert_problem, world_at
from test_gateway_chat import ASK, PATH, set_upstream
from test_gateway_crowded import client, eventually
from test_gateway_storm import serving
from upstream_server import UpstreamServer, completion, plain, running

from idiolect_services.gateway.statuses import StatusError
from idiolect_services.gateway.upstream_places import UpstreamPlaces

SECONDS = 30.0
ONE = ASK | {"n": 1}
MOST = 8  # requests; so 4 completions, and 2 of one tenant


@pytest.fixture
def upstream() -> Iterator[UpstreamServer]:
    with running() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, empty_database: Path, upstream: UpstreamServer) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, upstream_hosts=upstream.origin, upstream_seconds=SECONDS, max_requests=MOST) as made:
        set_upstream(made, upstream)
        yield made


@contextmanager
def held(upstream: UpstreamServer) -> Iterator[Callable[[], None]]:
    """It answers nothing before it is let go."""
    let_go = threading.Event()

    def answer(body: dict[str, Any], number: int) -> Any:
        let_go.wait(SECONDS)
        return plain(200, completion("late"))

    upstream.answer = answer
    try:
        yield let_go.set
    finally:
        let_go.set()


def test_an_upstream_that_hangs_takes_no_places_from_rankings(world: World, upstream: UpstreamServer) -> None:
    key = world.key()
    with serving(world.app) as port, ThreadPoolExecutor(2) as pool, client(port, key) as http:
        with held(upstream) as let_go:
            waiting = [pool.submit(http.post, PATH, json=ONE) for _ in range(2)]
            assert eventually(lambda: len(upstream.bodies) == 2)
            for _ in range(MOST):
                refused = http.post(PATH, json=ONE)
                assert_problem(refused, 429, "share_exceeded")
                assert int(refused.headers["retry-after"]) >= 1
                assert http.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 200
            let_go()
            assert [one.result(SECONDS).status_code for one in waiting] == [200, 200]
        assert http.post(PATH, json=ONE).status_code == 200
        assert len(upstream.bodies) == 3


def test_all_tenants_together_have_half_of_the_places() -> None:
    places = UpstreamPlaces(MOST)
    with places.one("a"), places.one("a"), places.one("b"):
        with places.one("b"):
            with pytest.raises(StatusError) as refused, places.one("c"):
                pass
            assert (refused.value.status, refused.value.code) == (503, "overloaded")
        with places.one("c"):
            pass
        with pytest.raises(StatusError) as refused, places.one("a"):
            pass
        assert (refused.value.status, refused.value.code) == (429, "share_exceeded")
    with UpstreamPlaces(1).one("a"):
        pass


def test_when_the_client_goes_away_the_upstream_is_hung_up_on(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "x.db")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        upstream = UpstreamServer(port=listener.getsockname()[1])
        with world_at(tmp_path, upstream_hosts=upstream.origin, upstream_seconds=2 * SECONDS) as world:
            set_upstream(world, upstream)
            with serving(world.app) as port:
                asked, _ = _ask_and_go(port, world.key(), listener)
                asked.settimeout(SECONDS)  # half of what the upstream may take
                with asked, suppress(ConnectionError):
                    while asked.recv(65536):
                        pass


def _ask_and_go(port: int, key: str, listener: socket.socket) -> tuple[socket.socket, Any]:
    """The connection that the upstream got, after whoever caused it has gone."""
    request = httpx.Request(
        "POST", f"http://127.0.0.1:{port}{PATH}", json=ASK, headers={"Authorization": f"Bearer {key}"}
    )
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(head.encode() + b"\r\n" + request.read())
        return listener.accept()


def test_a_request_says_how_long_it_waits_for_the_upstream(world: World, upstream: UpstreamServer) -> None:
    api = world.api(world.key())
    with held(upstream):
        late = api.post(PATH, ASK, headers={"Idiolect-Timeout-Ms": "50"})
    assert "0.05 seconds" in assert_problem(late, 504, "upstream_timeout")["detail"]


def test_a_time_that_is_none_is_refused_before_the_upstream_costs_anything(
    world: World, upstream: UpstreamServer
) -> None:
    refused = world.api(world.key()).post(PATH, ASK, headers={"Idiolect-Timeout-Ms": "soon"})
    assert_problem(refused, 422, "invalid_input")
    assert upstream.bodies == []
