"""Consent for single domains over the API, and its receipt."""

from __future__ import annotations

import pytest
from serving_world import DOCUMENTS, World, assert_problem, scores

from idiolect.canonical import canonical_json

PATH = "/v1/users/ann/personalization"
OUT = {"domains": {"chat": {"opted_in": False}}}


def test_someone_is_personalised_in_all_domains_but_the_one_they_left(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    state = api.put(PATH, OUT).json()
    assert state["domains"] == {"chat": {"opted_in": False, "strength": 1.0}}
    world.publish_user("ann")
    there, elsewhere = api.rerank("ann", domain="chat"), api.rerank("ann", domain="voice")
    assert (there["personalization"]["reason"], there["personalization"]["applied"]) == ("domain_opted_out", False)
    assert elsewhere["personalization"]["applied"]
    assert scores(there) == scores(api.rerank("stranger", domain="chat"))
    refused = {"query": "q", "documents": DOCUMENTS, "user": "ann", "domain": "chat", "personalization": "required"}
    assert_problem(api.post("/v1/rerank", refused), 409, "personalization_unavailable")
    api.put(PATH, {"domains": {"chat": {"opted_in": True}}})
    assert api.rerank("ann", domain="chat")["personalization"]["applied"]


def test_leaving_a_domain_forgets_what_was_learned_everywhere_before_it_answers(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    assert api.rerank("ann", domain="voice")["personalization"]["applied"]
    assert api.put(PATH, OUT).json()["generation"] == 1
    assert api.rerank("ann", domain="voice")["personalization"]["reason"] == "no_adapter"


def test_what_is_shown_in_a_domain_that_was_left_is_not_kept_as_theirs(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    api.put(PATH, OUT)
    shown = api.rerank("ann", domain="chat")["id"]
    assert world.store.inference("acme", shown).subject is None
    signal = {"inference_id": shown, "kind": "choice", "value": 3, "user": "ann"}
    assert_problem(api.post("/v1/feedback", signal), 409, "personalization_unavailable")
    assert world.fed_back == []


def test_the_strength_in_a_domain_multiplies_the_persons_own(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    api.put(PATH, {"strength": 0.5, "domains": {"chat": {"strength": 0.5}}})
    assert api.rerank("ann", domain="chat")["personalization"]["strength"] == 0.25
    assert api.rerank("ann", domain="voice")["personalization"]["strength"] == 0.5
    api.put(PATH, {"domains": {"chat": {"strength": 0.0}}})
    assert api.rerank("ann", domain="chat")["personalization"]["reason"] == "zero_strength"
    assert api.get(PATH).json()["generation"] == 0


def test_a_change_of_one_domain_leaves_the_others_alone(world: World) -> None:
    api = world.api(world.key())
    api.put(PATH, {"opted_in": True, "domains": {"a": {"strength": 0.5}, "b": {"opted_in": False}}})
    state = api.put(PATH, {"domains": {"a": {"opted_in": False}}}).json()
    assert state["domains"] == {"a": {"opted_in": False, "strength": 0.5}, "b": {"opted_in": False, "strength": 1.0}}
    state = api.put(PATH, {"domains": {"b": {"opted_in": True}}}).json()
    assert list(state["domains"]) == ["a"]


def test_if_match_guards_domains_too(world: World) -> None:
    api = world.api(world.key())
    tag = api.put(PATH, {"opted_in": True}).headers["etag"]
    assert api.put(PATH, OUT, headers={"If-Match": tag}).status_code == 200
    assert_problem(api.put(PATH, OUT, headers={"If-Match": tag}), 412, "precondition_failed")


@pytest.mark.parametrize(
    "domains",
    [
        {},
        {"chat": {}},
        {"chat": None},
        {"chat": {"opted_in": "no"}},
        {"chat": {"strength": 1.5}},
        {"../x": {"opted_in": False}},
        {"": {"opted_in": False}},
        {"x" * 65: {"opted_in": False}},
        {"Chat": {"opted_in": False}},
        [],
        {f"d{number}": {"opted_in": False} for number in range(65)},
    ],
)
def test_choices_that_make_no_sense_are_refused_whole(world: World, domains: object) -> None:
    api = world.api(world.key())
    assert_problem(api.put(PATH, {"domains": domains}), 422, "invalid_input")
    assert not api.get(PATH).json()["known"]


def test_a_reset_of_one_domain(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    for domain in ("chat", "voice"):
        shown = api.rerank("ann", domain=domain)["id"]
        signal = {"inference_id": shown, "kind": "choice", "value": 3, "user": "ann"}
        assert api.post("/v1/feedback", signal).status_code == 202
    receipt = api.post(f"{PATH}/reset", {"scope": "all", "domain": "chat"}).json()
    assert (receipt["scope"], receipt["domain"], receipt["erased"]["signals"]) == ("all", "chat", 1)
    state = api.get(PATH).json()
    assert (state["opted_in"], list(state["domains"])) == (True, ["chat"])
    subject = world.pseudonym("acme", "ann")
    assert {item.domain for item in world.store.personal_snapshot("acme", subjects=[subject]).items} == {"voice"}


def test_the_receipt_of_consent_is_signed_names_the_policy_and_stays_the_same(world: World) -> None:
    api = world.api(world.key())
    assert_problem(api.get(f"{PATH}/receipt"), 404, "not_found")
    state = api.put(PATH, {"opted_in": True, **OUT}).json()
    receipt = api.get(f"{PATH}/receipt").json()
    assert api.get(f"{PATH}/receipt").json() == receipt
    assert (receipt["opted_in"], receipt["policy_version"]) == (True, state["policy_version"])
    assert (receipt["revision"], receipt["domains"]) == (1, state["domains"])
    body = {name: value for name, value in receipt.items() if name not in ("key_id", "signature")}
    world.signer.verify(receipt["key_id"], bytes.fromhex(receipt["signature"]), canonical_json(body), what="receipt")
    api.put(PATH, {"opted_in": False})
    withdrawn = api.get(f"{PATH}/receipt").json()
    assert (withdrawn["opted_in"], withdrawn["policy_version"], withdrawn["revision"]) == (False, None, 2)
