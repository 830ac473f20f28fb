"""What still works when something does not: a full lane, a store that is away, a client that goes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from serving_world import DOCUMENTS, HashModel, World, assert_problem

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.ids import new_id
from idiolect.resets.plan import plan_reset
from idiolect_services.gateway.lanes import Lane

BODY = {"query": "q", "documents": DOCUMENTS, "user": "ann"}


def unreachable(*_: Any, **__: Any) -> Any:
    raise UnavailableError("the database /secret/path can't be reached.")


def test_a_store_that_is_away_leaves_the_ranking_but_no_feedback(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = world.key()
    api = world.api(key)
    world.opt_in("ann")
    world.publish_user("ann")
    stranger = api.rerank("stranger")
    for name in ("resolve", "subject", "record_inferences"):
        monkeypatch.setattr(world.store, name, unreachable)
    response = api.rerank("ann")
    assert response["id"] is None
    assert response["personalization"]["reason"] == "store_unavailable"
    assert response["personalization"]["generation"] is None
    assert response["results"] == stranger["results"]
    required = api.post("/v1/rerank", BODY | {"personalization": "required"})
    assert_problem(required, 503, "unconfirmed")
    assert required.headers["retry-after"]


def test_a_ranking_that_could_not_be_recorded_has_no_id(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    monkeypatch.setattr(world.store, "record_inferences", unreachable)
    response = world.api(world.key()).rerank("ann")
    assert response["id"] is None
    assert response["personalization"]["applied"]


@pytest.mark.parametrize("error", [UnavailableError, ConfigurationError])
def test_what_needs_the_store_says_503_and_names_nothing_inside(
    world: World, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise error("the database /secret/path is damaged.")

    api = world.api(world.key())
    for name in ("apply_reset", "subject", "check", "versions"):
        monkeypatch.setattr(world.store, name, away)
    for response in (
        api.post("/v1/users/ann/personalization/reset", {"scope": "all"}),
        api.get("/v1/users/ann/personalization"),
        api.get("/v1/adapters"),
        api.get("/readyz"),
    ):
        assert_problem(response, 503, "unavailable")
        assert "/secret/path" not in response.text
        assert response.headers["retry-after"]
    assert api.get("/healthz").status_code == 200
    monkeypatch.setattr(world.store, "authenticate", away)
    assert_problem(world.api("idio_unknown").get("/v1/adapters"), 503, "unavailable")


async def fill_up(lane: Lane) -> None:
    gate = threading.Event()
    waiting = [asyncio.ensure_future(lane.run(gate.wait, 10)) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(UnavailableError) as refused:
        await lane.run(gate.wait)
    assert refused.value.code == "overloaded"
    waiting[2].cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.ensure_future(lane.run(gate.wait, 10)))
    await asyncio.sleep(0.05)
    gate.set()
    assert await asyncio.gather(*waiting[:2], waiting[3]) == [True, True, True]
    assert await lane.run(lambda: 7) == 7


def test_a_full_lane_says_so_at_once_and_recovers() -> None:
    lane = Lane("test", threads=1, depth=3)
    try:
        asyncio.run(fill_up(lane))
    finally:
        lane.close()


def test_a_lane_that_was_closed_keeps_its_books() -> None:
    lane = Lane("test", threads=1, depth=1)
    lane.close()

    async def refused() -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="shutdown"):
                await lane.run(lambda: 7)

    asyncio.run(refused())


class SlowModel(HashModel):
    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = threading.Event(), threading.Event()

    def project(self, pairs: Any) -> Any:
        self.entered.set()
        assert self.release.wait(20)
        return super().project(pairs)


def test_a_flood_of_cold_texts_holds_up_neither_warm_requests_nor_resets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.key()
    world.opt_in("ann")
    world.publish_user("ann")
    world.api(key).rerank("ann")
    slow = SlowModel()
    monkeypatch.setattr(world.model, "project", slow.project)
    settings = world.settings.model_copy(update={"queue_texts": 640})

    async def scenario() -> None:
        transport = httpx.ASGITransport(world.make_app(settings=settings))
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            cold = [
                asyncio.ensure_future(client.post("/v1/rerank", json=BODY | {"query": f"cold {index}"}))
                for index in range(80)
            ]
            await asyncio.to_thread(slow.entered.wait, 10)
            warm = await asyncio.wait_for(client.post("/v1/rerank", json=BODY), 10)
            assert warm.json()["personalization"]["applied"]
            reset = client.post("/v1/users/ann/personalization/reset", json={"scope": "adapter"})
            assert (await asyncio.wait_for(reset, 10)).status_code == 200
            slow.release.set()
            answers = await asyncio.gather(*cold)
            codes = [answer.status_code for answer in answers]
            assert 10 <= codes.count(503) <= 16  # one forward has room for up to 64 texts while the others wait
            assert codes.count(200) == 80 - codes.count(503)
            refused = next(answer for answer in answers if answer.status_code == 503)
            assert_problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"]
            assert all(a.json()["personalization"]["generation"] == 1 for a in answers if a.status_code == 200)

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["confirmed", "recorded"])
def test_a_reset_that_answers_while_a_ranking_is_written_is_seen_by_it(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The ranking has passed the scorer's second look at the store; only the gate is left to stop it."""
    key = world.key()
    world.opt_in("ann")
    world.publish_user("ann")
    stranger = world.api(key).rerank("stranger")
    name = {"confirmed": "subject", "recorded": "record_inferences"}[moment]
    # Where nothing else can run while a request reads the store, there is nothing to fence.
    monkeypatch.setattr(world.app.state.gateway.pace, "_embedded", False)
    real, entered, go_on = getattr(world.store, name), threading.Event(), threading.Event()

    def held_up(*args: Any) -> Any:
        found = real(*args)
        if not entered.is_set():
            entered.set()
            assert go_on.wait(10)
        return found

    monkeypatch.setattr(world.store, name, held_up)

    async def scenario() -> None:
        transport = httpx.ASGITransport(world.app)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            ranking = asyncio.ensure_future(client.post("/v1/rerank", json=BODY))
            await asyncio.to_thread(entered.wait, 10)
            reset = await client.post("/v1/users/ann/personalization/reset", json={"scope": "all"})
            assert reset.json()["generation"] == 1
            go_on.set()
            answer = (await ranking).json()
            assert answer["personalization"]["generation"] == 1
            assert not answer["personalization"]["applied"]
            assert answer["results"] == stranger["results"]

    asyncio.run(scenario())


def test_what_was_shown_before_a_reset_is_not_recorded_after_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranking resolved first, then came the reset, then the record: it must not bring back the person's texts."""
    world.opt_in("ann")
    subject = world.pseudonym("acme", "ann")
    real, once = world.store.record_inferences, []

    def record(shown: Any) -> Any:
        if not once:
            once.append(shown[0].inference.id)
            world.store.apply_reset("acme", subject, new_id(), plan_reset("feedback"), world.clock.now())
        return real(shown)

    monkeypatch.setattr(world.store, "record_inferences", record)
    answer = world.api(world.key()).rerank("ann")
    assert world.store.inference("acme", once[0]) is None
    # Another process may have done that reset, whose gate is not ours: what was scored before it must not leave.
    assert answer["personalization"]["generation"] == 1
    assert world.store.inference("acme", answer["id"]) is not None


def test_a_person_who_is_reset_without_end_is_still_served_and_nothing_is_claimed_about_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    world.publish_domain("default")
    stranger = api.rerank("stranger")
    monkeypatch.setattr(type(world.app.state.gateway.gate), "admits", lambda *_: False)
    response = api.rerank("ann")
    said = response["personalization"]
    assert (said["applied"], said["reason"], said["generation"], said["adapter"]) == (False, "unconfirmed", None, None)
    assert response["results"] == stranger["results"]
    assert world.store.inference("acme", response["id"]).subject is None
    required = api.post("/v1/rerank", BODY | {"personalization": "required"})
    assert_problem(required, 503, "unconfirmed")
