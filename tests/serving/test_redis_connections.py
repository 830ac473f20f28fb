"""No connection to Redis is used again with an answer on its way to somebody else: whoever asks next gets their own.

Between us and a real Redis stands a proxy that holds answers back, or cuts them off in the middle. For every way in
which Redis is used: counters of rate limits, which are cancelled with their request, and what waits on a thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from idiolect.clock import SystemClock
from idiolect.settings import Settings
from idiolect.stores.redis.link import REST_SECONDS, RedisLink
from idiolect.tenancy import Caller, Scope
from idiolect_services import stream_tail
from idiolect_services.bench.reset_fleet import RedisServer
from idiolect_services.gateway import limits
from idiolect_services.gateway.limits import RateLimits
from idiolect_services.gateway.marks import Marks, log
from idiolect_services.purge_hints import STREAM, RedisHints
from idiolect_services.vault import Vault

# Who is cut off while connecting leaves the socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

LONG = 60.0
LIMIT = 1000


def eventually(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LONG
    while not done() and time.monotonic() < deadline:
        time.sleep(0.005)
    return done()


class Proxy:
    """`hold` keeps answers back, and `held` counts the pieces that it has kept. `cut`: of the next answer only the
    first bytes come, and then the end of the connection. `delay` is asked before each answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._open = threading.Event()
        self._open.set()
        self.held = 0
        self.cut = False
        self.delay: Callable[[], float] = lambda: 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        self.held = 0
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.let_go()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                server.connect(str(self._path))
                for pump in (self._questions, self._answers):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _questions(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while said := client.recv(1 << 16):
                server.sendall(said)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            self._pass_on(client, server)
            client.shutdown(socket.SHUT_RDWR)  # closed alone it would stay open for the other thread

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while said := server.recv(1 << 16):
            if not self._open.is_set():
                self.held += 1
                self._open.wait(LONG)
            time.sleep(self.delay())
            if self.cut:
                self.cut = False
                client.sendall(said[: len(said) // 2])
                return
            client.sendall(said)


@pytest.fixture
def proxy(redis: RedisServer, client: Any) -> Iterator[Proxy]:
    made = Proxy(redis._path)
    yield made
    made.close()


class Uptime:
    """That of a process which has rested as soon as it is told so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def rest(self) -> None:
        self.now += REST_SECONDS


# --- counters, on the event loop --------------------------------------------------------------------------------------


def caller(name: str) -> Caller:
    return Caller("acme", frozenset({Scope.INFER}), name)


def left(headers: list[tuple[bytes, bytes]]) -> int:
    return int(dict(headers)[b"ratelimit"].decode().split("r=")[1].split(";")[0])


@pytest.mark.parametrize("ends", ["cancelled", "late", "cut off"])
def test_whoever_counts_after_one_that_was_ended_in_the_middle_gets_their_own_count(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(limits, "REDIS_SECONDS", 0.1 if ends == "late" else LONG)
    monkeypatch.setattr(limits, "REST_SECONDS", 0.0)

    async def scenario() -> None:
        limit = RateLimits.of(Settings(home=tmp_path, redis_url=proxy.url, key_rate_limit=f"{LIMIT}/hour"))
        for number in range(5):
            assert left(await limit.take(caller("ann"))) == LIMIT - 1 - number
        for number in range(10):
            if ends == "cut off":
                proxy.cut = True
                await limit.take(caller("ann"))  # sent again, or counted here for once
            else:
                proxy.hold()
                asking = asyncio.ensure_future(limit.take(caller("ann")))
                await asyncio.to_thread(eventually, lambda: proxy.held > 0)
                if ends == "cancelled":
                    asking.cancel()
                    with suppress(asyncio.CancelledError):
                        await asking
                else:
                    await asking
                proxy.let_go()
            others = [caller(f"other-{number}-{index}") for index in range(4)]
            counts = await asyncio.gather(*(limit.take(one) for one in others))
            assert [left(count) for count in counts] == [LIMIT - 1] * len(others)
        await limit.close()

    asyncio.run(scenario())


# --- what waits on a thread -------------------------------------------------------------------------------------------


@pytest.fixture
def link(proxy: Proxy) -> Iterator[tuple[RedisLink, Uptime]]:
    uptime = Uptime()
    made = RedisLink(proxy.url, log, "nothing", monotonic=uptime, answer_seconds=0.1)
    yield made, uptime
    made.close()


def asked(link: RedisLink, name: str) -> bytes | None:
    return link.ask(lambda client: client.get(name))


@pytest.mark.parametrize("ends", ["late", "cut off"])
def test_an_answer_that_came_too_late_or_in_part_is_nobodys(
    proxy: Proxy, client: Any, link: tuple[RedisLink, Uptime], ends: str
) -> None:
    client.mset({"mine": "mine", "yours": "yours"})
    one, uptime = link
    for _ in range(5):
        assert eventually(lambda: uptime.rest() or asked(one, "mine") == b"mine")
        if ends == "late":
            proxy.hold()
        else:
            proxy.cut = True
        assert asked(one, "mine") is None
        proxy.let_go()
        assert asked(one, "yours") is None  # it rests
        assert eventually(lambda: uptime.rest() or asked(one, "yours") == b"yours")


def test_of_many_that_ask_at_once_through_a_slow_line_nobody_gets_anothers(
    proxy: Proxy, client: Any, link: tuple[RedisLink, Uptime]
) -> None:
    names = [f"name-{number}" for number in range(8)]
    client.mset({name: name for name in names})
    one, uptime = link
    chance = random.Random(7)
    proxy.delay = lambda: chance.choice((0.0, 0.0, 0.0, 0.12))

    def ask(name: str) -> set[bytes | None]:
        answers = set()
        for _ in range(40):
            uptime.rest()
            answers.add(asked(one, name))
        return answers

    with ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(ask, names))
    assert all(answers <= {None, name.encode()} for name, answers in zip(names, found, strict=True))
    assert set().union(*found) > {None}  # of both kinds there were some
    proxy.delay = lambda: 0.0
    assert eventually(lambda: uptime.rest() or asked(one, "name-0") == b"name-0")


def test_a_mark_whose_answer_was_late_refuses_nobody_else(
    proxy: Proxy, client: Any, link: tuple[RedisLink, Uptime]
) -> None:
    one, uptime = link
    marks = Marks(one, Vault(b"\x02" * 32), SystemClock())
    for number in range(5):
        proxy.hold()
        late = marks.of_request("acme", "", f"late-{number}", b"f" * 32)
        late.put()  # not refused, and goes on to SQL
        proxy.let_go()
        uptime.rest()
        late.remove()
        uptime.rest()
        before = set(client.scan_iter())
        marks.of_request("acme", "", f"next-{number}", b"f" * 32).put()
        assert len(set(client.scan_iter()) - before) == 1  # it was set, and heard its own answer


def test_a_follower_whose_answer_was_cut_off_or_late_reads_on_from_where_it_was(
    proxy: Proxy, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_tail, "BLOCK_SECONDS", 0.05)
    monkeypatch.setattr(stream_tail, "ANSWER_SECONDS", 0.2)
    came: list[int | None] = []
    hints = RedisHints(proxy.url)
    hints.start(came.append)
    assert eventually(lambda: came == [None])
    for place in range(1, 7):
        if place % 2:
            proxy.hold()
        else:
            proxy.cut = True
        client.xadd(STREAM, {"seq": place})
        if place % 2:
            assert eventually(lambda: proxy.held > 1)  # it has given up, and asked again
            proxy.let_go()
        assert eventually(lambda place=place: came[-1] == place)  # type: ignore[misc]
    assert [place for place in came if place is not None] == list(range(1, 7))
    hints.stop()
