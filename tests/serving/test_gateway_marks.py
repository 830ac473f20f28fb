"""Marks of requests with an Idempotency-Key that are under way, in a real Redis: they refuse for a moment, no more."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_world import Api, World, assert_problem, world_at

from idiolect.clock import ManualClock
from idiolect.errors import UnavailableError
from idiolect.settings import Settings
from idiolect.stores.redis.link import RedisLink
from idiolect.stores.sql import SqlStore
from idiolect_services.bench.reset_fleet import RedisServer
from idiolect_services.gateway import marks as marks_module
from idiolect_services.gateway.marks import IN_USE, Marks
from idiolect_services.gateway.statuses import StatusError
from idiolect_services.vault import Vault

LONG = 60.0
KEY = {"Idempotency-Key": "k1"}
RESET = "/v1/users/ann/personalization/reset"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine too a mark lives until it is looked at."""
    monkeypatch.setattr(marks_module, "LIFE_MS", 1000 * int(LONG))


@pytest.fixture
def world(tmp_path: Path, redis: RedisServer, client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """As over Postgres: with a store that is not at hand."""
    monkeypatch.setattr(SqlStore, "embedded", False)
    monkeypatch.setattr(marks_module, "ANSWER_SECONDS", LONG)
    with world_at(tmp_path, redis_url=redis.url) as made:
        made.opt_in("ann")
        yield made


def signal_for(world: World, **fields: Any) -> dict[str, Any]:
    shown = world.api(world.key()).rerank("ann")["id"]
    return {"inference_id": shown, "kind": "choice", "value": 3, "user": "ann", **fields}


class Held:
    """The store's `add_feedback`, which waits until it is let go; and how often keys were claimed."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.claims = 0
        add, claim = world.store.add_feedback, world.store.claim_key

        def held(*given: Any) -> Any:
            self.entered.set()
            assert self.let_go.wait(LONG)
            return add(*given)

        def counted(*given: Any) -> Any:
            self.claims += 1
            return claim(*given)

        monkeypatch.setattr(world.store, "add_feedback", held)
        monkeypatch.setattr(world.store, "claim_key", counted)

    async def under_way(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, LONG)


def send(api: Api, body: dict[str, Any]) -> asyncio.Task[httpx.Response]:
    return asyncio.ensure_future(api._send("POST", "/v1/feedback", json=body, headers=KEY))


def test_the_same_request_is_refused_without_sql_while_the_first_is_under_way_and_answered_after(
    world: World, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, body = world.api(world.key()), signal_for(world)
    held = Held(world, monkeypatch)

    async def scenario() -> tuple[httpx.Response, list[httpx.Response], httpx.Response]:
        first = send(api, body)
        await held.under_way()
        storm = [await send(api, body) for _ in range(20)]
        assert held.claims == 1
        said = b"".join(client.keys() + [client.get(name) for name in client.keys("idiolect:mark:*")])
        assert not [word for word in (b"acme", b"k1", b"ann", world.pseudonym("acme", "ann").encode()) if word in said]
        held.let_go.set()
        return await first, storm, await send(api, body)

    first, storm, again = asyncio.run(scenario())
    for refused in storm:
        assert_problem(refused, 409, IN_USE)
        assert refused.headers["retry-after"] == "1"
    assert first.json()["status"] == "accepted"
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert client.keys("idiolect:mark:*") == []


def test_another_request_of_the_same_key_is_judged_by_sql(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only SQL says 422, which is final: what is under way here might itself be refused."""
    api, body = world.api(world.key()), signal_for(world)
    held = Held(world, monkeypatch)

    async def scenario() -> None:
        first = send(api, body)
        await held.under_way()
        assert_problem(await send(api, body | {"value": 4}), 422, "idempotency_key_reused")
        assert held.claims == 2
        held.let_go.set()
        assert (await first).status_code == 202

    asyncio.run(scenario())


def test_keys_of_tenants_and_of_end_users_do_not_meet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.opt_in("ann", tenant="other")
    tenant, body = world.api(world.key()), signal_for(world)
    mine = world.api(tenant.post("/v1/tokens", {"user": "ann", "scopes": ["infer", "feedback"]}).json()["token"])
    other = world.api(world.key("other"))
    elsewhere = {**body, "inference_id": other.rerank("ann")["id"]}
    held = Held(world, monkeypatch)

    async def scenario() -> list[int]:
        first = send(tenant, body)
        await held.under_way()
        others = [send(mine, body), send(other, elsewhere)]
        while held.claims < 3:
            await asyncio.sleep(0.005)
        held.let_go.set()
        return [(await one).status_code for one in (first, *others)]

    assert asyncio.run(scenario()) == [202, 202, 202]


def test_resets_that_are_sent_twice_at_once_both_succeed(world: World, client: Any) -> None:
    api = world.api(world.key())

    async def scenario() -> list[httpx.Response]:
        both = [api._send("POST", RESET, json={"scope": "all"}, headers=KEY) for _ in range(2)]
        return list(await asyncio.gather(*both))

    answers = asyncio.run(scenario())
    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.json()["generation"] for answer in answers} == {1}
    assert client.keys("idiolect:mark:*") == []


def test_a_request_that_failed_or_was_cancelled_leaves_no_mark(
    world: World, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, body = world.api(world.key()), signal_for(world)

    def gone(*_: object) -> None:
        raise UnavailableError("gone.")

    for name in ("add_feedback", "claim_key"):
        with monkeypatch.context() as patch:
            patch.setattr(world.store, name, gone)
            assert api.post("/v1/feedback", body, headers=KEY).status_code == 503
        assert client.keys("idiolect:mark:*") == []
    held = Held(world, monkeypatch)

    async def scenario() -> httpx.Response:
        first = send(api, body)
        await held.under_way()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        while client.keys("idiolect:mark:*"):
            await asyncio.sleep(0.005)
        held.let_go.set()
        return await send(api, body)

    assert asyncio.run(scenario()).json()["status"] in ("accepted", "duplicate")


# --- what Redis may do ------------------------------------------------------------------------------------------------


@contextmanager
def marks_on(url: str, clock: ManualClock | None = None, master: bytes = b"\x02" * 32) -> Iterator[Marks]:
    link = RedisLink(url, marks_module.log, "nothing is marked", answer_seconds=LONG)
    made = Marks(link, Vault(master), clock or ManualClock())
    yield made
    made.close()


def refused(put: Callable[[], None]) -> bool:
    try:
        put()
    except StatusError as error:
        return error.code == IN_USE
    return False


def test_whoever_crashed_refuses_others_until_the_mark_ends_and_not_if_redis_keeps_it_longer(
    redis: RedisServer, client: Any
) -> None:
    clock = ManualClock()
    with marks_on(redis.url, clock) as marks:
        crashed = marks.of_request("acme", "", "k", b"f" * 32)
        crashed.put()
        (name,) = client.keys("idiolect:mark:*")
        assert 0 < client.pttl(name) <= marks_module.LIFE_MS
        client.persist(name)
        assert refused(marks.of_request("acme", "", "k", b"f" * 32).put)
        clock.advance(timedelta(milliseconds=marks_module.LIFE_MS))
        assert not refused(marks.of_request("acme", "", "k", b"f" * 32).put)


def test_only_its_own_mark_is_removed(redis: RedisServer, client: Any) -> None:
    with marks_on(redis.url) as marks:
        first, second = (marks.of_request("acme", "", "k", b"f" * 32) for _ in range(2))
        first.put()
        client.flushall()
        second.put()
        first.remove()
        assert refused(marks.of_request("acme", "", "k", b"f" * 32).put)
        second.remove()
        assert client.keys() == []


def test_a_mark_that_is_put_after_its_request_has_ended_is_not_put(redis: RedisServer, client: Any) -> None:
    with marks_on(redis.url) as marks:
        late = marks.of_request("acme", "", "k", b"f" * 32)
        late.remove()
        late.put()
        assert client.keys() == []


def test_marks_that_do_not_verify_refuse_nobody(redis: RedisServer, client: Any) -> None:
    """Nonsense, a mark of another installation, of another key, of another tenant, another bit, something else."""
    with marks_on(redis.url) as marks, marks_on(redis.url, master=b"\x03" * 32) as foreign:

        def made_by(one: Marks, tenant: str = "acme", key: str = "k") -> tuple[bytes, bytes]:
            client.flushall()
            one.of_request(tenant, "", key, b"f" * 32).put()
            (name,) = client.keys()
            return name, client.get(name)

        name, right = made_by(marks)
        lies: list[Any] = [b"", b"x", right[:-1], right + b"0", b"\xff" * len(right)]
        lies += [right[:index] + bytes([right[index] ^ 1]) + right[index + 1 :] for index in (0, 7, 8, 20, 40)]
        lies += [made_by(foreign)[1], made_by(marks, key="l")[1], made_by(marks, tenant="other")[1]]
        for lie in lies:
            client.flushall()
            client.set(name, lie)
            assert not refused(marks.of_request("acme", "", "k", b"f" * 32).put)
        client.set(name, right)
        assert refused(marks.of_request("acme", "", "k", b"f" * 32).put)
        client.delete(name)
        client.rpush(name, "x")
        assert not refused(marks.of_request("acme", "", "k", b"f" * 32).put)


@pytest.mark.parametrize("trouble", ["flushed", "killed", "stopped"])
def test_without_redis_requests_are_answered_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(SqlStore, "embedded", False)
    folder = tmp_path / "r"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    with world_at(tmp_path, redis_url=server.url) as world:
        world.opt_in("ann")
        api, body = world.api(world.key()), signal_for(world)
        held = Held(world, monkeypatch)

        async def scenario() -> list[httpx.Response]:
            first = send(api, body)
            await held.under_way()
            if trouble == "flushed":
                server.flush()
            elif trouble == "killed":
                server.stop()
            else:
                server.signal(signal.SIGSTOP)
            second = send(api, body)
            while held.claims < 2:  # it gets as far as SQL
                await asyncio.sleep(0.005)
            held.let_go.set()
            return [await first, await second]

        answers = asyncio.run(scenario())
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].json()["id"] == answers[1].json()["id"]
    server.signal(signal.SIGCONT)
    server.stop()


def test_a_store_at_hand_is_asked_without_a_mark(tmp_path: Path, redis: RedisServer) -> None:
    with world_at(tmp_path, redis_url=redis.url) as world:
        assert world.app.state.gateway.marks is None
    assert Marks.of(Settings(home=tmp_path), Vault(b"\x02" * 32), ManualClock()) is None
