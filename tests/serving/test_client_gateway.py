"""The client against the real gateway: what one sends the other takes, and results hold what the API promises."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path

import httpx
import pytest
from client_world import client_of
from serving_world import DOCUMENTS, World

from idiolect import AsyncClient, Client
from idiolect.client import Document, DomainChoice, Signal, results
from idiolect.client.errors import ApiAuthenticationError, ApiConsentError, ApiInvalidInputError, ApiNotFoundError
from idiolect.errors import NotFoundError, PreconditionError


@pytest.fixture
def api(world: World) -> Client:
    return client_of(world, world.key())


def test_the_whole_life_of_a_person(world: World, api: Client) -> None:
    assert not api.consent("ann").known
    state = api.set_consent("ann", opted_in=True)
    assert state.opted_in
    version = world.publish_user("ann")
    ranked = api.rerank("q", [Document(text, id=str(i)) for i, text in enumerate(DOCUMENTS)], user="ann", explain=True)
    assert ranked.personalization.applied
    assert ranked.best.id == str(ranked.best.index)
    assert ranked.best.parts is not None
    assert ranked.best.directions is not None
    assert sum(ranked.best.directions.user) == pytest.approx(ranked.best.parts.user)
    assert ranked.contrasts is not None
    assert set(ranked.contrasts) >= set(ranked.best.directions.top)
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
    assert {one.clear for one in explained.adapter.directions} <= {True, False, None}
    assert len({one.direction for one in explained.adapter.directions}) == len(explained.adapter.directions) > 0
    assert all(one.says for one in explained.adapter.directions)
    assert api.adapters(user="ann").adapters[0].id == version.id
    assert api.adapter(version.id).manifest["scope"] == "user"
    assert api.releases().releases[0].id == version.release
    assert api.revoke_release(version.release, "a test").revoked
    assert api.ledger(limit=5).runs == ()
    receipt = api.reset("ann", "all", idempotency_key="once")
    assert api.reset("ann", "all", idempotency_key="once") == api.reset_receipt("ann", receipt.id) == receipt
    assert api.rerank("q", DOCUMENTS, user="ann").personalization.reason == "not_opted_in"
    assert api.health().status == api.ready().status == "ok"
    assert (api.ready().model, api.ready().candidate) == (None, None)


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
    saved = api.save_export("ann", tmp_path / "again.zip")
    assert zipfile.ZipFile(saved.path).testzip() is None
    assert saved.size == saved.path.stat().st_size
    assert api.consent_receipt("ann").policy_version is not None
    assert api.erase("ann").id == api.erase("ann").id
    assert not api.consent("ann").opted_in


def test_domains_are_set_and_read(api: Client) -> None:
    said = api.set_consent("ann", opted_in=True, domains={"chat": DomainChoice(strength=0.5)})
    assert said.domains["chat"].strength == 0.5
    receipt = api.reset("ann", "all", domain="chat")
    assert (receipt.scope, receipt.domain) == ("all", "chat")
    assert not api.consent("ann").domains["chat"].opted_in
