"""A tenant's administrator says for how long texts are kept, and nobody overwrites what somebody else has just said."""

from __future__ import annotations

from datetime import timedelta

import pytest
from serving_world import World, assert_problem, world_at

from idiolect.retention import MAX_DAYS
from idiolect.tenancy import Scope

PATH = "/v1/retention"


def test_the_installations_own_holds_until_the_tenant_says_otherwise(world: World) -> None:
    api = world.api(world.key())
    found = api.get(PATH)
    assert found.json() == {"days": world.settings.retention_days, "own_days": None}
    changed = api.put(PATH, {"days": 90})
    assert changed.json() == {"days": 90, "own_days": 90}
    assert changed.headers["etag"] != found.headers["etag"]
    assert api.get(PATH).json() == changed.json()
    assert world.api(world.key("other")).get(PATH).json() == found.json()
    assert api.put(PATH, {"days": None}).json() == found.json()


def test_it_is_what_a_sweep_goes_by_and_who_set_it_is_in_the_audit_log(world: World) -> None:
    api = world.api(world.key())
    api.put(PATH, {"days": 2})
    assert world.store.retentions()["acme"] == 2
    entry = next(one for one in world.store.audit_entries("acme") if one.action == "retention.set")
    assert entry.actor.startswith("api key ")
    assert entry.details == '{"days":2,"old":null}'
    kept = api.rerank("stranger")["id"]
    world.store.sweep("acme", world.clock.now() - timedelta(days=2), world.clock.now(), actor="test")
    assert world.store.inference("acme", kept) is not None


def test_a_change_that_is_based_on_an_older_state_is_refused(world: World) -> None:
    api = world.api(world.key())
    before = api.get(PATH).headers["etag"]
    after = api.put(PATH, {"days": 90}, headers={"If-Match": before}).headers["etag"]
    stale = api.put(PATH, {"days": 30}, headers={"If-Match": before})
    assert_problem(stale, 412, "precondition_failed")
    for weak in (f"W/{after}", "90", '""', "nonsense"):
        assert api.put(PATH, {"days": 30}, headers={"If-Match": weak}).status_code == 412
    assert api.get(PATH).json()["days"] == 90
    assert api.put(PATH, {"days": 30}, headers={"If-Match": f'"x", {after}'}).status_code == 200
    assert api.put(PATH, {"days": 31}, headers={"If-Match": "*"}).status_code == 200


@pytest.mark.parametrize("days", [0, -1, MAX_DAYS + 1, 1.5, "90", True, [90]])
def test_what_is_no_retention_is_refused_and_changes_nothing(world: World, days: object) -> None:
    api = world.api(world.key())
    assert_problem(api.put(PATH, {"days": days}), 422, "invalid_input")
    assert_problem(api.put(PATH, {}), 422, "invalid_input")
    assert api.get(PATH).json()["own_days"] is None


def test_only_a_key_that_may_administrate_sees_it(world: World) -> None:
    others = world.api(world.key("acme", *(scope for scope in Scope if scope is not Scope.ADMIN)))
    assert_problem(others.get(PATH), 404, "not_found")
    assert_problem(others.put(PATH, {"days": 1}), 404, "not_found")
    assert world.store.retention("acme") is None


def test_the_installations_own_is_said_as_it_is_set(tmp_path_factory: pytest.TempPathFactory) -> None:
    with world_at(tmp_path_factory.mktemp("own"), retention_days=7) as world:
        assert world.api(world.key()).get(PATH).json() == {"days": 7, "own_days": None}
