"""The time fence of one process: what may leave when, and what cancelled requests leave behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from serving_world import World

from idiolect.consent import ConsentChange, SubjectState
from idiolect.errors import UnavailableError
from idiolect.resets.fence import ANSWER_SECONDS, RESET_SECONDS
from idiolect.resets.plan import plan_reset
from idiolect_services.gateway.fencing import LOOKS, PATIENCE_SECONDS, AnswerFence, Claim
from idiolect_services.gateway.gate import GenerationGate
from idiolect_services.gateway.lanes import Lane
from idiolect_services.gateway.pace import Began, Pace, Spent

STALE = ANSWER_SECONDS + 0.001


class Person:
    """A store that knows one person, and a clock that each look moves on by `cost`."""

    def __init__(self, generation: int = 0, cost: float = 0.0, *, paused: bool = False) -> None:
        self.now, self.cost, self.looks = 100.0, cost, 0
        self.state = SubjectState("ann", known=True, opted_in=True, paused=paused, generation=generation)
        self.fails = False
        self.slow_looks: int | None = None  # from then on each costs nothing

    def subject(self, _tenant: str, _subject: str) -> SubjectState:
        self.looks += 1
        if self.slow_looks is not None and self.looks > self.slow_looks:
            self.cost = 0.0
        self.now += self.cost
        if self.fails:
            raise UnavailableError("gone")
        return self.state


class SlowLane(Lane):
    """On which the time runs out on the way back, as on a server that is too busy."""

    def __init__(self, person: Person) -> None:
        super().__init__("test", threads=1, depth=4)
        self._person = person

    async def run(self, *call: Any, **options: Any) -> Any:
        found = await super().run(*call, **options)
        self._person.now += STALE
        return found


def admits(
    person: Person,
    gate: GenerationGate | None = None,
    *,
    lane: Lane | None = None,
    pace: Pace | None = None,
    **claimed: Any,
) -> bool:
    claim = {"subject": "ann", "domain": None, "generation": 0, "personal": True, "looked_at": 100.0 - STALE}
    lane = lane or Lane("test", threads=1, depth=4)
    fence = AnswerFence(
        gate or GenerationGate(),
        person,  # type: ignore[arg-type]
        lane,
        lambda: person.now,
        pace=pace,
    )
    try:
        return asyncio.run(fence.admits(0, Claim("t", **claim | claimed)))  # type: ignore[arg-type]
    finally:
        lane.close()


def test_a_reset_waits_longer_than_any_answer_may_take() -> None:
    assert RESET_SECONDS >= 1.15 * ANSWER_SECONDS


def test_what_was_looked_up_just_now_leaves_without_another_look() -> None:
    person = Person()
    assert admits(person, looked_at=person.now - ANSWER_SECONDS / 2)
    assert person.looks == 0


def test_what_was_looked_up_too_long_ago_is_looked_up_again() -> None:
    person = Person()
    assert admits(person)
    assert person.looks == 1


@pytest.mark.parametrize("personal", [True, False])
def test_an_answer_that_is_older_than_a_reset_does_not_leave(personal: bool) -> None:
    assert not admits(Person(generation=1), personal=personal)


def test_who_paused_meanwhile_gets_nothing_personal() -> None:
    assert not admits(Person(paused=True))
    assert admits(Person(paused=True), personal=False)


def test_a_store_that_does_not_answer_confirms_nothing() -> None:
    person = Person()
    person.fails = True
    assert not admits(person)


def test_a_store_that_is_too_slow_confirms_nothing_and_is_not_asked_for_ever() -> None:
    person = Person(cost=STALE)
    assert not admits(person)
    assert LOOKS <= person.looks <= PATIENCE_SECONDS / STALE + 1


def test_a_store_that_is_slow_for_longer_than_the_patience_is_asked_a_few_times_all_the_same() -> None:
    person = Person(cost=2 * PATIENCE_SECONDS)
    assert not admits(person)
    assert person.looks == LOOKS


def test_a_busy_machine_delays_an_answer_and_does_not_take_its_person_away() -> None:
    person = Person(cost=STALE)
    person.slow_looks = 3 * LOOKS
    assert admits(person)
    assert person.looks == 3 * LOOKS + 1


def test_what_waits_for_a_thread_has_not_looked_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in a queue does not count against the answer: the look begins when the store is asked."""
    person, run = Person(), Lane.run

    async def queued(lane: Lane, *args: Any) -> Any:
        person.now += 2 * STALE
        return await run(lane, *args)

    monkeypatch.setattr(Lane, "run", queued)
    assert admits(person)
    assert person.looks == 1


@pytest.mark.parametrize("resting", [False, True])
def test_a_busy_server_looks_at_an_embedded_store_where_nothing_comes_between(resting: bool) -> None:
    person = Person()
    assert not admits(person, lane=SlowLane(person))
    person = Person()
    pace = Pace(embedded=True, monotonic=lambda: 1.0, spent=lambda: Spent(1, 0, 0.0))
    if resting:
        pace.ends(Began(0.0, Spent(0, 0, 0.0)))
    assert admits(person, lane=SlowLane(person), pace=pace)
    assert person.looks == (LOOKS if resting else 1)
    late = Person(generation=1)
    assert not admits(late, lane=SlowLane(late), pace=pace)


def test_a_reset_of_this_process_counts_whatever_the_store_said_before() -> None:
    gate, person = GenerationGate(), Person()
    gate.announce("t", "ann", 1)
    assert not admits(person, gate, looked_at=person.now)


@pytest.mark.parametrize("nobody", [{"subject": None}, {"generation": None}])
def test_what_claims_nothing_of_anybody_always_leaves(nobody: dict[str, None]) -> None:
    person = Person(generation=7)
    assert admits(person, **nobody)
    assert person.looks == 0


def test_a_ranking_that_dawdles_is_confirmed_again_before_it_leaves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process resets the person while this one is between its last look and the answer."""
    world.opt_in("ann")
    world.publish_user("ann")
    subject = world.pseudonym("acme", "ann")
    real = world.store.record_inferences

    def dawdle(*args: Any) -> Any:
        outcomes = real(*args)
        monkeypatch.setattr(world.store, "record_inferences", real)
        world.store.apply_reset("acme", subject, "elsewhere", plan_reset("adapter"), world.clock.now())
        asyncio.run(asyncio.sleep(RESET_SECONDS))  # then it answers, over there
        return outcomes

    monkeypatch.setattr(world.store, "record_inferences", dawdle)
    said = world.api(world.key()).rerank("ann")["personalization"]
    assert (said["applied"], said["generation"]) == (False, 1)


def test_what_was_shown_under_an_older_generation_is_not_kept_however_the_clocks_stand(world: World) -> None:
    """The process that ranked has a clock that goes ahead of the one that reset."""
    world.opt_in("ann")
    subject = world.pseudonym("acme", "ann")
    answer = world.api(world.key()).rerank("ann")
    world.store.apply_reset("acme", subject, "x", plan_reset("feedback"), world.clock.now())
    assert world.store.inference("acme", answer["id"]) is None
    shown = shown_of(world, subject, generation=0)
    assert world.store.record_inferences([shown]) == ["outdated"]
    assert world.store.record_inferences([shown_of(world, subject, generation=1)]) == ["recorded"]


def shown_of(world: World, subject: str, generation: int) -> Any:
    from datetime import timedelta

    from idiolect.ids import new_id, text_digest
    from idiolect.signals.events import Inference
    from idiolect.stores.ports import ShownInference

    later = world.clock.now() + timedelta(hours=1)
    digests = (text_digest("a"), text_digest("b"))
    inference = Inference(new_id(), subject, "default", text_digest("q"), digests, (0, 1), later)
    return ShownInference("acme", inference, ["q", "a", "b"], generation)


def test_cancelled_requests_leave_every_connection_as_it_was(world: World) -> None:
    """Reads and writes that nobody waits for any more, cut off at random moments."""
    world.opt_in("ann")
    subject = world.pseudonym("acme", "ann")
    lane = Lane("test", threads=4, depth=1000)
    chance = random.Random(0)
    calls: list[Callable[[], Any]] = [
        lambda: world.store.resolve("acme", subject, "default"),
        lambda: world.store.change_subject("acme", subject, ConsentChange(strength=0.5), world.clock.now()),
    ]

    async def cut_off() -> None:
        for number in range(200):
            task = asyncio.create_task(lane.run(calls[number % 2]))
            await asyncio.sleep(chance.uniform(0, 0.001))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cut_off())
    lane.close()
    pool = world.store._database.engine.pool
    assert pool.checkedout() == 0
    assert world.store.subject("acme", subject).strength == 0.5
    world.store.check()
