from __future__ import annotations

import json

import pytest
from serving_world import DOCUMENTS, World, assert_problem

from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.manifest import ReleaseTemplate, Version, manifest_bytes

PATH = "/v1/users/ann/personalization"


def test_someone_unknown_has_a_state_that_says_so(world: World) -> None:
    response = world.api(world.key()).get(PATH)
    assert response.status_code == 200
    assert response.headers["etag"] == '"0"'
    state = response.json()
    assert (state["known"], state["opted_in"], state["strength"], state["generation"]) == (False, False, 1.0, 0)


def test_a_change_leaves_alone_what_it_does_not_name(world: World) -> None:
    api = world.api(world.key())
    api.put(PATH, {"opted_in": True, "strength": 0.25})
    response = api.put(PATH, {"paused": True})
    state = response.json()
    assert (state["opted_in"], state["paused"], state["strength"], state["revision"]) == (True, True, 0.25, 2)
    assert response.headers["etag"] == '"2"'
    assert api.get(PATH).json() == state


def test_strength_scales_the_personal_part_only(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    full = api.rerank("ann", explain=True)["results"]
    api.put(PATH, {"strength": 0.5})
    half = {r["index"]: r["parts"] for r in api.rerank("ann", explain=True)["results"]}
    for result in full:
        assert half[result["index"]]["user"] == pytest.approx(result["parts"]["user"] / 2)
        assert half[result["index"]]["global"] == result["parts"]["global"]


@pytest.mark.parametrize("tag", ['"1"', '"7", "1"', "*"])
def test_if_match_lets_the_current_revision_through(world: World, tag: str) -> None:
    api = world.api(world.key())
    api.put(PATH, {"opted_in": True})
    assert api.put(PATH, {"strength": 0.5}, headers={"If-Match": tag}).status_code == 200


def test_the_tags_of_if_match_may_be_spread_over_several_headers(world: World) -> None:
    api = world.api(world.key())
    tag = api.put(PATH, {"opted_in": True}).headers["etag"]
    for order in (1, -1):
        spread = [("If-Match", one) for one in ('"7"', tag)[::order]]
        changed = api.put(PATH, {"strength": 0.5}, headers=spread)
        assert changed.status_code == 200, changed.text
        tag = changed.headers["etag"]
    stale = api.put(PATH, {"strength": 1.0}, headers=[("If-Match", '"7"'), ("If-Match", '"8"')])
    assert_problem(stale, 412, "precondition_failed")


@pytest.mark.parametrize("tag", ['"0"', 'W/"1"', "1", "", '"x"', '"1', '"-1"', '"' + "9" * 40 + '"'])
def test_if_match_refuses_everything_else_and_changes_nothing(world: World, tag: str) -> None:
    api = world.api(world.key())
    before = api.put(PATH, {"opted_in": True}).json()
    assert_problem(api.put(PATH, {"strength": 0.5}, headers={"If-Match": tag}), 412, "precondition_failed")
    assert api.get(PATH).json() == before


def test_if_match_star_does_not_create_anyone(world: World) -> None:
    api = world.api(world.key())
    assert_problem(api.put(PATH, {"opted_in": True}, headers={"If-Match": "*"}), 412, "precondition_failed")
    assert not api.get(PATH).json()["known"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"opted_in": "yes"},
        {"opted_in": 1},
        {"strength": 1.5},
        {"strength": -0.1},
        {"strength": True},
        {"strength": "1"},
        {"paused": None},
        {"unknown": True},
    ],
)
def test_a_change_that_makes_no_sense_is_refused(world: World, body: dict[str, object]) -> None:
    assert_problem(world.api(world.key()).put(PATH, body), 422, "invalid_input")


@pytest.mark.parametrize(
    "user", ["a/b", "..", "a%2Fb", "a b", "ü", "人", "a?b", "a#b", "personalization", "x/personalization/reset", "%"]
)
def test_any_printable_user_id_addresses_exactly_one_person(world: World, user: str) -> None:
    from urllib.parse import quote

    api = world.api(world.key())
    segment = quote(user, safe="").replace(".", "%2E")
    assert api.put(f"/v1/users/{segment}/personalization", {"opted_in": True}).status_code == 200
    assert world.store.subject("acme", world.pseudonym("acme", user)).opted_in
    assert len(world.store.subjects("acme")) == 1
    assert api.get(f"/v1/users/{segment}/explanation").json()["state"]["opted_in"]


@pytest.mark.parametrize("segment", ["%00", "%FF", "%0A", "a" * 129, "%ED%A0%80"])
def test_a_user_id_that_can_not_be_one_is_refused(world: World, segment: str) -> None:
    response = world.api(world.key()).put(f"/v1/users/{segment}/personalization", {"opted_in": True})
    assert_problem(response, 422, "invalid_input")
    assert world.store.subjects("acme") == []


@pytest.mark.parametrize("body", [{}, {"scope": "everything"}, {"scope": None}, {"scope": "adapter", "domain": "news"}])
def test_a_reset_says_exactly_what_it_forgets_or_is_refused(world: World, body: dict[str, object]) -> None:
    world.opt_in("ann")
    assert_problem(world.api(world.key()).post(f"{PATH}/reset", body), 422, "invalid_input")
    assert world.store.subject("acme", world.pseudonym("acme", "ann")).generation == 0


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "a/b", "ü".encode().decode("latin-1")])
def test_an_idempotency_key_that_can_not_be_an_id_is_refused(world: World, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    response = world.api(world.key()).post(f"{PATH}/reset", {"scope": "all"}, headers=headers)
    assert_problem(response, 422, "invalid_input")


def test_an_explanation_tells_what_was_learned_and_spent_but_no_text(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    version = world.publish_user("ann")
    shown = api.rerank("ann")
    signal = {"inference_id": shown["id"], "kind": "choice", "value": 3, "user": "ann"}
    assert api.post("/v1/feedback", signal).status_code == 202
    event, subject = GaussianEvent(2.0, 10), world.pseudonym("acme", "ann")
    world.store.reserve("acme", "comparison", "user adapters", event, [subject], 100.0, world.clock.now())
    response = api.get("/v1/users/ann/explanation")
    told = response.json()
    assert told["adapter"]["version"] == version.id
    assert told["adapter"]["privacy"]["unit"] == "comparison"
    assert told["adapter"]["norm"] > 0
    comparison, shared = told["spent"]
    assert (comparison["unit"], comparison["runs"], comparison["rho"]) == ("comparison", 1, event.rho)
    assert comparison["epsilon"] == pytest.approx(filter_epsilon(event.rho, 1e-5))
    assert (shared["unit"], shared["runs"], shared["epsilon"]) == ("subject", 0, 0.0)
    for text in [*DOCUMENTS, '"ann"']:
        assert text not in response.text
    api.post(f"{PATH}/reset", {"scope": "all"})
    after = api.get("/v1/users/ann/explanation").json()
    assert after["adapter"] is None
    assert after["spent"][0]["rho"] == event.rho  # a reset never refunds


def test_adapters_are_listed_page_by_page_without_gap_or_repeat(world: World) -> None:
    api = world.api(world.key())
    made = []
    for index in range(5):
        world.opt_in(f"user {index}")
        made.append(world.publish_user(f"user {index}").id)
    seen, token = [], None
    while True:
        query = {"limit": 2} | ({"page_token": token} if token else {})
        page = api.get("/v1/adapters", params=query).json()
        assert len(page["adapters"]) <= 2
        seen += [adapter["id"] for adapter in page["adapters"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert seen == sorted(made)
    only = api.get("/v1/adapters", params={"user": "user 3"}).json()["adapters"]
    assert [adapter["id"] for adapter in only] == [made[3]]


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"page_token": "x"}, {"page_token": "é"}, {"page_token": "djE6AAA"}],
)
def test_bad_pages_are_refused(world: World, query: dict[str, object]) -> None:
    assert_problem(world.api(world.key()).get("/v1/adapters", params=query), 422, "invalid_input")


def test_an_adapter_shows_a_manifest_that_its_signature_fits(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    version = world.publish_user("ann")
    told = api.get(f"/v1/adapters/{version.id}").json()
    template = ReleaseTemplate.from_json(told["manifest"])
    again = Version(
        **{name: told["manifest"][name] for name in ("release", "subject", "domain", "generation", "parent")},
        id=told["id"],
        weights=b"",
        weights_sha256=told["manifest"]["weights_sha256"],
        evaluation=told["manifest"]["evaluation"],
    )
    message = manifest_bytes(template, again)
    world.signer.verify(told["key_id"], bytes.fromhex(told["signature"]), message, what="adapter")
    assert json.loads(message) == told["manifest"]


def test_a_revoked_release_is_served_to_nobody(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    version = world.publish_user("ann")
    assert api.rerank("ann")["personalization"]["applied"]
    path = f"/v1/releases/{version.release}/revoke"
    assert_problem(api.post(path, {}), 422, "invalid_input")
    for _ in range(2):
        assert api.post(path, {"reason": "bad run"}).json() == {"id": version.release, "revoked": True}
    assert api.rerank("ann")["personalization"]["reason"] == "no_adapter"
    assert api.get("/v1/releases").json()["releases"][0]["revoked"]
    assert_problem(api.post("/v1/releases/none/revoke", {"reason": "x"}), 404, "not_found")


def test_the_ledger_shows_every_run(world: World) -> None:
    event = GaussianEvent(2.0, 10)
    run = world.store.reserve("acme", "subject", "domain news", event, ["p"], 100.0, world.clock.now()).run
    told = world.api(world.key()).get("/v1/privacy/ledger").json()["runs"]
    assert [(r["id"], r["state"], r["accounts"], r["rho"]) for r in told] == [(run, "reserved", 1, event.rho)]
    assert 0 < told[0]["epsilon"] < 20


def test_health_and_readiness_need_no_key(world: World) -> None:
    assert world.api().get("/healthz").json() == {"status": "ok"}
    assert world.api().get("/readyz").json() == {"status": "ok"}
    assert [world.api().send("HEAD", path).status_code for path in ("/healthz", "/readyz")] == [200, 200]


FILES = {"/exports": "application/zip", "/card": "text/markdown", "/export": "application/x-ndjson"}


def test_the_openapi_description_covers_every_route_and_resolves(world: World) -> None:
    document = world.api().get("/openapi.json").json()
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    assert len(operations) >= 36
    for method, path, operation in operations:
        is_export = path.endswith("/exports")  # asks for nothing, and answers a file
        assert ("requestBody" in operation) == (method in ("post", "put") and not is_export), path
        assert any(code.startswith("2") for code in operation["responses"])
        for code, response in operation["responses"].items():
            good = next((media for ending, media in FILES.items() if path.endswith(ending)), "application/json")
            media = good if code.startswith("2") else "application/problem+json"
            assert list(response["content"]) == [media]
