"""The whole life of a person in the API, and what others see of it: nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from serving_world import DOCUMENTS, World, assert_problem, scores

from idiolect.canonical import canonical_json
from idiolect.registry.signing import Signer
from idiolect.tenancy import Scope


def test_from_opting_in_to_a_reset_that_holds(world: World) -> None:
    api = world.api(world.key())
    world.publish_domain("default")
    stranger = api.rerank("stranger")

    opted = api.put("/v1/users/ann/personalization", {"opted_in": True})
    assert opted.json()["opted_in"]
    world.publish_user("ann")
    mine = api.rerank("ann")
    assert mine["personalization"]["applied"]
    assert scores(mine) != scores(stranger)
    assert api.rerank("stranger")["results"] == stranger["results"]

    signal = {"id": "s1", "inference_id": mine["id"], "kind": "choice", "value": 3, "user": "ann"}
    first, again = api.post("/v1/feedback", signal), api.post("/v1/feedback", signal)
    assert (first.status_code, first.json()) == (202, {"id": "s1", "status": "accepted"})
    assert (again.status_code, again.json()) == (202, {"id": "s1", "status": "duplicate"})
    assert world.fed_back == [("acme", world.pseudonym("acme", "ann"))]

    receipt = api.post("/v1/users/ann/personalization/reset", {"scope": "all"})
    assert receipt.status_code == 200
    assert world.bank.stats().entries == 1  # the domain's
    after = api.rerank("ann")
    assert after["results"] == stranger["results"]  # bit for bit: JSON numbers are written to the last digit
    assert after["personalization"] | {"reason": "", "generation": 0} == stranger["personalization"] | {"reason": ""}
    assert after["personalization"]["reason"] == "not_opted_in"


def test_after_a_reset_a_person_can_start_afresh(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    old = world.publish_user("ann")
    api.post("/v1/users/ann/personalization/reset", {"scope": "adapter"})
    assert api.rerank("ann")["personalization"]["reason"] == "no_adapter"
    new = world.publish_user("ann", [0.25] * world.model.user_rank)
    said = api.rerank("ann")["personalization"]
    assert (said["applied"], said["adapter"], said["generation"]) == (True, new.id, 1)
    assert api.get(f"/v1/adapters/{old.id}").status_code == 404


def test_a_new_version_goes_live_in_the_running_server(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    first = world.publish_user("ann")
    before = api.rerank("ann")
    second = world.publish_user("ann", [0.5] * world.model.user_rank)
    after = api.rerank("ann")
    assert before["personalization"]["adapter"] == first.id
    assert after["personalization"]["adapter"] == second.id
    assert scores(before) != scores(after)


def test_opting_out_works_like_a_reset(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    api.rerank("ann")
    state = api.put("/v1/users/ann/personalization", {"opted_in": False}).json()
    assert (state["opted_in"], state["generation"]) == (False, 1)
    assert world.bank.stats().entries == 0
    assert api.rerank("ann")["results"] == api.rerank("stranger")["results"]


def test_a_corrupt_stored_weight_falls_back_and_says_so(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.opt_in("bob")
    version = world.publish_user("ann")
    world.publish_user("bob")
    world.damage("id", version.id)
    response = api.rerank("ann")
    assert response["personalization"]["reason"] == "adapter_invalid"
    assert response["results"] == api.rerank("stranger")["results"]
    assert api.rerank("bob")["personalization"]["applied"]
    required = api.post(
        "/v1/rerank", {"query": "q", "documents": DOCUMENTS, "user": "ann", "personalization": "required"}
    )
    problem = assert_problem(required, 409, "personalization_unavailable")
    assert "adapter_invalid" in problem["detail"]


def test_another_tenant_sees_nothing_of_it(world: World) -> None:
    api, other = world.api(world.key()), world.api(world.key("other"))
    world.opt_in("ann")
    version = world.publish_user("ann")
    world.publish_domain("default")
    mine = api.rerank("ann")
    theirs = other.rerank("ann")
    assert theirs["personalization"]["reason"] == "unknown_user"
    assert theirs["personalization"]["domain"] is None
    assert scores(theirs) != scores(mine)
    receipt = api.post(
        "/v1/users/ann/personalization/reset", {"scope": "adapter"}, headers={"Idempotency-Key": "r1"}
    ).json()
    assert api.get(f"/v1/users/ann/personalization/resets/{receipt['id']}").json() == receipt

    def answers(path: str) -> tuple[int, dict[str, Any]]:
        response = other.get(path)
        return response.status_code, response.json() | {"request_id": ""}

    assert answers(f"/v1/adapters/{version.id}") == answers("/v1/adapters/nothing")
    resets = "/v1/users/ann/personalization/resets"
    assert answers(f"{resets}/{receipt['id']}") == answers(f"{resets}/nothing")
    assert other.get("/v1/adapters").json()["adapters"] == []
    assert other.get("/v1/releases").json()["releases"] == []
    assert other.get("/v1/privacy/ledger").json()["runs"] == []
    assert not other.get("/v1/users/ann/personalization").json()["known"]
    signal = {"inference_id": mine["id"], "kind": "choice", "value": 3, "user": "ann"}
    foreign, unknown = other.post("/v1/feedback", signal), other.post("/v1/feedback", signal | {"inference_id": "x"})
    assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    revoke = other.post(f"/v1/releases/{version.release}/revoke", {"reason": "mine now"})
    assert_problem(revoke, 404, "not_found")
    assert not api.get("/v1/releases").json()["releases"][0]["revoked"]
    # The same idempotency key in another tenant is another reset.
    assert (
        other.post(
            "/v1/users/ann/personalization/reset", {"scope": "adapter"}, headers={"Idempotency-Key": "r1"}
        ).json()["generation"]
        == 1
    )


def test_a_persons_inference_takes_no_feedback_from_another_person(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.opt_in("bob")
    shown = api.rerank("ann")["id"]
    signal = {"inference_id": shown, "kind": "choice", "value": 3, "user": "bob"}
    assert_problem(api.post("/v1/feedback", signal), 422, "invalid_input")
    assert world.fed_back == []


def test_nothing_shown_to_who_has_not_opted_in_is_kept_as_theirs(world: World) -> None:
    api = world.api(world.key())
    shown = api.rerank("ann")["id"]
    assert world.store.inference("acme", shown).subject is None
    world.opt_in("ann")
    shown = api.rerank("ann")["id"]
    assert world.store.inference("acme", shown).subject == world.pseudonym("acme", "ann")


def test_the_receipt_is_signed_and_idempotent(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    path, key = "/v1/users/ann/personalization/reset", {"Idempotency-Key": "once"}
    first = api.post(path, {"scope": "feedback"}, headers=key).json()
    again = api.post(path, {"scope": "feedback"}, headers=key).json()
    assert first == again
    assert api.get("/v1/users/ann/personalization").json()["generation"] == 1
    body = {name: value for name, value in first.items() if name not in ("key_id", "signature")}
    Signer(b"\x07" * 32).verify(
        first["key_id"], bytes.fromhex(first["signature"]), canonical_json(body), what="receipt"
    )
    assert "ann" not in json.dumps(first)
    for person, scope in (("bob", "feedback"), ("ann", "all")):
        reused = api.post(f"/v1/users/{person}/personalization/reset", {"scope": scope}, headers=key)
        assert_problem(reused, 422, "idempotency_key_reused")
    assert api.get("/v1/users/bob/personalization").json()["generation"] == 0
    assert api.get("/v1/users/bob/personalization/resets/once").status_code == 404


def test_resetting_someone_unknown_is_harmless(world: World) -> None:
    api = world.api(world.key())
    response = api.post("/v1/users/nobody/personalization/reset", {"scope": "all"})
    assert (response.status_code, response.json()["generation"]) == (200, 1)


def test_relevance_is_a_monotone_probability_and_parts_add_up(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    world.publish_domain("news")
    response = api.rerank("ann", domain="news", explain=True, return_documents=True, top_n=50)
    results = response["results"]
    assert [result["index"] for result in results] == sorted(range(10), key=lambda i: -scores(response)[i])
    assert [r["relevance_score"] for r in results] == sorted((r["relevance_score"] for r in results), reverse=True)
    mean = math.fsum(scores(response).values()) / 10
    for result in results:
        parts = result["parts"]
        assert result["score"] == (parts["global"] + parts["domain"]) + parts["user"]
        assert parts["user"] != 0.0
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
        expected = 1 / (1 + math.exp(-(result["score"] - mean) / world.model.temperature))
        assert result["relevance_score"] == pytest.approx(expected)
        assert 0 < result["relevance_score"] < 1


def test_ties_stay_in_the_order_of_the_request(world: World) -> None:
    response = world.api(world.key()).rerank(documents=["same", "other", "same", {"text": "same", "id": "d"}])
    order = [result["index"] for result in response["results"] if result["index"] != 1]
    assert order == [0, 2, 3]
    assert [result.get("id") for result in response["results"] if result["index"] == 3] == ["d"]


def test_other_services_clients_are_understood(world: World) -> None:
    api = world.api(world.key())
    cohere = {"model": "rerank-v3.5", "query": "q", "documents": ["a", "b"], "top_n": 1, "max_tokens_per_doc": 4096}
    jina = {"model": "jina", "query": "q", "documents": [{"text": "a"}, {"text": "b"}], "truncation": True}
    for body in (cohere, jina):
        answer = api.post("/v1/rerank", body).json()
        assert {"index", "relevance_score"} <= set(answer["results"][0])
    vllm = api.post("/v1/score", {"model": "m", "text_1": "q", "text_2": ["a", "b"]}).json()
    ours = api.post("/v1/score", {"query": "q", "documents": ["a", {"text": "b"}]}).json()
    paired = api.post("/v1/score", {"text_1": ["q", "q"], "text_2": ["a", "b"], "explain": True}).json()
    assert [entry["index"] for entry in vllm["data"]] == [0, 1]
    for answer in (ours, paired):
        assert [e["score"] for e in answer["data"]] == [e["score"] for e in vllm["data"]]
    assert paired["data"][0]["parts"]["user"] == 0.0
    assert scores(api.post("/v1/rerank", cohere | {"top_n": 2}).json()) == dict(
        enumerate(entry["score"] for entry in vllm["data"])
    )


def test_a_comparison_is_a_bradley_terry_probability(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    one = api.post("/v1/compare", {"query": "q", "a": "x", "b": "y", "user": "ann", "explain": True}).json()
    swapped = api.post("/v1/compare", {"query": "q", "a": "y", "b": "x", "user": "ann"}).json()
    tie = api.post("/v1/compare", {"query": "q", "a": "x", "b": "x", "user": "ann"}).json()
    a, b = ((p["global"] + p["domain"]) + p["user"] for p in (one["parts"]["a"], one["parts"]["b"]))
    assert one["probability"] == pytest.approx(1 / (1 + math.exp(-(a - b) / world.model.temperature)))
    assert one["preferred"] == ("a" if a > b else "b")
    assert {one["preferred"], swapped["preferred"]} == {"a", "b"}
    assert one["probability"] + swapped["probability"] == pytest.approx(1.0)
    assert (tie["probability"], tie["preferred"]) == (0.5, "tie")
    assert one["personalization"]["applied"]


def test_a_domain_that_nobody_named_before_is_served_without_an_adapter(world: World) -> None:
    response = world.api(world.key()).rerank(domain="never-heard-of")
    assert response["personalization"]["domain"] is None
    assert world.store.inference("acme", response["id"]).domain == "never-heard-of"
    assert world.store.inference("acme", world.api(world.key()).rerank()["id"]).domain == "default"


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_without_the_scope_is_told_what_a_stranger_to_the_address_is_told(world: World, scope: Scope) -> None:
    limited = world.api(world.key("acme", *(set(Scope) - {scope})))
    calls = {
        Scope.INFER: ("POST", "/v1/rerank", {"query": "q", "documents": ["a"]}),
        Scope.FEEDBACK: ("POST", "/v1/feedback", {"signals": []}),
        Scope.CONTROLS: ("PUT", "/v1/users/ann/personalization", {"opted_in": True}),
        Scope.REGISTRY: ("GET", "/v1/adapters", None),
        Scope.ADMIN: ("GET", "/v1/privacy/ledger", None),
    }
    method, path, body = calls[scope]
    refused = limited.send(method, path, **({} if body is None else {"json": body}))
    missing = limited.send(method, "/v1/no/such/address", **({} if body is None else {"json": body}))
    assert_problem(refused, 404, "not_found")
    assert refused.json() | {"request_id": ""} == missing.json() | {"request_id": ""}
    full = world.api(world.key()).send(method, path, **({} if body is None else {"json": body}))
    assert full.status_code != 404


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer idio_wrong", "Basic abc", "Bearer " + "idio_" * 100])
def test_without_a_valid_key_every_address_answers_alike(world: World, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answers = [
        world.api().send(method, path, headers=headers)
        for method, path in (
            ("POST", "/v1/rerank"),
            ("GET", "/v1/rerank"),
            ("DELETE", "/v1/adapters"),
            ("GET", "/v1/users/ann/personalization"),
            ("GET", "/v1/nothing"),
        )
    ]
    for answer in answers:
        assert_problem(answer, 401, "not_authenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert len({json.dumps(answer.json() | {"request_id": ""}) for answer in answers}) == 1


def test_a_revoked_key_stops_working_within_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from idiolect.tenancy import hash_secret, new_secret

    now = [100.0]
    monkeypatch.setattr(world.app.state.gateway.authenticator, "_monotonic", lambda: now[0])
    secret = new_secret()
    key = world.store.create_key("acme", [Scope.INFER], hash_secret(secret), world.clock.now())
    api = world.api(secret)
    api.rerank()
    world.store.revoke_key(key.id, world.clock.now())
    now[0] += 0.6
    assert_problem(api.post("/v1/rerank", {"query": "q", "documents": ["a"]}), 401, "not_authenticated")
