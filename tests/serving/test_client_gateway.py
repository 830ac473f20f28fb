"""The client against the real gateway: what one sends the other takes, and results hold what the API promises."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import httpx
import pytest
from pydantic import BaseModel
from serving_world import DOCUMENTS, Api, World

from idiolect import AsyncClient, Client
from idiolect.client import Document, DomainChoice, RetryPolicy, Signal, calls, results
from idiolect.client.errors import ApiAuthenticationError, ApiConsentError, ApiInvalidInputError, ApiNotFoundError
from idiolect.errors import NotFoundError, PreconditionError
from idiolect_services.gateway.schemas import chat, common, controls, feedback, ranking, registry, retention, tokens


class Through(httpx.BaseTransport):
    """Lets the synchronous client speak to the app."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        raw = request.url.raw_path.decode()
        answer = self._api.send(request.method, raw, content=request.read(), headers=headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def api(world: World) -> Client:
    return client_of(world, world.key())


def client_of(world: World, key: str) -> Client:
    return Client("https://api.test", key, transport=Through(world.api()), retries=RetryPolicy(attempts=1))


def test_the_whole_life_of_a_person(world: World, api: Client) -> None:
    assert not api.consent("ann").known
    state = api.set_consent("ann", opted_in=True)
    assert state.opted_in
    version = world.publish_user("ann")
    ranked = api.rerank("q", [Document(text, id=str(i)) for i, text in enumerate(DOCUMENTS)], user="ann", explain=True)
    assert ranked.personalization.applied
    assert ranked.best.id == str(ranked.best.index)
    assert ranked.best.parts is not None
    assert ranked.id is not None
    signal = Signal(ranked.id, "choice", ranked.results[3].index, "ann", id="s1")
    assert [api.feedback(signal).status, api.feedback(signal).status] == ["accepted", "duplicate"]
    outcome = api.feedback_batch([signal, Signal(ranked.id, "accept", ranked.best.index, "ann")])
    assert (outcome.accepted, outcome.duplicate) == (1, 1)
    assert [entry.score for entry in api.score("q", DOCUMENTS, user="ann").data] == [
        entry.score for entry in sorted(ranked.results, key=lambda result: result.index)
    ]
    assert api.compare("q", "x", "y", user="ann").preferred in "ab"
    explained = api.explanation("ann")
    assert explained.adapter is not None
    assert explained.adapter.version == version.id
    assert api.adapters(user="ann").adapters[0].id == version.id
    assert api.adapter(version.id).manifest["scope"] == "user"
    assert api.releases().releases[0].id == version.release
    assert api.revoke_release(version.release, "a test").revoked
    assert api.ledger(limit=5).runs == ()
    receipt = api.reset("ann", "all", idempotency_key="once")
    assert api.reset("ann", "all", idempotency_key="once") == api.reset_receipt("ann", "once") == receipt
    assert api.rerank("q", DOCUMENTS, user="ann").personalization.reason == "not_opted_in"
    assert api.health().status == api.ready().status == "ok"


def test_its_errors_are_those_of_the_platform(world: World, api: Client) -> None:
    with pytest.raises(PreconditionError):
        api.set_consent("ann", opted_in=True, if_revision=7)
    with pytest.raises(ApiConsentError):
        api.rerank("q", DOCUMENTS, user="ann", personalization="required")
    with pytest.raises(ApiInvalidInputError) as refused:
        api.rerank("q", [])
    assert [field.field for field in refused.value.fields] == ["documents"]
    assert refused.value.request_id
    with pytest.raises(NotFoundError):
        api.adapter("nothing")
    with pytest.raises(ApiNotFoundError):
        api.upstream()
    with pytest.raises(ApiAuthenticationError):
        client_of(world, "idio_not_a_key_of_ours").rerank("q", ["a"])


def test_the_retention_is_read_and_set_by_whoever_read_it_last(api: Client) -> None:
    before = api.retention()
    assert api.set_retention(90, based_on=before).own_days == 90
    with pytest.raises(PreconditionError):
        api.set_retention(30, based_on=before)
    assert api.set_retention(None, based_on=api.retention()) == before


@pytest.mark.parametrize("user", ["a/b", "..", "a b?c#d", "ä日", "%2e", "x;y=z", "100%"])
def test_odd_ids_name_the_same_person_in_the_path_as_in_a_body(world: World, api: Client, user: str) -> None:
    api.set_consent(user, opted_in=True)
    world.publish_user(user)
    assert api.rerank("q", DOCUMENTS, user=user).personalization.applied
    assert api.consent(user).revision == 1


def test_the_asynchronous_client_does_the_same(world: World, api: Client) -> None:
    async def ask() -> results.Ranking:
        transport = httpx.ASGITransport(world.app)
        async with AsyncClient("https://api.test", world.key(), transport=transport) as asynchronous:
            first, second = await asyncio.gather(
                asynchronous.rerank("q", DOCUMENTS), asynchronous.rerank("q", DOCUMENTS)
            )
        assert first.results == second.results
        return first

    assert asyncio.run(ask()).results == api.rerank("q", DOCUMENTS).results


PAIRS: list[tuple[type[results.Result], type[BaseModel]]] = [
    (results.Personalization, common.PersonalizationBlock),
    (results.Ranking, ranking.RerankResponse),
    (results.Scores, ranking.ScoreResponse),
    (results.Comparison, ranking.CompareResponse),
    (results.SignalOutcome, feedback.SignalOutcome),
    (results.BatchOutcome, feedback.BatchOutcome),
    (results.Consent, controls.ConsentState),
    (results.ResetReceipt, controls.ResetReceipt),
    (results.Explanation, controls.Explanation),
    (results.AdapterPage, registry.AdapterPage),
    (results.Adapter, registry.AdapterDetail),
    (results.Releases, registry.ReleaseList),
    (results.Revocation, registry.RevokeResponse),
    (results.Ledger, registry.LedgerPage),
    (results.Completion, chat.ChatResponse),
    (results.Upstream, chat.UpstreamState),
    (results.Token, tokens.TokenResponse),
    (results.Retention, retention.RetentionState),
]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is not None or isinstance(annotation, UnionType):
        return [model for part in get_args(annotation) for model in _models_in(part)]
    return []


def _check_fields(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    """Every field that the client requires is one that the server promises, all the way down."""
    for name, field in ours.model_fields.items():
        assert name in theirs.model_fields, f"{ours.__name__}.{name} is not in {theirs.__name__}"
        promised = theirs.model_fields[name]
        assert (field.alias or name) == (promised.alias or name)
        for mine, its in zip(_models_in(field.annotation), _models_in(promised.annotation), strict=False):
            _check_fields(mine, its)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda model: model.__name__)
def test_results_hold_what_the_api_promises(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    _check_fields(ours, theirs)


def test_every_call_is_a_route_of_the_api(world: World) -> None:
    described = world.app.openapi()["paths"]
    offered = {(method.upper(), re.sub(r"{\w+}", "{}", path)) for path in described for method in described[path]}
    signal = Signal("i", "choice", 0, "u")
    made = [
        calls.rerank("q", ["a"]),
        calls.score("q", ["a"]),
        calls.compare("q", "a", "b"),
        calls.complete([{"role": "user", "content": "q"}]),
        calls.issue_token("u", ["infer"]),
        calls.upstream(),
        calls.set_upstream("https://api.example.com"),
        calls.remove_upstream(),
        calls.retention(),
        calls.set_retention(90),
        calls.feedback(signal),
        calls.feedback_batch([signal]),
        calls.consent("u"),
        calls.set_consent("u", paused=True),
        calls.reset("u"),
        calls.reset_receipt("u", "r"),
        calls.explanation("u"),
        calls.adapters(),
        calls.adapter("v"),
        calls.releases(),
        calls.revoke_release("r", "why"),
        calls.ledger(),
        calls.health(),
        calls.ready(),
    ]
    segments = {"u": "users", "r": "resets", "v": "adapters"}
    asked = {(call.method, _template(call.path, segments)) for call in made}
    assert asked <= offered, asked - offered


def _template(path: str, ids: dict[str, str]) -> str:
    return "/".join("{}" if part in ids else part for part in path.split("/"))


def test_a_person_is_exported_and_erased(world: World, api: Client, tmp_path: Path) -> None:
    world.opt_in("ann")
    archive = api.export("ann")
    archive.save(tmp_path / "ann.zip")
    assert (tmp_path / "ann.zip").read_bytes() == archive.content
    assert (tmp_path / "ann.zip").stat().st_mode & 0o777 == 0o600
    assert archive.content.startswith(b"PK")
    assert "PK" not in repr(archive)
    with pytest.raises(FileExistsError):
        archive.save(tmp_path / "ann.zip")
    assert api.consent_receipt("ann").policy_version is not None
    assert api.erase("ann").id == api.erase("ann").id
    assert not api.consent("ann").opted_in


def test_domains_are_set_and_read(api: Client) -> None:
    said = api.set_consent("ann", opted_in=True, domains={"chat": DomainChoice(strength=0.5)})
    assert said.domains["chat"].strength == 0.5
    assert api.reset("ann", "all", domain="chat").scope == "all"
    assert not api.consent("ann").domains["chat"].opted_in
