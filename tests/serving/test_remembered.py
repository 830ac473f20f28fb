"""Whatever Redis says of what was resolved, an answer is what it would be without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_client
from serving_world import World, scores

from idiolect.errors import UnavailableError
from idiolect.ids import new_id
from idiolect.registry.pointers import Adapter
from idiolect.registry.resolution import Standing
from idiolect.resets.plan import plan_reset
from idiolect.rollouts.plan import Candidate, Plan
from idiolect.stores.redis.link import RedisLink
from idiolect.stores.redis.resolutions import RememberedResolutions
from idiolect_services.bench.reset_fleet import RedisServer
from idiolect_services.gateway.pace import Pace

PEOPLE = ("ann", "bob", None)
WHY: dict[str, Any] = {"reason": "r", "actor": "a"}


class Remembering:
    """A server that remembers beside one that does not, on one store. `copy` and `turn_back` are somebody else's."""

    def __init__(self, world: World, url: str) -> None:
        self.world = world
        self.client: Any = redis_client.Redis.from_url(url, protocol=2)
        self.client.flushall()
        link = RedisLink(url, logging.getLogger("test"), "nothing is remembered", answer_seconds=1.0)
        self.memory = RememberedResolutions(link, b"\x05" * 32, world.clock.now)
        key = world.key()
        self.with_it = world.api(key, world.make_app(memory=self.memory))
        self.without = world.api(key)

    def answers(self) -> list[Any]:
        return [_said(self.with_it.rerank(user, domain="chat")) for user in PEOPLE]

    def expected(self) -> list[Any]:
        return [_said(self.without.rerank(user, domain="chat")) for user in PEOPLE]

    def copy(self) -> dict[bytes, bytes]:
        return {name: self.client.dump(name) for name in self.client.scan_iter()}

    def turn_back(self, copied: dict[bytes, bytes]) -> None:
        self.client.flushall()
        for name, value in copied.items():
            self.client.restore(name, 0, value)

    def close(self) -> None:
        self.memory.close()
        self.client.close()


def _said(answer: dict[str, Any]) -> Any:
    return scores(answer), answer["personalization"]


@pytest.fixture
def both(world: World, redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remembering]:
    """Two people and a domain whose adapters are in memory. However slow this machine is, the loop is never spared."""
    monkeypatch.setattr(Pace, "ends", lambda _pace, _began: None)
    for user in ("ann", "bob"):
        world.opt_in(user)
        world.publish_user(user)
    world.publish_domain("chat")
    made = Remembering(world, redis.url)
    made.expected()  # loads
    made.answers()
    yield made
    made.close()


def test_what_is_remembered_is_confirmed_by_the_shorter_look_alone(
    both: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, looks = both.expected(), list[str]()
    for name in ("resolve", "resolve_each", "subject", "subject_each", "standing_each"):
        real = getattr(both.world.store, name)
        monkeypatch.setattr(
            both.world.store, name, lambda *asked, name=name, real=real: (looks.append(name), real(*asked))[1]
        )
    assert both.answers() == expected
    assert looks == ["standing_each"] * 3
    assert (both.memory.stats().confirmed, both.memory.stats().outdated) == (3, 0)


def reset(world: World) -> None:
    world.store.apply_reset("acme", world.pseudonym("acme", "ann"), new_id(), plan_reset("adapter"), world.clock.now())


def erase(world: World) -> None:
    world.store.apply_reset("acme", world.pseudonym("acme", "ann"), new_id(), plan_reset("all"), world.clock.now())


def revoke_of(scope: str, name: str) -> Callable[[World], None]:
    def revoke(world: World) -> None:
        _, version = world.named(scope, name)
        world.store.revoke_release("acme", version.release, world.clock.now(), **WHY)

    return revoke


def quarantine(world: World) -> None:
    world.store.quarantine("acme", world.named("user", "ann")[1].id, "bad", world.clock.now(), actor="a")


def publish_again(world: World) -> None:
    world.publish_user("ann", [1.0] * 8)


def publish_for_the_domain(world: World) -> None:
    world.publish_domain("chat", producer="another")


def roll_back(world: World) -> None:
    world.publish_user("ann", [2.0] * 8)
    adapter = Adapter("user", world.pseudonym("acme", "ann"))
    world.store.rollback("acme", adapter, world.clock.now(), **WHY)
    world.store.quarantine("acme", world.named("user", "ann")[1].id, "bad", world.clock.now(), actor="a")


def withdraw_key(world: World) -> None:
    world.store.withdraw_signing_key(world.signer.key_id, world.clock.now(), **WHY)


def begin_rollout(world: World) -> None:
    candidate = Candidate("setting", strength=0.5)
    world.store.create_rollout(
        "acme", candidate, Plan(steps=(0.99, 0.999), min_people=5), world.clock.now(), **WHY, start=True
    )


def change_model(world: World) -> None:
    world.store.set_global("e" * 64, world.clock.now(), **WHY)


CHANGES: dict[str, Callable[[World], None]] = {
    "reset": reset,
    "erasure": erase,
    "opt-out": lambda world: world.opt_in("ann", opted_in=False),
    "pause": lambda world: world.opt_in("ann", paused=True),
    "strength": lambda world: world.opt_in("ann", strength=0.25),
    "revoked release of the person": revoke_of("user", "ann"),
    "revoked release of the domain": revoke_of("domain", "chat"),
    "quarantine": quarantine,
    "new version": publish_again,
    "new version of the domain": publish_for_the_domain,
    "rollback": roll_back,
    "withdrawn key": withdraw_key,
    "rollout": begin_rollout,
    "another global model": change_model,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_redis_that_is_turned_back_to_before_a_change_changes_no_answer(both: Remembering, change: str) -> None:
    before, copied = both.expected(), both.copy()
    assert both.answers() == before
    CHANGES[change](both.world)
    expected = both.expected()
    assert expected != before
    for _ in range(2):  # what was outdated was remembered anew meanwhile
        both.turn_back(copied)
        assert both.answers() == expected
    assert both.memory.stats().outdated >= 2


def test_it_would_be_seen_if_nothing_confirmed_what_is_remembered(
    both: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = both.copy()
    revoke_of("domain", "chat")(both.world)
    expected = both.expected()
    both.turn_back(copied)
    monkeypatch.setattr(Standing, "agrees", lambda *_: True)
    assert both.answers() != expected


def test_without_the_store_nothing_that_is_remembered_is_served(
    both: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of the caller is known for a moment longer than the store can be reached."""

    def gone(*_: Any) -> Any:
        raise UnavailableError("gone.")

    for name in ("resolve", "resolve_each", "subject", "subject_each", "standing_each", "record_inferences"):
        monkeypatch.setattr(both.world.store, name, gone)
    answer = both.with_it.rerank("ann", domain="chat")
    said = answer["personalization"]
    assert (said["applied"], said["reason"], said["domain"], said["generation"]) == (
        False,
        "store_unavailable",
        None,
        None,
    )


def test_what_is_not_possible_any_more_is_refused_as_without(both: Remembering) -> None:
    copied = both.copy()
    both.world.opt_in("ann", paused=True)
    both.turn_back(copied)
    body = {"query": "q", "documents": ["document 1"], "user": "ann", "domain": "chat", "personalization": "required"}
    with_it, without = both.with_it.post("/v1/rerank", body), both.without.post("/v1/rerank", body)
    assert (with_it.status_code, with_it.json()["code"]) == (409, without.json()["code"])
    both.world.opt_in("ann", paused=False)
    assert both.with_it.post("/v1/rerank", body).status_code == 200
