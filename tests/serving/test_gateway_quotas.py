"""A tenant that has used up a quota is told so, with a code of its own and when to come again."""

from __future__ import annotations

from serving_world import World, assert_problem

CONSENT = "/v1/users/{}/personalization"


def test_one_person_too_many_is_a_conflict_and_changes_nothing(world: World) -> None:
    world.store.set_quota("acme", "people", 1, world.clock.now())
    api = world.api(world.key())
    assert api.put(CONSENT.format("ann"), {"opted_in": True}).status_code == 200
    problem = assert_problem(api.put(CONSENT.format("bob"), {"opted_in": True}), 409, "quota_exceeded")
    assert "operator" in problem["mend"]
    assert not api.get(CONSENT.format("bob")).json()["known"]
    assert world.api(world.key("other")).put(CONSENT.format("bob"), {"opted_in": True}).status_code == 200


def test_a_signal_too_many_says_when_to_come_again_and_may_then_be_sent_again(world: World) -> None:
    world.store.set_quota("acme", "signals", 1, world.clock.now())
    world.opt_in("ann")
    api = world.api(world.key())
    ids = [api.rerank("ann")["id"] for _ in range(2)]
    first, second = ({"inference_id": one, "kind": "choice", "value": 0, "user": "ann"} for one in ids)
    key = {"Idempotency-Key": "once"}
    assert api.post("/v1/feedback", first).status_code == 202
    refused = api.post("/v1/feedback", second, headers=key)
    assert_problem(refused, 429, "quota_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    world.store.set_quota("acme", "signals", 2, world.clock.now())
    assert api.post("/v1/feedback", second, headers=key).status_code == 202


def test_of_a_batch_what_fits_is_stored_and_the_rest_is_named(world: World) -> None:
    world.store.set_quota("acme", "signals", 1, world.clock.now())
    world.opt_in("ann")
    api = world.api(world.key())
    inference = api.rerank("ann")["id"]
    signals = [{"inference_id": inference, "kind": "choice", "value": n, "user": "ann", "id": f"s{n}"} for n in (0, 1)]
    key = {"Idempotency-Key": "batch"}
    outcome = api.post("/v1/feedback", {"signals": signals}, headers=key).json()
    assert (outcome["accepted"], outcome["refused"]) == (1, 1)
    assert outcome["results"][1]["code"] == "quota_exceeded"
    world.store.set_quota("acme", "signals", 2, world.clock.now())
    again = api.post("/v1/feedback", {"signals": signals}, headers=key).json()
    assert (again["duplicate"], again["accepted"]) == (1, 1)


def test_rankings_go_on_whatever_is_used_up(world: World) -> None:
    for name in ("people", "signals", "trainings", "text_bytes"):
        world.store.set_quota("acme", name, 0, world.clock.now())
    assert world.api(world.key()).rerank("ann")["results"]


def test_texts_too_many_are_ranked_all_the_same_and_the_answer_says_that_it_is_not_kept(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    api = world.api(world.key())
    before = api.rerank("ann")
    world.store.set_quota("acme", "text_bytes", 10, world.clock.now())
    after = api.rerank("ann")
    assert (after["id"], after["unrecorded"]) == (None, "quota_exceeded")
    assert (after["results"], after["personalization"]) == (before["results"], before["personalization"])
    assert "unrecorded" not in before
    assert world.api(world.key("other")).rerank("ann")["id"] is not None
    families = {one.name: one for one in world.app.state.gateway.metrics.families()}
    assert families["idiolect_unrecorded_total"].samples == {(("reason", "quota_exceeded"),): 1.0}
