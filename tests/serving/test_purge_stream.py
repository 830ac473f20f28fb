"""The stream of the purge log in a real Redis, which is flushed, trimmed, stopped, killed, replaced and poisoned."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_purging import Log

from idiolect.clock import SystemClock
from idiolect.errors import ConfigurationError
from idiolect_services import purging, stream_tail
from idiolect_services.bench.reset_fleet import RedisServer
from idiolect_services.purge_hints import STREAM, RedisHints
from idiolect_services.purging import PurgeFollower, redis_hints

LONG = 60.0


def eventually(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LONG
    while not done() and time.monotonic() < deadline:
        time.sleep(0.005)
    return done()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """It notices sooner that nothing came, and that it is to stop."""
    monkeypatch.setattr(stream_tail, "BLOCK_SECONDS", 0.1)


@pytest.fixture
def listener(redis: RedisServer, client: Any) -> Iterator[tuple[RedisHints, list[int | None]]]:
    hints, came = RedisHints(redis.url), list[int | None]()
    hints.start(came.append)
    assert eventually(lambda: came == [None])  # it begins by asking
    came.clear()
    yield hints, came
    hints.stop()


Listener = tuple[RedisHints, list[int | None]]


def test_an_entry_says_a_place_and_nothing_of_anybody(listener: Listener, client: Any) -> None:
    hints, came = listener
    hints.publish(7)
    assert eventually(lambda: came == [7])
    assert [fields for _, fields in client.xrange(STREAM)] == [{b"seq": b"7"}]


def test_a_connection_that_is_lost_loses_nothing_and_asks_for_nothing(listener: Listener, client: Any) -> None:
    _, came = listener
    client.xadd(STREAM, {"seq": 7})
    assert eventually(lambda: came == [7])
    for place in (8, 9):
        client.client_kill_filter(_type="normal", skipme=True)
        client.xadd(STREAM, {"seq": place})
        assert eventually(lambda place=place: came[-1] == place)  # type: ignore[misc]
    assert came == [7, 8, 9]


@pytest.mark.parametrize("lost", ["flushed", "trimmed", "younger"])
def test_a_stream_without_the_entry_that_was_read_last_is_not_believed_to_be_all(
    listener: Listener, client: Any, lost: str
) -> None:
    """And is followed from then on, also where its entries are older than the cursor."""
    _, came = listener
    client.xadd(STREAM, {"seq": 7})
    assert eventually(lambda: came == [7])
    if lost == "trimmed":
        client.xtrim(STREAM, maxlen=0, approximate=False)
    else:
        client.flushall()
    if lost == "younger":
        client.xadd(STREAM, {"seq": 8}, id="5-1")
    found = [7, None, *([8] if lost == "younger" else [])]
    assert eventually(lambda: came == found)
    client.xadd(STREAM, {"seq": 9}, id="5-2" if lost == "younger" else "*")
    assert eventually(lambda: came == [*found, 9])


@pytest.mark.parametrize(
    "fields",
    [
        {"new": "1"},
        {"seq": ""},
        {"seq": "-4"},
        {"seq": "9" * 5000},
        {"seq": "1e3"},
        {"seq": "\N{DEVANAGARI DIGIT ONE}"},
    ],
    ids=["none", "empty", "negative", "endless", "a float", "another script"],
)
def test_nonsense_asks_the_log(listener: Listener, client: Any, fields: dict[str, str]) -> None:
    _, came = listener
    client.xadd(STREAM, fields)
    assert eventually(lambda: came == [None])
    client.xadd(STREAM, {"seq": 2})
    assert eventually(lambda: came == [None, 2])


def test_a_place_below_the_one_before_asks_the_log(listener: Listener, client: Any) -> None:
    _, came = listener
    for place, told in ((10**17, 10**17), (3, None), (4, 4)):
        client.xadd(STREAM, {"seq": place})
        assert eventually(lambda told=told: came[-1:] == [told])  # type: ignore[misc]
    assert came == [10**17, None, 4]


def test_something_else_of_that_name_stops_no_process(listener: Listener, client: Any) -> None:
    hints, came = listener
    client.delete(STREAM)
    client.set(STREAM, "x")
    hints.publish(3)  # raises nothing
    client.delete(STREAM)
    client.xadd(STREAM, {"seq": 4})
    assert eventually(lambda: came[-1:] == [4])


def test_a_redis_that_is_stopped_or_killed_is_followed_again(redis: RedisServer, listener: Listener) -> None:
    hints, came = listener
    redis.signal(signal.SIGSTOP)
    hints.publish(1)  # raises nothing
    redis.signal(signal.SIGCONT)
    redis.stop()
    hints.publish(2)
    redis.start()

    def told() -> bool:
        hints.publish(3)
        return 3 in came

    assert eventually(told)


def test_whatever_the_stream_holds_every_purge_is_found(
    redis: RedisServer, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, while somebody writes lies and flushes."""
    monkeypatch.setattr(purging, "POLL_SECONDS", 0.05)
    log = Log()
    gone: tuple[list[str], list[str]] = ([], [])

    def process(mine: list[str]) -> PurgeFollower:
        hints = RedisHints(redis.url)
        return PurgeFollower(log, lambda _tenant, subject: mine.append(subject), SystemClock(), hints=hints)

    processes = [process(mine) for mine in gone]
    for one in processes:
        one.start()
    lies: list[Callable[[], object]] = [
        lambda: client.xadd(STREAM, {"seq": 0}),
        lambda: client.xadd(STREAM, {"seq": 10**17}),
        lambda: client.xadd(STREAM, {"seq": "all"}),
        client.flushall,
        lambda: client.set(STREAM, "x"),
        client.flushall,
        lambda: client.xadd(STREAM, {"seq": 1}, id=f"{2**64 - 1}-{2**64 - 1}"),  # the last that a stream can take
    ]
    for number, lie in enumerate(lies):
        log.add(f"person-{number}")
        lie()
        processes[number % 2].announce()
        assert eventually(lambda number=number: all(len(mine) == number + 1 for mine in gone))  # type: ignore[misc]
    assert gone[0] == gone[1] == [f"person-{number}" for number in range(len(lies))]
    assert [one.cursor for one in processes] == [len(lies)] * 2
    for one in processes:
        one.stop()


def test_an_address_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="IDIOLECT_REDIS_URL"):
        redis_hints("http://localhost")
