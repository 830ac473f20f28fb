"""Rankings of one turn of the event loop are answered together, and each as if it were alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httpx
import pytest
from serving_world import DOCUMENTS, World

from idiolect.errors import CorruptArtifactError
from idiolect.resets.fence import ANSWER_SECONDS
from idiolect.resets.plan import plan_reset
from idiolect_services.gateway.pace import Pace
from idiolect_services.gateway.process import Process

PEOPLE = ("ann", "bob")
ASKS: Sequence[tuple[str, dict[str, Any]]] = (
    ("/v1/rerank", {"user": "ann"}),
    ("/v1/rerank", {"user": "bob", "top_n": 3, "return_documents": True}),
    ("/v1/rerank", {"user": "stranger"}),
    ("/v1/rerank", {"user": "stranger", "personalization": "required"}),  # 409
    ("/v1/rerank", {"user": "ann", "personalization": "off"}),
    ("/v1/rerank", {"user": "ann", "strength": 0.5, "domain": "voice", "explain": True}),
    ("/v1/rerank", {"user": "ann", "documents": ["document 3", {"id": "x", "text": "document 3"}]}),
    ("/v1/rerank", {}),
    ("/v1/rerank", {"user": "ann", "documents": []}),  # 422
    ("/v1/score", {"user": "bob"}),
    ("/v1/compare", {"user": "ann", "a": "document 1", "b": "document 2", "documents": None}),
    ("/v1/rerank", {"user": "cold", "documents": ["never seen before"]}),
)


def said(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """Without what differs from one time to the next."""
    body = response.json()
    for name in ("id", "created", "request_id"):
        body.pop(name, None)
    return response.status_code, body


async def send(world: World, key: str, asks: Sequence[tuple[str, dict[str, Any]]], *, at_once: bool) -> list[Any]:
    headers = {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        sends = [client.post(path, json={"query": "q", "documents": DOCUMENTS} | more) for path, more in asks]
        return list(await asyncio.gather(*sends)) if at_once else [await one for one in sends]


@pytest.fixture
def people(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two people with adapters of their own, and a domain. However slow this machine is, the loop is never spared."""
    monkeypatch.setattr(Pace, "ends", lambda _pace, _began: None)
    for user in PEOPLE:
        world.opt_in(user)
        world.publish_user(user)
    world.publish_domain("voice")
    return world


def test_each_of_one_turn_gets_what_it_gets_alone(people: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = people.key()
    alone = [said(one) for one in asyncio.run(send(people, key, ASKS, at_once=False))]
    groups: list[int] = []
    real = people.store.record_at_once
    monkeypatch.setattr(people.store, "record_at_once", lambda shown: (groups.append(len(shown)), real(shown))[1])
    together = asyncio.run(send(people, key, ASKS, at_once=True))
    assert [said(one) for one in together] == alone
    assert sorted({status for status, _ in alone}) == [200, 409, 422]
    assert max(groups) > 1
    for (path, ask), answer in zip(ASKS, together, strict=True):
        if path == "/v1/rerank" and answer.status_code == 200:
            inference = people.store.inference("acme", answer.json()["id"])
            assert inference is not None
            assert inference.subject == (people.pseudonym("acme", ask["user"]) if ask.get("user") in PEOPLE else None)


def test_a_reset_between_the_two_looks_of_a_turn_takes_that_persons_part_away_and_nobody_elses(
    people: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [("/v1/rerank", {"user": user}) for user in ("ann", "bob")]
    key = people.key()
    before = [said(one) for one in asyncio.run(send(people, key, asks, at_once=False))]
    real = people.store.resolve_each

    def then_reset(asked: Any) -> Any:
        found = real(asked)
        people.store.apply_reset(
            "acme", people.pseudonym("acme", "ann"), "elsewhere", plan_reset("adapter"), people.clock.now()
        )
        return found

    monkeypatch.setattr(people.store, "resolve_each", then_reset)
    ann, bob = [said(one) for one in asyncio.run(send(people, key, asks, at_once=True))]
    assert before[0][1]["personalization"]["applied"]
    assert (ann[1]["personalization"]["applied"], ann[1]["personalization"]["generation"]) == (False, 1)
    assert bob == before[1]


def test_a_bad_adapter_in_a_turn_takes_nobody_elses_answer_away(people: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it put into quarantine by the event loop, which would wait for the disk: a thread does that."""
    asks = [("/v1/rerank", {"user": user}) for user in ("ann", "bob", "stranger")]
    key = people.key()
    alone = [said(one) for one in asyncio.run(send(people, key, asks, at_once=False))]
    owner, _ = people.named("user", "ann")
    real = people.bank.resident
    reported: list[str] = []
    monkeypatch.setattr(
        people.scorer.quarantine, "report", lambda *_: bool(reported.append(threading.current_thread().name))
    )

    def resident(asked: Any, version: Any) -> Any:
        if asked == owner:
            raise CorruptArtifactError("misplaced.", code="misplaced")
        return real(asked, version)

    monkeypatch.setattr(people.bank, "resident", resident)
    together = [said(one) for one in asyncio.run(send(people, key, asks, at_once=True))]
    assert together[1:] == alone[1:]
    assert together[0][1]["personalization"]["reason"] == "adapter_invalid"
    assert [name.startswith("idiolect-loading") for name in reported] == [True]


@pytest.mark.parametrize(("user", "last"), [("ann", "subject"), ("stranger", "resolve")])
def test_recording_looks_at_whom_it_names_and_only_others_are_looked_at_again_before_they_leave(
    people: World, monkeypatch: pytest.MonkeyPatch, user: str, last: str
) -> None:
    """Each time longer passes between the last look of the scoring and the record than an answer may take."""
    now, looked = [0.0], list[str]()

    def slow(name: str, real: Callable[..., Any], *asked: Any) -> Any:
        found = real(*asked)
        looked.append(name)
        now[0] += ANSWER_SECONDS if name == last else 0.0
        return found

    for name in ("subject", "resolve"):
        monkeypatch.setattr(people.store, name, partial(slow, name, getattr(people.store, name)))
    monkeypatch.setattr(people.scorer, "uptime", lambda: now[0])
    app = people.make_app(process=Process(uptime=lambda: now[0]))
    monkeypatch.setattr(app.state.gateway.pace, "_embedded", False)
    api = people.api(people.key(), app)
    api.rerank()  # the texts are known now
    people.bank.part(*people.named("user", "ann"))
    looked.clear()
    assert api.rerank(user)["personalization"]["reason"] == ("applied" if user == "ann" else "unknown_user")
    assert looked == ["resolve", "subject"]
    app.state.gateway.close()
