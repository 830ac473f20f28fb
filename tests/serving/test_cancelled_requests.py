"""A request that is cancelled, at whichever moment, leaves every connection as it was, over a real Postgres and Redis.

Each request is sent as often as it waits for something, and is cut off one wait later each time. The next one who uses
a connection must not meet a transaction that is open, a lock that is held, or an answer that was somebody else's.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx
import pytest
import redis as redis_client
from fastapi import FastAPI

from idiolect.settings import Settings
from idiolect.tenancy import Caller, Scope
from idiolect_services.bench.postgres_server import BenchPostgres
from idiolect_services.bench.reset_fleet import stores
from idiolect_services.bench.reset_home import DOCUMENTS, DOMAIN, QUERY, TENANT, People, replica_settings
from idiolect_services.gateway import limits, marks
from idiolect_services.gateway.limits import RateLimits
from idiolect_services.serving import create_server_app
from idiolect_services.wiring import Installation, open_installation

# Who is cut off while connecting leaves the socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

LONG = 60.0
MOST_WAITS = 200
LIMIT = 100_000
_OPEN = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'idiolect' AND state LIKE 'idle in transaction%'"
)
CONSENT = "/v1/users/{user}/personalization"


class CutAt:
    """Awaits a coroutine, whose task is cancelled as it waits for the `wait`-th time. `waits` counts them."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], wait: int) -> None:
        self._coroutine, self._wait = coroutine, wait
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        go_on: Callable[[Any], Any] = self._coroutine.send
        given: Any = None
        while True:
            try:
                waits_for = go_on(given)
            except StopIteration as done:
                return done.value
            if self.waits == self._wait:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            self.waits += 1
            try:
                go_on, given = self._coroutine.send, (yield waits_for)
            except BaseException as error:
                go_on, given = self._coroutine.throw, error


async def cut_at_every_wait(act: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[], Awaitable[None]]) -> int:
    """How often `act` waits. After each that was cut off, `check`."""
    for wait in range(MOST_WAITS):
        cut = CutAt(act(), wait)

        async def cut_off(cut: CutAt = cut) -> Any:
            return await cut

        with suppress(asyncio.CancelledError):
            await asyncio.create_task(cut_off())
        if cut.waits <= wait:
            return cut.waits
        await check()
    raise AssertionError("it waits without end")


@dataclass
class Server:
    """One process' app over shared stores, asked without a socket."""

    app: FastAPI
    installation: Installation
    people: People
    secret: str
    postgres: BenchPostgres
    redis: Any  # a client past the servers'

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secret}", **{n.replace("_", "-"): v for n, v in headers.items()}}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            return await client.request(method, path, json=body)

    async def rank(self, user: str, query: str = QUERY) -> dict[str, Any]:
        body = {"query": query, "documents": DOCUMENTS, "user": user, "domain": DOMAIN}
        response = await self.send("POST", "/v1/rerank", body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def pools(self) -> list[Any]:
        store: Any = self.installation.store
        return [store._database.engine.pool, store._database.key_store._database.engine.pool]

    async def is_at_rest(self) -> None:
        """What nobody waits for any more still runs to its end, on its thread; then nothing is left open."""
        deadline = time.monotonic() + LONG
        while any(pool.checkedout() for pool in self.pools()):
            assert time.monotonic() < deadline, "a connection was not given back"
            await asyncio.sleep(0.005)
        # Nobody waits for the commit of what only read, so it may still be on its way.
        while self.postgres.ask(_OPEN) != ["0"]:
            assert time.monotonic() < deadline, "a transaction was left open"
            await asyncio.sleep(0.005)
        while self.redis.keys("idiolect:mark:*"):
            assert time.monotonic() < deadline, "a mark of a request that was cut off was left"
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("cancelled") / "home"
    with ExitStack() as running:
        postgres, database_url, redis = running.enter_context(stores())
        settings = replica_settings(home, database_url, redis.url)
        settings = settings.model_copy(update={"key_rate_limit": f"{LIMIT}/hour"})
        installation = running.enter_context(open_installation(settings))
        people = People(installation, 8)
        secret = people.settle()
        patch = running.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(marks, "ANSWER_SECONDS", LONG)
        patch.setattr(marks, "LIFE_MS", int(10 * LONG * 1000))  # no mark ends by itself
        app = create_server_app(installation)
        client = running.enter_context(redis_client.Redis.from_url(redis.url, protocol=2))
        yield Server(app, installation, people, secret, postgres, client)
        app.state.gateway.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limits, "REDIS_SECONDS", LONG)  # on a busy machine too it is Redis that counts
    yield
    gc.collect()  # here, where it may warn, and not in the middle of another test


def test_rankings_feedback_consent_and_resets_that_are_cut_off_leave_postgres_as_it_was(server: Server) -> None:
    ann, bob = server.people.users[:2]
    numbers = count()

    async def scenario() -> dict[str, int]:
        shown = await server.rank(ann)
        known = {"generation": 0, "strength": 1.0}

        async def new_texts() -> None:
            await server.rank(ann, f"new {next(numbers)}")

        async def feed_back() -> None:
            signal = {"inference_id": shown["id"], "user": ann, "kind": "choice", "value": 0}
            await server.send("POST", "/v1/feedback", signal, Idempotency_Key=f"once-{next(numbers)}")

        async def agree() -> None:
            known["strength"] = (next(numbers) % 100) / 100
            await server.send("PUT", CONSENT.format(user=ann), {"strength": known["strength"]})

        async def reset() -> None:
            await server.send("POST", CONSENT.format(user=ann) + "/reset", {"scope": "adapter"})

        async def check() -> None:
            """The next one gets their own answer, and what was cut off is done or not."""
            await server.is_at_rest()
            said = await server.rank(bob)
            assert (len(said["results"]), said["personalization"]["generation"]) == (len(DOCUMENTS), 0)
            state = (await server.send("GET", CONSENT.format(user=ann))).json()
            assert state["opted_in"]
            assert state["generation"] >= known["generation"]
            known["generation"] = state["generation"]

        acts = {"new texts": new_texts, "feedback": feed_back, "consent": agree, "reset": reset}
        waits = {name: await cut_at_every_wait(act, check) for name, act in acts.items()}
        await server.app.state.gateway.limits.close()
        return waits

    waits = asyncio.run(scenario())
    assert all(number > 1 for number in waits.values()), waits
    state = server.installation.store.subject(TENANT, server.installation.pseudonym(TENANT, ann))
    assert state.generation > 0  # the last of them was not cut off


def test_counters_that_are_cut_off_leave_nobodys_answer_in_a_connection_to_redis(server: Server) -> None:
    """The next one who uses the connection would take it for their own."""
    url = server.installation.settings.redis_url
    keys = (f"cut-{number}" for number in count())

    async def scenario() -> int:
        settings = Settings(home=server.installation.root, redis_url=url, key_rate_limit=f"{LIMIT}/hour")
        limit = RateLimits.of(settings)
        steady = Caller(TENANT, frozenset({Scope.INFER}), "steady")
        expected = LIMIT

        async def take() -> None:
            caller = Caller(TENANT, frozenset({Scope.INFER}), next(keys))
            for _ in range(3):
                await limit.take(caller)

        async def check() -> None:
            nonlocal expected
            for _ in range(3):
                expected -= 1
                assert _left(await limit.take(steady)) == expected

        waits = await cut_at_every_wait(take, check)
        others = [Caller(TENANT, frozenset({Scope.INFER}), f"other-{number}") for number in range(8)]
        assert {_left(headers) for headers in await asyncio.gather(*map(limit.take, others))} == {LIMIT - 1}
        await limit.close()
        return waits

    assert asyncio.run(scenario()) > 3


def _left(headers: list[tuple[bytes, bytes]]) -> int:
    value = dict(headers)[b"ratelimit"].decode()
    return int(value.split("r=")[1].split(";")[0])


def test_the_tool_cuts_where_it_says() -> None:
    done: list[int] = []

    async def act() -> None:
        for number in range(3):
            await asyncio.sleep(0)
            done.append(number)

    async def check() -> None:
        done.append(-1)

    assert asyncio.run(cut_at_every_wait(act, check)) == 3
    assert done == [-1, 0, -1, 0, 1, -1, 0, 1, 2]
