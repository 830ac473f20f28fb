"""DELETE /v1/users/{user}: nothing of the person is left, and the receipt says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving_world import World, assert_problem, scores
from typer.testing import CliRunner

from idiolect.canonical import canonical_json
from idiolect.settings import Settings
from idiolect.tenancy import Scope
from idiolect_services.cli import app as command_line
from idiolect_services.wiring import open_installation

PATH = "/v1/users/ann"


def live(world: World, user: str = "ann") -> dict[str, Any]:
    """Opted in, ranked for, chosen, trained."""
    api = world.api(world.key())
    world.opt_in(user)
    shown = api.rerank(user)
    signal = {"inference_id": shown["id"], "kind": "choice", "value": 3, "user": user}
    assert api.post("/v1/feedback", signal).status_code == 202
    world.publish_user(user)
    return shown


def test_an_erased_person_is_ranked_for_like_someone_who_never_was(world: World) -> None:
    api = world.api(world.key())
    shown = live(world)
    applied = api.rerank("ann")
    assert applied["personalization"]["applied"]
    receipt = api.send("DELETE", PATH).json()
    after = api.rerank("ann")
    assert after["personalization"]["reason"] == "not_opted_in"
    assert scores(after) == scores(api.rerank("stranger")) != scores(applied)
    assert (receipt["scope"], receipt["generation"], receipt["state"]) == ("erasure", 1, "completed")
    assert receipt["erased"]["signals"] == receipt["erased"]["inferences"] - 1 == 1
    assert world.store.inference("acme", shown["id"]) is None
    assert api.get("/v1/adapters", params={"user": "ann"}).json()["adapters"] == []


def test_the_receipt_is_signed_and_can_be_fetched_again(world: World) -> None:
    api = world.api(world.key())
    live(world)
    receipt = api.send("DELETE", PATH).json()
    body = {name: value for name, value in receipt.items() if name not in ("key_id", "signature")}
    world.signer.verify(receipt["key_id"], bytes.fromhex(receipt["signature"]), canonical_json(body), what="receipt")
    fetched = api.get(f"{PATH}/personalization/resets/{receipt['id']}").json()
    assert (fetched["id"], fetched["scope"], fetched["erased"]) == (receipt["id"], "erasure", receipt["erased"])
    assert '"ann"' not in json.dumps(receipt)


def test_erasing_again_answers_the_first_receipt(world: World) -> None:
    api = world.api(world.key())
    live(world)
    first, again = api.send("DELETE", PATH).json(), api.send("DELETE", PATH).json()
    assert (again["id"], again["generation"], again["completed_at"]) == (
        first["id"],
        first["generation"],
        first["completed_at"],
    )


def test_an_erased_person_who_comes_back_starts_afresh(world: World) -> None:
    api = world.api(world.key())
    live(world)
    api.send("DELETE", PATH)
    state = api.put(f"{PATH}/personalization", {"opted_in": True}).json()
    assert (state["generation"], state["strength"], state["domains"]) == (1, 1.0, {})
    assert api.rerank("ann")["personalization"]["reason"] == "no_adapter"
    world.publish_user("ann")
    assert api.rerank("ann")["personalization"]["applied"]


def test_nobody_else_notices(world: World) -> None:
    api = world.api(world.key())
    live(world)
    live(world, "bob")
    world.opt_in("ann", tenant="other")
    before = api.rerank("bob")
    api.send("DELETE", PATH)
    assert scores(api.rerank("bob")) == scores(before)
    assert world.api(world.key("other")).get(f"{PATH}/personalization").json()["opted_in"]


def test_someone_unknown_is_erased_like_anyone(world: World) -> None:
    live(world)
    other = world.api(world.key("other"))
    answers = [other.send("DELETE", f"/v1/users/{user}").json() for user in ("ann", "nobody")]
    for answer in answers:
        assert sum(answer["erased"].values()) == 0
    assert answers[0].keys() == answers[1].keys()
    assert world.store.subject("acme", world.pseudonym("acme", "ann")).opted_in


def test_who_may_erase(world: World) -> None:
    live(world)
    body = {"user": "ann", "scopes": ["controls"]}
    mine = world.api(world.api(world.key()).post("/v1/tokens", body).json()["token"])
    assert_problem(mine.send("DELETE", "/v1/users/bob"), 404, "not_found")
    assert_problem(world.api(world.key("acme", Scope.ADMIN)).send("DELETE", PATH), 404, "not_found")
    assert_problem(world.api().send("DELETE", PATH), 401, "not_authenticated")
    assert world.store.subject("acme", world.pseudonym("acme", "ann")).opted_in
    assert mine.send("DELETE", PATH).json()["scope"] == "erasure"


@pytest.mark.parametrize("by", ["key", "token"])
def test_the_log_says_who_erased_and_who_changed_the_consent(world: World, by: str) -> None:
    api = world.api(world.key())
    if by == "token":
        body = {"user": "ann", "scopes": ["controls"]}
        api = world.api(api.post("/v1/tokens", body).json()["token"])
    api.put(f"{PATH}/personalization", {"opted_in": True})
    api.post(f"{PATH}/personalization/reset", {"scope": "adapter"})
    api.send("DELETE", PATH)
    start = "api key " if by == "key" else "the person, by api key "
    entries = world.store.audit_entries("acme", limit=3)
    assert [entry.action for entry in entries] == ["reset", "reset", "consent.change"]
    assert all(entry.actor.startswith(start) for entry in entries)


def test_the_command_erases_and_prints_the_receipt(tmp_path: Path) -> None:
    with open_installation(Settings(home=tmp_path)) as installation:
        installation.store.create_tenant("demo", installation.clock.now())

    def run() -> dict[str, Any]:
        result = CliRunner().invoke(command_line, ["user", "erase", "ann", "--home", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.output))

    first = run()
    assert first["scope"] == "erasure"
    assert run()["id"] == first["id"]
