"""Pointers, history, lineage and the audit log over the API, and what a bad version does to serving."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from serving_world import K, World, assert_problem, signed_version, template_for

from idiolect.registry.signing import Signer
from idiolect.tenancy import Scope
from idiolect_services.scorer import FALLBACKS

WHY = {"reason": "a test"}


def admin(world: World) -> Any:
    return world.api(world.key())


def adapter_of(world: World, user: str = "ann") -> str:
    return f"/v1/adapters/user:{world.pseudonym('acme', user)}"


def two_versions(world: World) -> tuple[str, str]:
    world.opt_in("ann")
    return world.publish_user("ann").id, world.publish_user("ann", [0.5] * K).id


def served(world: World) -> str | None:
    found = admin(world).rerank("ann")["personalization"]["adapter"]
    return None if found is None else str(found)


def test_a_pointer_is_read_moved_and_rolled_back(world: World) -> None:
    first, second = two_versions(world)
    api, adapter = admin(world), adapter_of(world)
    seen = api.get(f"{adapter}/pointers")
    assert seen.json()["pointers"][0] == {"name": "live", "version": second, "revision": 2}
    assert seen.headers["etag"] == f'"2.{second}"'
    moved = api.put(f"{adapter}/pointers/live", {"version": first, **WHY}, headers={"If-Match": seen.headers["etag"]})
    assert moved.status_code == 200
    assert served(world) == first
    back = api.put(f"{adapter}/pointers/live", {"version": second, **WHY})
    assert back.json()["pointers"][1] == {"name": "previous", "version": first, "revision": 3}
    rolled = api.post(f"{adapter}/rollback", WHY, headers={"If-Match": back.headers["etag"]})
    assert (rolled.status_code, served(world)) == (200, first)
    moves = api.get(f"{adapter}/history").json()["moves"]
    assert [(move["version"], move["reason"]) for move in moves] == [
        (first, "a test"),
        (second, "a test"),
        (first, "a test"),
        (second, "test"),
        (first, "test"),
    ]
    assert moves[0]["actor"].startswith("api key ")


@pytest.mark.parametrize("call", ["move", "rollback"])
def test_a_race_answers_412_and_changes_nothing(world: World, call: str) -> None:
    first, second = two_versions(world)
    api, adapter = admin(world), adapter_of(world)
    for tag in ('"1.x"', f'W/"2.{second}"', f"2.{second}", "nonsense"):
        headers = {"If-Match": tag}
        if call == "move":
            answer = api.put(f"{adapter}/pointers/live", {"version": first, **WHY}, headers=headers)
        else:
            answer = api.post(f"{adapter}/rollback", WHY, headers=headers)
        assert_problem(answer, 412, "precondition_failed")
    assert served(world) == second


def test_what_may_not_be_live_answers_409(world: World) -> None:
    first, _ = two_versions(world)
    stored = world.store.version("acme", first)
    world.store.revoke_release("acme", stored.version.release, world.clock.now(), reason="bad", actor="t")
    api, adapter = admin(world), adapter_of(world)
    for answer in (
        api.put(f"{adapter}/pointers/live", {"version": first, **WHY}),
        api.post(f"{adapter}/rollback", WHY),
    ):
        assert_problem(answer, 409, "not_promotable")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/pointers"),
        ("GET", "/versions"),
        ("GET", "/history"),
        ("PUT", "/pointers/live"),
        ("POST", "/rollback"),
    ],
)
def test_of_other_tenants_and_of_nothing_the_answer_is_the_same(world: World, method: str, path: str) -> None:
    first, _ = two_versions(world)
    body = None if method == "GET" else {"version": first, **WHY}
    mine, missing = adapter_of(world), adapter_of(world, "zoe")
    other, own = world.api(world.key("other")), admin(world)
    answers = [
        other.send(method, mine + path, **({"json": body} if body else {})),
        own.send(method, missing + path, **({"json": body} if body else {})),
        own.send(method, "/v1/adapters/nonsense" + path, **({"json": body} if body else {})),
    ]
    problems = [assert_problem(answer, 404, "not_found") for answer in answers]
    assert len({json.dumps({**p, "request_id": ""}) for p in problems}) == 1
    assert served(world) != first


def test_a_version_of_somebody_else_is_not_made_live_here(world: World) -> None:
    two_versions(world)
    world.opt_in("bob")
    of_bob = world.publish_user("bob").id
    answer = admin(world).put(f"{adapter_of(world)}/pointers/live", {"version": of_bob, **WHY})
    assert_problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/audit", Scope.REGISTRY),
        ("GET", "/v1/lineage?user=ann", Scope.REGISTRY),
        ("PUT", "{adapter}/pointers/live", Scope.REGISTRY),
        ("POST", "{adapter}/rollback", Scope.REGISTRY),
        ("GET", "{adapter}/pointers", Scope.INFER),
        ("GET", "{adapter}/history", Scope.CONTROLS),
    ],
)
def test_without_the_scope_nothing_is_there(world: World, method: str, path: str, scope: Scope) -> None:
    first, _ = two_versions(world)
    body = None if method == "GET" else {"version": first, **WHY}
    api = world.api(world.key("acme", scope))
    answer = api.send(method, path.format(adapter=adapter_of(world)), **({"json": body} if body else {}))
    assert_problem(answer, 404, "not_found")


@pytest.mark.parametrize("body", [{}, {"version": "x"}, {"version": "", "reason": "y"}, {"version": 3, "reason": "y"}])
def test_a_move_without_a_version_and_a_reason_is_refused(world: World, body: dict[str, Any]) -> None:
    two_versions(world)
    assert_problem(admin(world).put(f"{adapter_of(world)}/pointers/live", body), 422, "invalid_input")


def test_only_the_live_pointer_is_moved_by_hand(world: World) -> None:
    first, _ = two_versions(world)
    answer = admin(world).put(f"{adapter_of(world)}/pointers/previous", {"version": first, **WHY})
    assert_problem(answer, 422, "invalid_input")


def test_versions_and_history_come_page_by_page(world: World) -> None:
    first, second = two_versions(world)
    api, adapter = admin(world), adapter_of(world)
    page = api.get(f"{adapter}/versions?limit=1").json()
    assert [one["id"] for one in page["adapters"]] == [first]
    assert page["adapters"][0]["adapter"] == adapter.removeprefix("/v1/adapters/")
    rest = api.get(f"{adapter}/versions?limit=1&page_token={page['next_page_token']}").json()
    assert ([one["id"] for one in rest["adapters"]], rest["next_page_token"]) == ([second], None)
    newest = api.get(f"{adapter}/history?limit=1").json()
    assert [move["version"] for move in newest["moves"]] == [second]
    older = api.get(f"{adapter}/history?limit=1&page_token={newest['next_page_token']}").json()
    assert ([move["version"] for move in older["moves"]], older["next_page_token"]) == ([first], None)
    for path in ("/history", "/versions"):
        assert_problem(api.get(f"{adapter}{path}?page_token=zzz"), 422, "invalid_input")


def test_the_audit_log_comes_page_by_page_and_only_the_callers(world: World) -> None:
    two_versions(world)
    api = admin(world)
    page = api.get("/v1/audit?limit=2").json()
    head = world.store.audit_head("acme")
    assert page["head"] == head.anchor
    assert [entry["action"] for entry in page["entries"]] == ["api_key.create", "release.publish"]
    assert page["entries"][0]["hash"] == head.hash
    older = api.get(f"/v1/audit?limit=100&page_token={page['next_page_token']}").json()
    assert older["entries"][0]["seq"] == page["entries"][-1]["seq"] - 1
    assert older["next_page_token"] is None
    others = world.api(world.key("other")).get("/v1/audit").json()["entries"]
    assert [entry["action"] for entry in others] == ["api_key.create"]
    assert_problem(api.get("/v1/audit?page_token=djE6YWJj"), 422, "invalid_input")


def test_lineage_names_a_persons_versions_and_where_one_comes_from(world: World) -> None:
    first, second = two_versions(world)
    api = admin(world)
    found = api.get("/v1/lineage?user=ann").json()["versions"]
    assert [(one["version"], one["via"]) for one in found] == [(first, "own"), (second, "own")]
    assert api.get("/v1/lineage?user=nobody").json() == {"versions": []}
    origin = api.get(f"/v1/adapters/{first}/lineage").json()
    assert (origin["version"], origin["data_window"], origin["parents"]) == (first, "test", [])
    assert_problem(world.api(world.key("other")).get(f"/v1/adapters/{first}/lineage"), 404, "not_found")


# What a bad version does to serving


def test_a_version_that_does_not_verify_is_quarantined_and_the_one_before_is_served(world: World) -> None:
    first, second = two_versions(world)
    world.damage("id", second)
    said = admin(world).rerank("ann")["personalization"]
    assert (said["applied"], said["adapter"]) == (True, first)
    assert world.scorer.quarantine.count == 1
    assert admin(world).rerank("ann")["personalization"]["adapter"] == first
    assert world.scorer.quarantine.count == 1
    detail = admin(world).get(f"/v1/adapters/{second}").json()
    assert detail["withheld"].startswith("quarantined: ")
    assert world.store.audit_entries("acme", limit=100)[0].action in ("version.quarantine", "api_key.create")
    assert "version.quarantine" in {entry.action for entry in world.store.audit_entries("acme")}


def test_a_bad_domain_version_takes_only_itself_away(world: World) -> None:
    two_versions(world)
    good, bad = world.publish_domain("news").id, world.publish_domain("news", basis_digest="f" * 64).id
    said = admin(world).rerank("ann", domain="news")["personalization"]
    assert (said["applied"], said["domain"]) == (True, good)
    stored = world.store.version("acme", bad)
    assert "another basis" in stored.withheld


def test_more_bad_versions_than_one_request_passes_over_end_at_the_global_ranking(world: World) -> None:
    world.opt_in("ann")
    for _ in range(FALLBACKS + 2):
        world.publish_user("ann", basis_digest="f" * 64)
    assert admin(world).rerank("ann")["personalization"]["reason"] == "adapter_invalid"
    assert admin(world).rerank("ann")["personalization"]["reason"] == "adapter_invalid"
    assert world.scorer.quarantine.count == FALLBACKS + 2


def test_a_key_that_this_server_does_not_know_condemns_nothing(world: World) -> None:
    world.opt_in("ann")
    subject = world.pseudonym("acme", "ann")
    template = template_for("acme", "user", world.model, world.clock)
    stranger = signed_version(template, Signer(b"\x08" * 32), np.ones(K).tolist(), subject=subject)
    world.store.publish(stranger.release, template, [stranger], world.clock.now(), reason="t", actor="t")
    assert admin(world).rerank("ann")["personalization"]["reason"] == "adapter_invalid"
    assert world.scorer.quarantine.count == 0
    assert world.store.version("acme", stranger.id).withheld is None


def test_versions_of_a_withdrawn_key_are_not_served_from_the_next_request_on(world: World) -> None:
    two_versions(world)
    assert admin(world).rerank("ann")["personalization"]["applied"]
    world.store.withdraw_signing_key(world.signer.key_id, world.clock.now(), reason="stolen", actor="t")
    assert admin(world).rerank("ann")["personalization"]["reason"] == "adapter_invalid"
