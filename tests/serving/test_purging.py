"""The thread that frees what this process keeps of people who were reset anywhere. Hints over Redis: see the stream."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from serving_world import World

from idiolect.clock import SystemClock
from idiolect.errors import UnavailableError
from idiolect.resets.plan import plan_reset
from idiolect.resets.purges import Purge, Replica
from idiolect_adapters.runtime.bank import Owner
from idiolect_adapters.runtime.features import FeatureCache, Pair, Wanted, digested
from idiolect_services.gateway.batching import Batcher
from idiolect_services.purging import PurgeFollower


class Log:
    """A purge log that can be out of reach."""

    def __init__(self) -> None:
        self.lines: list[Purge] = []
        self.down = False
        self.said: list[tuple[int, int]] = []  # (since, cursor)
        self.left: list[str] = []

    def add(self, subject: str) -> None:
        self.lines.append(Purge(len(self.lines) + 1, "t", subject, 1))

    def _reach(self) -> None:
        if self.down:
            raise UnavailableError("gone")

    def purge_head(self) -> int:
        self._reach()
        return len(self.lines)

    def purges(self, after: int, *, limit: int = 1000) -> list[Purge]:
        self._reach()
        return self.lines[after : after + limit]

    def follow(self, replica: str, since: int, cursor: int, now: object) -> None:
        self._reach()
        self.said.append((since, cursor))

    def sweep_blobs(self) -> int:
        return 0

    def leave(self, replica: str) -> None:
        self._reach()
        self.left.append(replica)

    def replicas(self, now: object) -> list[Replica]:
        return []


class Calls:
    """Hints that go nowhere, and are counted."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.stopped = False

    def start(self, on_hint: Callable[[int | None], None]) -> None:
        self.hint = on_hint

    def stop(self) -> None:
        self.stopped = True

    def publish(self, place: int) -> None:
        self.published.append(place)


def eventually(done: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.005)
    return done()


def follower(log: Log, gone: list[str], hints: Calls | None = None) -> PurgeFollower:
    return PurgeFollower(log, lambda _tenant, subject: gone.append(subject), SystemClock(), hints=hints)


def test_a_process_begins_at_the_end_of_the_log_and_purges_what_comes_then() -> None:
    log, gone, hints = Log(), list[str](), Calls()
    log.add("before")
    process = follower(log, gone, hints)
    process.start()
    try:
        log.add("ann")
        hints.hint(2)
        assert eventually(lambda: process.cursor == 2)
        assert eventually(lambda: log.said == [(1, 1), (1, 2)])
        assert gone == ["ann"]
    finally:
        process.stop()
    assert (log.left, hints.stopped) == ([process.replica], True)


def test_without_hints_it_asks_by_itself() -> None:
    log, gone = Log(), list[str]()
    process = follower(log, gone)
    process.start()
    log.add("ann")
    assert eventually(lambda: gone == ["ann"])
    process.stop()


def test_a_store_that_is_out_of_reach_delays_and_loses_nothing() -> None:
    log, gone, hints = Log(), list[str](), Calls()
    log.add("before")
    log.down = True
    process = follower(log, gone, hints)
    process.start()
    log.add("ann")
    hints.hint(None)
    time.sleep(0.05)
    assert (gone, process.cursor) == ([], -1)
    log.down = False
    assert eventually(lambda: gone == ["before", "ann"])  # it can't know what it had cached before it could ask
    assert eventually(lambda: log.said == [(0, 2)])
    log.down = True
    process.stop()


def test_what_is_shared_is_purged_last_and_said_only_then() -> None:
    log, gone, shared, down = Log(), list[str](), list[str](), [True]

    def forget_shared(people: Sequence[tuple[str, str]]) -> None:
        if down[0]:
            raise UnavailableError("Redis does not answer.")
        shared.extend(subject for _, subject in people)

    now = [0.0]
    process = PurgeFollower(
        log,
        lambda _tenant, subject: gone.append(subject),
        SystemClock(),
        forget_shared=forget_shared,
        monotonic=lambda: now[0],
    )
    process.begin()
    for name in ("ann", "bob"):
        log.add(name)
        now[0] += 10.0
        with pytest.raises(UnavailableError):
            process.follow()
    assert (gone, shared) == (["ann", "bob"], [])  # memory does not wait, and is purged once
    assert log.said == [(0, 0)] * 3  # it lives, and has not purged everything
    down[0] = False
    process.follow()
    assert (gone, shared, log.said[-1]) == (["ann", "bob"], ["ann", "bob"], (0, 2))


def test_what_fails_to_be_purged_is_not_said_to_be_purged() -> None:
    log, failed = Log(), list[str]()

    def forget(_tenant: str, subject: str) -> None:
        if not failed:
            failed.append(subject)
            raise RuntimeError("a bug")

    process = PurgeFollower(log, forget, SystemClock())
    process.start()
    log.add("ann")
    assert eventually(lambda: bool(failed))
    assert log.said == [(0, 0)]
    assert eventually(lambda: log.said[-1] == (0, 1))
    process.stop()


def test_a_purge_of_this_process_is_told_to_the_others_with_its_place() -> None:
    log, hints = Log(), Calls()
    process = follower(log, [], hints)
    process.start()
    log.add("ann")
    process.announce()
    assert eventually(lambda: hints.published == [1])
    log.down = True
    log.add("bob")
    process.announce()
    assert eventually(lambda: process._failing)
    log.down = False
    assert eventually(lambda: hints.published == [1, 2])  # as soon as it knows the place
    process.stop()


def test_who_has_followed_as_far_as_a_hint_says_does_not_ask_again() -> None:
    log, hints = Log(), Calls()
    log.add("before")
    process = follower(log, [], hints)
    process.begin()
    for place, asks in ((0, False), (1, False), (2, True), (10**17, True), (None, True)):
        process._wake.clear()
        process._hinted(place)
        assert process._wake.is_set() is asks


@pytest.mark.parametrize("place", [0, 10**17])
def test_a_place_that_is_made_up_hides_no_purge_and_becomes_nobodys_cursor(place: int) -> None:
    log, gone, hints = Log(), list[str](), Calls()
    process = follower(log, gone, hints)
    process.start()
    for number, person in enumerate(("ann", "bob"), start=1):
        log.add(person)
        hints.hint(place)
        assert eventually(lambda number=number: process.cursor == number)  # type: ignore[misc]
    assert gone == ["ann", "bob"]
    process.stop()


def test_a_long_log_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idiolect_services.purging.PAGE", 2)
    log, gone = Log(), list[str]()
    process = follower(log, gone)
    for number in range(5):
        log.add(f"p{number}")
    process.follow()
    assert (gone, process.cursor) == ([f"p{number}" for number in range(5)], 5)
    process.follow()
    assert len(gone) == 5


def test_following_frees_the_adapter_and_the_texts_of_a_person(world: World) -> None:
    world.opt_in("ann")
    version = world.publish_user("ann")
    world.api(world.key()).rerank("ann")
    subject = world.pseudonym("acme", "ann")
    resolved = world.store.resolve("acme", subject, None).user
    assert resolved is not None
    assert resolved.id == version.id
    assert world.bank.holds(Owner("acme", "user", subject), resolved)
    assert world.features.stats().entries == 10
    process = PurgeFollower(world.store, world.scorer.forget, world.clock)
    process.start()
    world.store.apply_reset("acme", subject, "x", plan_reset("all"), world.clock.now())
    assert eventually(lambda: process.cursor == 1)
    assert not world.bank.holds(Owner("acme", "user", subject), resolved)
    assert world.features.stats().entries == 0
    assert eventually(lambda: [one.cursor for one in world.store.replicas(world.clock.now())] == [1])
    process.stop()
    assert world.store.replicas(world.clock.now()) == []


# --- texts of one person ----------------------------------------------------------------------------------------------


def pairs(*texts: str) -> list[Pair]:
    return [(digested("q"), digested(text)) for text in texts]


def test_only_what_nobody_else_ever_asked_for_goes_with_a_person(world: World) -> None:
    cache = FeatureCache(world.model, max_bytes=1 << 20)
    cache.project("t", pairs("mine", "ours", "anybody's"), "ann")
    cache.project("t", pairs("ours", "his"), "bob")
    assert cache.cached("t", pairs("anybody's")) is not None  # asked without a person
    cache.project("u", pairs("mine"), "ann")  # of that name, of another tenant
    assert cache.purge_person("t", "ann") == 1
    cache.check_integrity()
    assert cache.cached("t", pairs("mine"), "ann") is None
    assert cache.cached("t", pairs("ours", "his", "anybody's")) is not None
    assert cache.cached("u", pairs("mine"), "ann") is not None
    assert cache.purge_person("t", "ann") == 0


def test_what_was_asked_for_before_a_purge_is_not_kept_after_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(world.model, max_bytes=1 << 20)
    real = world.model.project

    def purged_meanwhile(asked: list[tuple[str, str]]) -> object:
        cache.purge_person("t", "ann")
        return real(asked)

    monkeypatch.setattr(world.model, "project", purged_meanwhile)
    assert len(cache.project("t", pairs("mine"), "ann")) == 1
    assert cache.cached("t", pairs("mine"), "ann") is None
    cache.project("t", pairs("his"), "bob")
    assert cache.cached("t", pairs("his"), "bob") is not None


def test_what_waited_for_the_model_when_its_person_was_purged_is_answered_and_not_kept(world: World) -> None:
    """Nor is it if the purges since are more than are remembered. What they ask for afterwards is kept again."""
    cache, batcher = world.features, Batcher()
    entered, release = threading.Event(), threading.Event()
    real = world.model.project

    def held(asked: list[tuple[str, str]]) -> object:
        entered.set()
        assert release.wait(30)
        return real(asked)

    async def asked() -> None:
        world.model.project = held  # type: ignore[assignment]
        first = asyncio.ensure_future(batcher.features(cache, "acme", pairs("theirs"), "bob", 60.0))
        await asyncio.to_thread(entered.wait, 30)
        waiting = [
            asyncio.ensure_future(batcher.features(cache, "acme", pairs(text), person, 60.0))
            for text, person in (("mine", "ann"), ("ours", "ann"), ("ours", "eve"), ("hers", "eve"), ("his", "max"))
        ]
        while batcher.stats().waiting < 4:
            await asyncio.sleep(0)
        world.scorer.forget("acme", "ann")
        waiting.append(asyncio.ensure_future(batcher.features(cache, "acme", pairs("mine again"), "ann", 60.0)))
        while batcher.stats().waiting < 5:
            await asyncio.sleep(0)
        release.set()
        assert [len(row) for row in await asyncio.gather(first, *waiting)] == [1] * 7

    asyncio.run(asked())
    batcher.close()
    kept = {
        text
        for text in ("theirs", "mine", "ours", "hers", "his", "mine again")
        if cache.cached("acme", pairs(text)) is not None
    }
    assert kept == {"theirs", "ours", "hers", "his", "mine again"}
    cache.check_integrity()


def test_of_more_purges_than_are_remembered_nothing_older_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idiolect_adapters.runtime.features.MAX_PURGED", 2)
    cache = FeatureCache(world.model, max_bytes=1 << 20)
    before = cache.moment
    for person in ("ann", "bob", "eve"):
        cache.purge_person("t", person)
    for person, since, kept in (("ann", before, False), ("max", before, False), ("max", cache.moment, True)):
        (pair,) = pairs(f"of {person}, {since}")
        cache.project_each([Wanted("t", pair, person, None, since)])
        assert (cache.cached("t", [pair], person) is not None) is kept


def test_slots_of_a_purged_person_are_used_again(world: World) -> None:
    cache = FeatureCache(world.model, max_bytes=1 << 20)
    for number in range(3):
        cache.project("t", pairs("a", "b"), f"person-{number}")
        assert cache.purge_person("t", f"person-{number}") == 2
        cache.check_integrity()
    cache.project("t", pairs("a"), "ann")
    assert cache.purge_person("t", "person-2") == 0
