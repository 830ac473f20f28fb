"""Idempotency-Key: the first answer again, and never for another request."""

from __future__ import annotations

from typing import Any

import pytest
from serving_world import World, assert_problem, world_at

from idiolect.errors import UnavailableError
from idiolect.signals.data import PersonalSnapshot
from idiolect.stores.sql.tenant_wall import ALL_TENANTS

KEY = {"Idempotency-Key": "k1"}


def signal_for(world: World, user: str = "ann", **fields: Any) -> dict[str, Any]:
    shown = world.api(world.key()).rerank(user)["id"]
    return {"inference_id": shown, "kind": "choice", "value": 3, "user": user, **fields}


def learned(world: World, user: str = "ann") -> int:
    found: PersonalSnapshot = world.store.personal_snapshot("acme", subjects=[world.pseudonym("acme", user)])
    return len(found.comparisons)


def test_a_signal_without_an_id_is_stored_once_under_its_key(world: World) -> None:
    world.opt_in("ann")
    api, signal = world.api(world.key()), signal_for(world)
    first, again = api.post("/v1/feedback", signal, headers=KEY), api.post("/v1/feedback", signal, headers=KEY)
    assert first.json() == again.json()
    assert first.json()["status"] == "accepted"
    assert (first.status_code, again.status_code) == (202, 202)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert learned(world) == 9


def test_without_a_key_two_signals_are_two(world: World) -> None:
    world.opt_in("ann")
    api, signal = world.api(world.key()), signal_for(world)
    for _ in range(2):
        assert api.post("/v1/feedback", signal).json()["status"] == "accepted"
    assert learned(world) == 18


def test_a_batch_answers_as_the_first_time(world: World) -> None:
    world.opt_in("ann")
    api = world.api(world.key())
    batch = {"signals": [signal_for(world), signal_for(world, value=1)]}
    first, again = api.post("/v1/feedback", batch, headers=KEY), api.post("/v1/feedback", batch, headers=KEY)
    assert first.json() == again.json()
    assert first.json()["accepted"] == 2
    assert len({result["id"] for result in first.json()["results"]}) == 2
    assert learned(world) == 18


def test_another_body_is_refused_and_changes_nothing(world: World) -> None:
    world.opt_in("ann")
    api, signal = world.api(world.key()), signal_for(world)
    api.post("/v1/feedback", signal, headers=KEY)
    for body in (signal | {"value": 4}, {"signals": [signal]}, signal | {"id": "x"}):
        assert_problem(api.post("/v1/feedback", body, headers=KEY), 422, "idempotency_key_reused")
    assert learned(world) == 9


def test_a_key_is_not_shared_between_calls(world: World) -> None:
    world.opt_in("ann")
    api = world.api(world.key())
    api.post("/v1/feedback", signal_for(world), headers=KEY)
    reset = api.post("/v1/users/ann/personalization/reset", {"scope": "all"}, headers=KEY)
    assert_problem(reset, 422, "idempotency_key_reused")
    assert learned(world) == 9


def test_tenants_do_not_meet_each_others_keys(world: World) -> None:
    world.opt_in("ann")
    world.opt_in("ann", tenant="other")
    world.api(world.key()).post("/v1/feedback", signal_for(world), headers=KEY)
    other = world.api(world.key("other"))
    body = {"inference_id": other.rerank("ann")["id"], "kind": "choice", "value": 1, "user": "ann"}
    assert other.post("/v1/feedback", body, headers=KEY).json()["status"] == "accepted"


def test_an_end_user_does_not_meet_the_keys_of_the_tenant_or_of_another(world: World) -> None:
    api = world.api(world.key())
    answers = []
    for user in ("ann", "bob"):
        world.opt_in(user)
        body = {"user": user, "scopes": ["infer", "feedback", "controls"]}
        mine = world.api(api.post("/v1/tokens", body).json()["token"])
        answers.append(mine.post("/v1/feedback", signal_for(world, user), headers=KEY).json())
    answers.append(api.post("/v1/feedback", signal_for(world), headers=KEY).json())
    assert [answer["status"] for answer in answers] == ["accepted"] * 3
    assert len({answer["id"] for answer in answers}) == 3


def test_a_body_that_does_not_validate_does_not_use_up_its_key(world: World) -> None:
    world.opt_in("ann")
    api, signal = world.api(world.key()), signal_for(world)
    assert_problem(api.post("/v1/feedback", signal | {"value": "3", "kind": "no"}, headers=KEY), 422, "invalid_input")
    assert api.post("/v1/feedback", signal, headers=KEY).json()["status"] == "accepted"


def test_what_failed_because_of_the_store_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.opt_in("ann")
    api, batch = world.api(world.key()), {"signals": [signal_for(world)]}

    def gone(*_: object) -> bool:
        raise UnavailableError("gone.")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "add_feedback", gone)
        assert api.post("/v1/feedback", batch, headers=KEY).json()["refused"] == 1
    assert api.post("/v1/feedback", batch, headers=KEY).json()["accepted"] == 1


def test_an_answer_that_could_not_be_kept_costs_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.opt_in("ann")
    api, signal = world.api(world.key()), signal_for(world)

    def gone(*_: object) -> None:
        raise UnavailableError("gone.")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "keep_answer", gone)
        first = api.post("/v1/feedback", signal, headers=KEY).json()
    again = api.post("/v1/feedback", signal, headers=KEY).json()
    assert (first["status"], again["status"], first["id"] == again["id"]) == ("accepted", "duplicate", True)
    assert learned(world) == 9


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "a/b"])
def test_a_key_that_can_not_be_one_is_refused(world: World, key: str) -> None:
    world.opt_in("ann")
    response = world.api(world.key()).post("/v1/feedback", signal_for(world), headers={"Idempotency-Key": key})
    assert_problem(response, 422, "invalid_input")
    assert learned(world) == 0


def test_a_signal_id_with_other_content_is_a_conflict(world: World) -> None:
    world.opt_in("ann")
    api, signal = world.api(world.key()), signal_for(world, id="mine")
    assert api.post("/v1/feedback", signal).json()["status"] == "accepted"
    assert api.post("/v1/feedback", signal).json()["status"] == "duplicate"
    assert_problem(api.post("/v1/feedback", signal | {"value": 4}), 409, "signal_id_reused")
    batch = api.post("/v1/feedback", {"signals": [signal | {"value": 4}, signal]}).json()
    assert [result["status"] for result in batch["results"]] == ["refused", "duplicate"]
    assert batch["results"][0]["code"] == "signal_id_reused"


def test_a_reset_again_answers_the_same_record_and_with_another_scope_is_refused(world: World) -> None:
    world.opt_in("ann")
    api, path = world.api(world.key()), "/v1/users/ann/personalization/reset"
    first, again = (api.post(path, {"scope": "adapter"}, headers=KEY).json() for _ in range(2))
    assert (first["id"], first["generation"]) == (again["id"], again["generation"]) == ("k1", 1)
    assert_problem(api.post(path, {"scope": "all"}, headers=KEY), 422, "idempotency_key_reused")


def test_the_database_holds_no_plain_hash_of_a_body(tmp_path: Any) -> None:
    import hashlib
    import json

    from sqlalchemy import select

    from idiolect.stores.sql import schema

    with world_at(tmp_path) as world:
        world.opt_in("ann")
        body = signal_for(world)
        world.api(world.key()).post("/v1/feedback", body, headers=KEY)
        plain = hashlib.sha256(json.dumps(["POST", "/v1/feedback", body], sort_keys=True).encode()).digest()
        with world.store._database.reading(ALL_TENANTS) as connection:
            row = connection.execute(select(schema.idempotency_keys)).one()
        assert row.fingerprint != plain
        assert row.status == 202
