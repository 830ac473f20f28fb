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
    assert (first["id"], first["generation"]) == (again["id"], again["generation"])
    assert first["generation"] == 1
    assert_problem(api.post(path, {"scope": "all"}, headers=KEY), 422, "idempotency_key_reused")


ROLLOUT = {"candidate": {"kind": "setting", "strength": 0.5}, "steps": [0.5], "reason": "half?", "start": False}


def test_a_rollout_that_is_sent_again_is_made_once(world: World) -> None:
    api = world.api(world.key())
    first, again = (api.post("/v1/rollouts", ROLLOUT, headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.headers["etag"] == again.headers["etag"]
    assert len(api.get("/v1/rollouts").json()["rollouts"]) == 1
    api.post(f"/v1/rollouts/{first.json()['id']}/start", {"reason": "go"})
    assert api.post("/v1/rollouts", ROLLOUT, headers=KEY).json()["state"] == "running"
    assert_problem(api.post("/v1/rollouts", ROLLOUT | {"start": True}, headers=KEY), 422, "idempotency_key_reused")
    api.post("/v1/rollouts", ROLLOUT, headers={"Idempotency-Key": "k2"})
    api.post("/v1/rollouts", ROLLOUT)
    assert len(api.get("/v1/rollouts").json()["rollouts"]) == 3


def test_a_rollout_that_runs_at_once_is_no_conflict_with_itself(world: World) -> None:
    api, running = world.api(world.key()), ROLLOUT | {"start": True}
    first, again = (api.post("/v1/rollouts", running, headers=KEY).json() for _ in range(2))
    assert first == again
    assert first["state"] == "running"
    assert_problem(api.post("/v1/rollouts", running, headers={"Idempotency-Key": "k2"}), 409, "conflict")


def test_a_key_that_was_forgotten_stands_for_something_new(world: World) -> None:
    """Were it not so, a reset under a key of long ago would answer with the receipt of then, and forget nothing."""
    api, path = world.api(world.key()), "/v1/users/ann/personalization/reset"
    receipts = []
    for _ in range(2):
        world.opt_in("ann")
        made = world.publish_user("ann")
        assert api.rerank("ann")["personalization"]["adapter"] == made.id
        receipts.append(api.post(path, {"scope": "all"}, headers=KEY).json())
        assert api.rerank("ann")["personalization"]["adapter"] is None
        forget_keys(world)
    assert [receipt["generation"] for receipt in receipts] == [1, 2]
    for strength in (0.5, 0.25):
        api.post("/v1/rollouts", ROLLOUT | {"candidate": {"kind": "setting", "strength": strength}}, headers=KEY)
        forget_keys(world)
    assert len(api.get("/v1/rollouts").json()["rollouts"]) == 2


def test_two_people_may_send_the_same_key_for_their_resets(world: World) -> None:
    api, ids = world.api(world.key()), set()
    for user in ("ann", "bob"):
        world.opt_in(user)
        token = api.post("/v1/tokens", {"user": user, "scopes": ["controls"]}).json()["token"]
        reset = world.api(token).post(f"/v1/users/{user}/personalization/reset", {"scope": "all"}, headers=KEY)
        assert reset.status_code == 200, reset.text
        ids.add(reset.json()["id"])
        assert not world.store.subject("acme", world.pseudonym("acme", user)).opted_in
    assert len(ids) == 2


def forget_keys(world: World) -> None:
    with world.store._database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM idempotency_keys")


def three_versions(world: World) -> tuple[str, list[str]]:
    world.opt_in("ann")
    versions = [world.publish_user("ann", [value] * 8).id for value in (0.1, 0.2, 0.3)]
    return f"/v1/adapters/user:{world.pseudonym('acme', 'ann')}", versions


def live(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["pointers"][0]["version"])


def test_a_rollback_that_is_sent_again_goes_back_once(world: World) -> None:
    adapter, (first, second, _third) = three_versions(world)
    api, why = world.api(world.key()), {"reason": "worse"}
    etag = api.get(f"{adapter}/pointers").headers["etag"]
    for replayed in (None, "true", "true"):
        answer = api.post(f"{adapter}/rollback", why, headers={**KEY, "If-Match": etag})
        assert live(answer) == second
        assert answer.headers.get("idempotency-replayed") == replayed
    assert_problem(api.post(f"{adapter}/rollback", {"reason": "no"}, headers=KEY), 422, "idempotency_key_reused")
    assert live(api.post(f"{adapter}/rollback", why, headers={"Idempotency-Key": "k2"})) == first
    assert [move["version"] for move in api.get(f"{adapter}/history").json()["moves"]].count(second) == 2


def test_a_rollback_that_was_refused_may_be_sent_again(world: World) -> None:
    adapter, (_first, second, _third) = three_versions(world)
    api, why = world.api(world.key()), {"reason": "worse"}
    stale = api.post(f"{adapter}/rollback", why, headers={**KEY, "If-Match": '"1.x"'})
    assert_problem(stale, 412, "precondition_failed")
    assert live(api.post(f"{adapter}/rollback", why, headers=KEY)) == second


def test_a_rollback_whose_key_was_forgotten_meanwhile_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, (_first, second, _third) = three_versions(world)
    api, claim = world.api(world.key()), world.store.claim_key

    def claimed_and_forgotten(*said: Any) -> Any:
        found = claim(*said)
        forget_keys(world)
        return found

    monkeypatch.setattr(world.store, "claim_key", claimed_and_forgotten)
    assert live(api.post(f"{adapter}/rollback", {"reason": "worse"}, headers=KEY)) == second


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
