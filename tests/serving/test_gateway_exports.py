"""POST /v1/users/{user}/exports: all of one person, nothing of another, and nothing left behind."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from serving_world import DOCUMENTS, World, assert_problem, some_weights
from starlette.requests import ClientDisconnect
from typer.testing import CliRunner

from idiolect.canonical import canonical_json
from idiolect.clock import SystemClock
from idiolect.errors import ConflictError, CorruptArtifactError, UnavailableError
from idiolect.privacy.events import GaussianEvent
from idiolect.resets.plan import plan_reset
from idiolect.settings import Settings
from idiolect.stores.sql import person_pages
from idiolect.tenancy import Scope
from idiolect_services.cli import app as command_line
from idiolect_services.exports import Exporter
from idiolect_services.gateway import streaming
from idiolect_services.gateway.routes import exports as routes
from idiolect_services.wiring import open_installation

PATH = "/v1/users/ann/exports"
LISTS = (
    "consent_history",
    "shown",
    "signals",
    "comparisons",
    "held_out_comparisons",
    "ratings",
    "charges",
    "releases",
    "adapter_history",
    "resets",
)


def opened(content: bytes) -> dict[str, Any]:
    """The archive's files by name; of .json files what they hold."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        files = {name: archive.read(name) for name in archive.namelist()}
    return {name: json.loads(data) if name.endswith(".json") else data for name, data in files.items()}


def live(world: World, user: str = "ann", query: str = "q", documents: list[str] | None = None) -> None:
    """One ranking, with a choice."""
    api = world.api(world.key())
    documents = documents or DOCUMENTS[:3]
    body = {"query": query, "documents": documents, "user": user, "domain": "chat"}
    shown = api.post("/v1/rerank", body).json()
    signal = {"id": f"s-{user}", "inference_id": shown["id"], "kind": "choice", "value": 1, "user": user}
    assert api.post("/v1/feedback", signal).status_code == 202


def test_an_export_holds_everything_of_the_person(world: World) -> None:
    world.opt_in("ann")
    subject = world.pseudonym("acme", "ann")
    event = GaussianEvent(2.0, 10)
    run = world.store.reserve("acme", "comparison", "user adapters", event, [subject], 100.0, world.clock.now()).run
    version = world.publish_user("ann", run=run)
    live(world, query="how?")
    response = world.api(world.key()).post(PATH)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"] == 'attachment; filename="idiolect-export.zip"'
    files = opened(response.content)
    assert files["consent.json"]["opted_in"] is True
    assert files["consent.json"]["policy_version"]
    assert [one["action"] for one in files["consent_history.json"]] == ["consent.change", "user.export"]
    (shown,) = files["shown.json"]
    assert (shown["query"], shown["documents"], shown["domain"]) == ("how?", DOCUMENTS[:3], "chat")
    (signal,) = files["signals.json"]
    assert (signal["id"], signal["kind"], signal["value"], signal["shown"]) == ("s-ann", "choice", 1, shown["id"])
    pairs = {(one["prompt"], one["chosen"], one["rejected"]) for one in files["comparisons.json"]}
    assert pairs == {("how?", DOCUMENTS[1], DOCUMENTS[0]), ("how?", DOCUMENTS[1], DOCUMENTS[2])}
    (charge,) = files["charges.json"]
    assert (charge["run"], charge["rho"], charge["release"]) == (run, event.rho, version.release)
    assert [(one["version"], one["via"]) for one in files["releases.json"]] == [(version.id, "own")]
    assert [one["to"] for one in files["adapter_history.json"]] == [version.id]
    manifest = files["adapters/1/manifest.json"]
    assert (manifest["id"], manifest["manifest"]["subject"]) == (version.id, subject)
    (tensor,) = safetensors.numpy.load(files["adapters/1/adapter.safetensors"]).values()
    assert np.array_equal(tensor[0], np.array(some_weights("ann", 8), dtype=np.float32))
    for name in files:
        assert name == "README.txt" or name.split("/")[0].encode() in files["README.txt"]
    assert subject.encode() in files["README.txt"]


def test_the_consent_in_an_export_is_signed(world: World) -> None:
    world.opt_in("ann")
    consent = opened(world.api(world.key()).post(PATH).content)["consent.json"]
    body = {name: value for name, value in consent.items() if name not in ("key_id", "signature")}
    signature = bytes.fromhex(consent["signature"])
    world.signer.verify(consent["key_id"], signature, canonical_json(body), what="consent")
    assert body["opted_in"]
    with pytest.raises(CorruptArtifactError):
        world.signer.verify(consent["key_id"], signature, canonical_json(body | {"opted_in": False}), what="consent")


def test_an_export_holds_nothing_of_anybody_else(world: World) -> None:
    world.opt_in("ann")
    world.opt_in("bob")
    world.opt_in("ann", tenant="other")
    world.publish_user("bob")
    live(world, "bob", query="secret of bob", documents=["bob's one", "bob's other", "bob's third"])
    live(world, "ann")
    response = world.api(world.key()).post(PATH)
    files = opened(response.content)
    assert "bob" not in json.dumps({name: value for name, value in files.items() if name.endswith(".json")})
    assert world.pseudonym("acme", "bob") not in str(files)
    theirs = opened(world.api(world.key("other")).post(PATH).content)
    assert theirs["shown.json"] == theirs["signals.json"] == theirs["comparisons.json"] == []


def test_someone_unknown_and_someone_of_another_tenant_get_the_same_empty_export(world: World) -> None:
    world.opt_in("ann")
    live(world)
    other = world.api(world.key("other"))
    answers = [other.post(f"/v1/users/{user}/exports") for user in ("ann", "nobody")]
    found = [opened(answer.content) for answer in answers]
    for files in found:
        assert files["consent.json"] == {"opted_in": False, "policy_version": None}
        assert all(files[f"{name}.json"] == [] for name in LISTS if name != "consent_history")
        assert [one["action"] for one in files["consent_history.json"]] == ["user.export"]
    assert list(found[0]) == list(found[1])
    assert not other.get("/v1/users/nobody/personalization").json()["known"]


def test_an_end_user_exports_themselves_and_nobody_else(world: World) -> None:
    world.opt_in("ann")
    live(world)
    body = {"user": "ann", "scopes": ["controls"]}
    token = world.api(world.key()).post("/v1/tokens", body).json()["token"]
    mine = world.api(token)
    assert len(opened(mine.post(PATH).content)["signals.json"]) == 1
    assert_problem(mine.post("/v1/users/bob/exports"), 404, "not_found")
    assert_problem(world.api(world.key("acme", Scope.INFER)).post(PATH), 404, "not_found")
    assert_problem(world.api().post(PATH), 401, "not_authenticated")


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "a\nb\r\n", '"], "x": [', "\u2028\u202e &amp;", "日本"]
)
def test_texts_come_back_exactly_and_can_not_be_read_as_html(world: World, text: str) -> None:
    world.opt_in("ann")
    live(world, query=text, documents=[text, "plain"])
    content = world.api(world.key()).post(PATH).content
    assert opened(content)["shown.json"][0]["documents"] == [text, "plain"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        raw = archive.read("shown.json")
    assert not any(unseen in raw.decode() for unseen in "\u2028\u202e")
    assert not any(sign in raw for sign in (b"<", b">", b"&"))


@pytest.mark.parametrize("text", ["Größe", "你好,世界!", "שלום", "😊 – ja", "ju\u0308rgen", "हिन्दी"])
def test_people_can_read_their_own_export_in_any_script(world: World, text: str) -> None:
    world.opt_in("ann")
    live(world, query=text, documents=[text, "plain"])
    with zipfile.ZipFile(io.BytesIO(world.api(world.key()).post(PATH).content)) as archive:
        assert f'"{text}"' in archive.read("shown.json").decode()


@pytest.mark.parametrize("user", ["..%2F..%2Fetc", "%3Cb%3E", "%22a%22", "=1+1", "a%2Fb"])
def test_no_name_in_the_archive_or_its_headers_comes_from_the_user(world: World, user: str) -> None:
    response = world.api(world.key()).post(f"/v1/users/{user}/exports")
    assert response.status_code == 200
    assert response.headers["content-disposition"] == 'attachment; filename="idiolect-export.zip"'
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert all(name.replace("_", "").replace(".", "").replace("/", "").isalnum() for name in archive.namelist())


def test_more_than_a_page_is_exported_whole_and_in_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(person_pages, "PAGE", 2)
    monkeypatch.setattr(person_pages, "SHOWN_PAGE", 2)
    world.opt_in("ann")
    api = world.api(world.key())
    for number in range(5):
        body = {"query": f"q{number}", "documents": ["a", "b"], "user": "ann"}
        shown = api.post("/v1/rerank", body).json()["id"]
        signal = {"id": f"s{number}", "inference_id": shown, "kind": "choice", "value": 0, "user": "ann"}
        assert api.post("/v1/feedback", signal).status_code == 202
    files = opened(api.post(PATH).content)
    assert [one["query"] for one in files["shown.json"]] == [f"q{number}" for number in range(5)]
    assert [one["id"] for one in files["signals.json"]] == [f"s{number}" for number in range(5)]
    assert [one["prompt"] for one in files["comparisons.json"]] == [f"q{number}" for number in range(5)]


def test_memory_does_not_grow_with_what_is_exported(world: World) -> None:
    world.opt_in("ann")
    rng = np.random.default_rng(0)
    api = world.api(world.key())
    for _ in range(30):
        documents = [rng.bytes(6_000).hex() for _ in range(4)]
        api.post("/v1/rerank", {"query": "q", "documents": documents, "user": "ann"})
    exporter = Exporter(world.store, world.signer)
    sizes = [len(chunk) for chunk in exporter.chunks("acme", world.pseudonym("acme", "ann"), world.clock.now())]
    assert sum(sizes) > 600_000
    assert max(sizes) < 200_000


def test_nothing_is_written_to_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.opt_in("ann")
    live(world)
    before = set(world.root.rglob("*"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert world.api(world.key()).post(PATH).status_code == 200
    assert set(world.root.rglob("*")) == before


def test_who_exported_is_in_the_audit_log(world: World) -> None:
    world.api(world.key()).post(PATH)
    (entry,) = world.store.audit_entries("acme", limit=1)
    assert (entry.action, entry.object) == ("user.export", f"user {world.pseudonym('acme', 'ann')}")
    assert entry.actor.startswith("api key ")


def test_too_many_exports_at_once_are_put_off_and_the_slots_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "AT_ONCE", 1)
    api = world.api(world.key())
    for _ in range(3):
        assert api.post(PATH).status_code == 200
    monkeypatch.setattr(routes, "AT_ONCE", 0)
    refused = api.post(PATH)
    assert_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "5"


def test_a_store_that_fails_at_the_start_is_a_problem_and_gives_the_slot_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "AT_ONCE", 1)
    api = world.api(world.key())

    def gone(*_: object, **__: object) -> None:
        raise UnavailableError("gone.")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "person_page", gone)
        assert_problem(api.post(PATH), 503, "unavailable")
    assert api.post(PATH).status_code == 200


def test_a_reader_who_stops_reading_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STEP_SECONDS", 0.05)
    done: list[bool] = []

    async def pieces() -> Any:
        yield b"x"

    async def never(_message: Any) -> None:
        await asyncio.sleep(60)

    async def receive() -> Any:
        await asyncio.sleep(60)

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    sending = streaming.Streamed(pieces(), lambda: done.append(True), routes.MEDIA_TYPE, {})
    with pytest.raises(ClientDisconnect):
        asyncio.run(sending(scope, receive, never))
    assert done == [True]


def test_an_idempotency_key_of_something_else_is_refused(world: World) -> None:
    api, key = world.api(world.key()), {"Idempotency-Key": "k"}
    assert api.post(PATH, headers=key).status_code == 200
    assert api.post(PATH, headers=key).status_code == 200
    assert_problem(api.post("/v1/users/bob/exports", headers=key), 422, "idempotency_key_reused")


def test_resets_are_in_the_export_and_what_they_erased_is_not(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    live(world)
    subject = world.pseudonym("acme", "ann")
    world.store.apply_reset("acme", subject, "r1", plan_reset("feedback"), world.clock.now())
    files = opened(world.api(world.key()).post(PATH).content)
    assert [one["id"] for one in files["resets.json"]] == ["r1"]
    assert files["shown.json"] == files["signals.json"] == files["comparisons.json"] == []
    assert not any(name.startswith("adapters/") for name in files)


def test_the_command_writes_a_file_of_its_owners_alone(tmp_path: Path) -> None:
    with open_installation(Settings(home=tmp_path / "home")) as installation:
        installation.store.create_tenant("demo", installation.clock.now())

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(command_line, ["user", *arguments, "--home", str(tmp_path / "home")])

    target = tmp_path / "ann.zip"
    result = run("export", "ann", str(target))
    assert result.exit_code == 0, result.output
    assert target.stat().st_mode & 0o777 == 0o600
    assert opened(target.read_bytes())["signals.json"] == []
    again = run("export", "ann", str(target))
    assert isinstance(again.exception, ConflictError)


def test_an_export_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        yield b"PK"
        raise UnavailableError("gone.")

    monkeypatch.setattr(Exporter, "chunks", broken)
    with open_installation(Settings(home=tmp_path / "home")) as installation:
        installation.store.create_tenant("demo", installation.clock.now())
    target = tmp_path / "ann.zip"
    result = CliRunner().invoke(command_line, ["user", "export", "ann", str(target), "--home", str(tmp_path / "home")])
    assert isinstance(result.exception, UnavailableError)
    assert not target.exists()


def test_times_in_the_archive_are_those_of_the_clock(world: World) -> None:
    exporter, now = Exporter(world.store, world.signer), SystemClock().now()
    content = b"".join(exporter.chunks("acme", "nobody", now))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {info.date_time[:3] for info in archive.infolist()} == {(now.year, now.month, now.day)}
