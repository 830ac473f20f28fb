"""A registry that is slow to give adapters: who waits for it, how long, and what they leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest
from serving_world import DOCUMENTS, World, assert_problem
from test_gateway_storm import serving

from idiolect.errors import UnavailableError
from idiolect.stores.ports import StoredVersion

PEOPLE = tuple(f"person {number}" for number in range(8))


@dataclass
class SlowRegistry:
    """What it is asked for one tenant hangs until `release` is set."""

    world: World
    tenant: str
    release: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)

    def load(self, tenant: str, version: str) -> StoredVersion | None:
        if tenant == self.tenant:
            self.asked.append(version)
            assert self.release.wait(30)
        return self.world.whole(tenant, version)


@pytest.fixture
def slow(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowRegistry]:
    for person in PEOPLE:
        world.opt_in(person)
        world.publish_user(person)
    world.opt_in("ann", tenant="other")
    world.publish_user("ann", tenant="other")
    made = SlowRegistry(world, "acme")
    monkeypatch.setattr(world.bank, "_load", made.load)
    yield made
    made.release.set()


def client(port: int, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60)


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)
    return holds()


def ask(http: httpx.Client, user: str | None, documents: list[str], **headers: str) -> httpx.Response:
    body = {"query": "q", "documents": documents, **({"user": user} if user else {})}
    return http.post("/v1/rerank", json=body, headers=headers)


@pytest.mark.parametrize("embedded", [True, False])
def test_loads_that_hang_hold_up_nobody_who_needs_none(
    slow: SlowRegistry, embedded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither warm rankings nor texts that the model has to read first; also where rankings go through threads."""
    world = slow.world
    monkeypatch.setattr(world.app.state.gateway.pace, "_embedded", embedded)
    with (
        serving(world.app) as port,
        ThreadPoolExecutor(len(PEOPLE)) as pool,
        client(port, world.key()) as acme,
        client(port, world.key("other")) as other,
    ):
        assert ask(other, "ann", DOCUMENTS).json()["personalization"]["applied"]
        hanging: list[Future[httpx.Response]] = [pool.submit(ask, acme, person, DOCUMENTS) for person in PEOPLE]
        assert eventually(lambda: len(slow.asked) >= 4)
        for user, documents in (("ann", DOCUMENTS), (None, DOCUMENTS), (None, ["new"]), ("ann", ["new to ann"])):
            answer = ask(other, user, documents)
            assert answer.status_code == 200
            assert answer.json()["personalization"]["applied"] == (user is not None)
        assert ask(acme, None, ["of the same tenant"]).status_code == 200
        assert not any(one.done() for one in hanging)
        slow.release.set()
        assert all(one.result(30).json()["personalization"]["applied"] for one in hanging)


def test_who_has_less_time_than_a_load_is_told_so_and_the_next_one_finds_it_done(slow: SlowRegistry) -> None:
    world = slow.world
    with serving(world.app) as port, client(port, world.key()) as http:
        late = ask(http, PEOPLE[0], DOCUMENTS, **{"Idiolect-Timeout-Ms": "50"})
        assert "adapters" in assert_problem(late, 503, "deadline_exceeded")["detail"]
        assert int(late.headers["retry-after"]) >= 1
        slow.release.set()
        assert eventually(lambda: world.bank.stats().loads == 1)
        assert ask(http, PEOPLE[0], DOCUMENTS).json()["personalization"]["applied"]
    assert len(slow.asked) == 1


def test_a_client_that_goes_away_while_its_adapter_is_loaded_leaves_its_place(slow: SlowRegistry) -> None:
    world = slow.world
    with serving(world.app) as port:
        with client(port, world.key()) as http, pytest.raises(httpx.ReadTimeout):
            http.post("/v1/rerank", json={"query": "q", "documents": ["a"], "user": PEOPLE[0]}, timeout=0.3)
        assert eventually(lambda: world.app.state.gateway.lanes.loading._inside == 0)
        slow.release.set()
        with client(port, world.key()) as http:
            assert ask(http, PEOPLE[0], ["a"]).json()["personalization"]["applied"]


def test_explanations_that_wait_for_a_load_hold_up_no_reset(slow: SlowRegistry) -> None:
    world = slow.world
    with serving(world.app) as port, ThreadPoolExecutor(3) as pool, client(port, world.key()) as http:
        hanging = [pool.submit(http.get, f"/v1/users/{person}/explanation") for person in PEOPLE[:3]]
        assert eventually(lambda: len(slow.asked) == 3)
        reset = http.post(f"/v1/users/{PEOPLE[3]}/personalization/reset", json={"scope": "adapter"})
        assert reset.status_code == 200
        assert not any(one.done() for one in hanging)
        slow.release.set()
        assert [one.result(30).status_code for one in hanging] == [200] * 3


def token_for(http: httpx.Client, user: str, *scopes: str) -> int:
    return http.post("/v1/tokens", json={"user": user, "scopes": list(scopes)}).status_code


def test_a_token_for_a_person_has_their_adapter_loaded_before_they_ask(slow: SlowRegistry) -> None:
    world = slow.world
    slow.release.set()
    world.opt_in("paused", paused=True)
    world.publish_user("paused")
    with serving(world.app) as port, client(port, world.key()) as http:
        assert token_for(http, "nobody", "infer") == token_for(http, "paused", "infer") == 201
        assert token_for(http, PEOPLE[1], "controls") == 201
        assert token_for(http, PEOPLE[0], "infer") == 201
        assert eventually(lambda: world.bank.holds(*world.named("user", PEOPLE[0])))
        assert eventually(lambda: world.bank.stats().prefetches_waiting == 0)
        assert len(slow.asked) == 1
        assert ask(http, PEOPLE[0], DOCUMENTS).json()["personalization"]["applied"]
    assert len(slow.asked) == 1


def test_a_token_waits_for_no_load_and_needs_none(slow: SlowRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    world = slow.world
    with serving(world.app) as port, client(port, world.key()) as http:
        assert token_for(http, PEOPLE[0], "infer") == 201
        assert eventually(lambda: len(slow.asked) == 1)
        loading = world.app.state.gateway.lanes.loading
        assert eventually(lambda: loading._inside == 0)
        monkeypatch.setattr(loading, "_depth", 0)
        assert token_for(http, PEOPLE[1], "infer") == 201
        monkeypatch.setattr(loading, "_depth", 256)
        monkeypatch.setattr(world.store, "resolve", lambda *_: (_ for _ in ()).throw(UnavailableError("gone")))
        assert token_for(http, PEOPLE[2], "infer") == 201
        assert eventually(lambda: loading._inside == 0)
        slow.release.set()
    assert len(slow.asked) == 1
