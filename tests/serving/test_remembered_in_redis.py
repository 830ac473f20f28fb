"""What is remembered in a real Redis: for whom, for how long, and that Redis itself learns nothing of it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from idiolect.consent import DomainChoice, SubjectState
from idiolect.errors import UnavailableError
from idiolect.registry.resolution import Resolution, ResolvedVersion
from idiolect.stores.redis.link import RedisLink
from idiolect.stores.redis.resolutions import PREFIX, WINDOW_SECONDS, RememberedResolutions
from idiolect_services.bench.reset_fleet import RedisServer
from idiolect_services.memory import Forgetting

SECRET = b"\x05" * 32
NOW = datetime(2026, 5, 1, tzinfo=UTC)
STATE = SubjectState(
    "ann",
    True,
    True,
    False,
    0.1 + 0.2,
    3,
    7,
    "2026-11",
    NOW,
    (DomainChoice("chat", strength=0.5), DomainChoice("mail", False)),
)
FULL = Resolution(
    "g" * 64, ResolvedVersion("d1", "rd", "1" * 64, 0), ResolvedVersion("u1", "ru", "2" * 64, 3), STATE, mark="m"
)
ANN, BOB, ANN_IN_MAIL = ("acme", "ann", "chat"), ("acme", "bob", "chat"), ("acme", "ann", "mail")
OF_BOB = replace(FULL, state=replace(STATE, subject="bob"))


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def memory_over(redis: RedisServer, clock: Callable[[], datetime], secret: bytes = SECRET) -> RememberedResolutions:
    link = RedisLink(redis.url, logging.getLogger("test"), "nothing is remembered", answer_seconds=1.0)
    return RememberedResolutions(link, secret, clock)


@pytest.fixture
def memory(redis: RedisServer, client: Any) -> Iterator[RememberedResolutions]:
    made = memory_over(redis, lambda: NOW)
    yield made
    made.close()


def test_what_is_remembered_comes_back_to_the_last_bit(memory: RememberedResolutions) -> None:
    nobody = Resolution("g" * 64, None, None, None, mark="")
    stranger = Resolution("g" * 64, None, None, SubjectState("x"), mark="m")
    kept = [(ANN, FULL), (("acme", None, None), nobody), (("acme", "x", None), stranger)]
    memory.remember(kept)
    found = memory.recall([asked for asked, _ in kept])
    assert found == [one for _, one in kept]
    assert [one and one.mark for one in found] == ["m", "", "m"]
    assert all(one is not None and one.remembered for one in found)


def test_nothing_is_recalled_for_anybody_else(memory: RememberedResolutions, redis: RedisServer) -> None:
    memory.remember([(ANN, FULL)])
    others = [("acme", "ann", "mail"), ("acme", "ann", None), ("acme", "bob", "chat"), ("other", "ann", "chat")]
    glued = [("acm", "eann", "chat"), ("acmea", "nn", "chat")]
    assert memory.recall([*others, *glued]) == [None] * 6
    other_installation = memory_over(redis, lambda: NOW, b"\x06" * 32)
    assert other_installation.recall([ANN]) == [None]
    other_installation.close()


def test_what_may_not_be_remembered_is_not(memory: RememberedResolutions, client: Any) -> None:
    memory.remember([(ANN, Resolution("g" * 64, None, None, None))])
    assert client.dbsize() == 0


def test_redis_learns_of_nobody(memory: RememberedResolutions, client: Any) -> None:
    memory.remember([(ANN, FULL)])
    (name,) = client.scan_iter()
    ((field, value),) = client.hgetall(name).items()
    assert name.startswith(PREFIX)
    assert not any(word in name + field + value for word in (b"acme", b"ann", b"chat", b"u1", b"ru", b"2026-11"))
    assert 0 < client.ttl(name) <= WINDOW_SECONDS


def test_an_entry_in_another_place_or_changed_in_one_bit_is_none(memory: RememberedResolutions, client: Any) -> None:
    memory.remember([(ANN, FULL), (BOB, OF_BOB), (ANN_IN_MAIL, FULL)])
    entries = {name: client.hgetall(name) for name in client.scan_iter()}
    every = [value for fields in entries.values() for value in fields.values()]
    changed = [bytes([*one[:place], one[place] ^ 1, *one[place + 1 :]]) for one in every for place in (0, 5, -20, -1)]
    for name, fields in entries.items():
        for field, own in fields.items():
            for value in {*every, *changed, b"", b"\x01", b"\x00" * 600, b"[1, 2]"} - {own}:
                client.hset(name, field, value)
                assert memory.recall([ANN, BOB, ANN_IN_MAIL]).count(None) == 1
            client.hset(name, field, own)
    assert memory.recall([ANN, BOB, ANN_IN_MAIL]) == [FULL, OF_BOB, FULL]


def test_what_is_no_hash_is_none(memory: RememberedResolutions, client: Any) -> None:
    memory.remember([(ANN, FULL)])
    (name,) = client.scan_iter()
    client.set(name, "no hash")
    assert memory.recall([ANN]) == [None]


def test_nothing_is_recalled_that_is_older_than_a_window(redis: RedisServer, client: Any) -> None:
    clock = Clock()
    memory = memory_over(redis, clock)
    memory.remember([(ANN, FULL)])
    for name in client.scan_iter():
        client.persist(name)  # a Redis that lets nothing expire
    ages = [
        second for second in range(WINDOW_SECONDS + 1) if _recalled_at(memory, clock, NOW + timedelta(seconds=second))
    ]
    assert ages == list(range(len(ages)))
    assert len(ages) <= WINDOW_SECONDS
    memory.close()


def _recalled_at(memory: RememberedResolutions, clock: Clock, when: datetime) -> bool:
    clock.now = when
    return memory.recall([ANN]) != [None]


def test_what_is_forgotten_is_gone_in_every_domain_also_as_seen_by_a_clock_that_is_ahead(
    redis: RedisServer, client: Any
) -> None:
    clock = Clock()
    memory = memory_over(redis, clock)
    for ahead in (-WINDOW_SECONDS, 0, WINDOW_SECONDS):
        clock.now = NOW + timedelta(seconds=ahead)
        memory.remember([(ANN, FULL), (ANN_IN_MAIL, FULL), (BOB, OF_BOB)])
    clock.now = NOW
    assert memory.forget([("acme", "ann")])
    assert memory.recall([ANN, ANN_IN_MAIL, BOB]) == [None, None, OF_BOB]
    assert client.dbsize() == 3
    memory.close()


def test_a_redis_that_is_stopped_or_gone_remembers_nothing_and_raises_nothing(redis: RedisServer, client: Any) -> None:
    link = RedisLink(redis.url, logging.getLogger("test"), "nothing is remembered")
    memory = RememberedResolutions(link, SECRET, lambda: NOW)
    memory.remember([(ANN, FULL)])
    redis.signal(signal.SIGSTOP)
    try:
        assert memory.recall([ANN]) == [None]
        memory.remember([(ANN, FULL)])
        assert not memory.forget([("acme", "ann")])
    finally:
        redis.signal(signal.SIGCONT)
    memory.close()


def test_a_purge_waits_for_redis_until_everything_in_it_has_expired() -> None:
    class Silent:
        longest_s = 240
        answers = False

        def forget(self, people: Any) -> bool:
            return self.answers

    now = [0.0]
    silent: Any = Silent()
    forgetting = Forgetting(silent, lambda: now[0])
    for second in (0.0, 239.0):
        now[0] = second
        with pytest.raises(UnavailableError, match="Redis does not answer"):
            forgetting([("acme", "ann")])
    now[0] = 240.0
    forgetting([("acme", "ann")])
    silent.answers = True
    forgetting([("acme", "ann")])
    silent.answers = False
    with pytest.raises(UnavailableError):  # counted anew since it answered
        forgetting([("acme", "ann")])
