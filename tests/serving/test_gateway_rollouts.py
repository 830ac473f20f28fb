"""Rollouts over the API, and the whole way: two versions, feedback, and what becomes of them without a restart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from serving_world import Api, K, World, assert_problem, scores, signed_version, some_weights, template_for

from idiolect.errors import UnavailableError
from idiolect.ids import new_id
from idiolect.rollouts.outcomes import Served
from idiolect.tenancy import Scope
from idiolect_services import rollouts
from idiolect_services.live import LiveScorer
from idiolect_services.rollouts import Counter, RolloutLoop
from idiolect_services.scorer import Scorer

PEOPLE = [f"person {number}" for number in range(44)]
PLAN = {"steps": [0.5, 1.0], "min_people": 10, "guardrails": {"success": 0.2}, "reason": "try"}


def publish(world: World, *people: str, staged: bool, turned: float = 1.0, tenant: str = "acme") -> str:
    """One release of user versions; the candidate's weights are the old ones times `turned`."""
    template = template_for(tenant, "user", world.model, world.clock)
    release = new_id()
    versions = [
        signed_version(
            template,
            world.signer,
            [turned * weight for weight in some_weights(person, K)],
            subject=world.pseudonym(tenant, person),
            release=release,
        )
        for person in people
    ]
    world.store.publish(release, template, versions, world.clock.now(), reason="t", actor="t", staged=staged)
    return release


class Trial:
    """A running server with two releases of everybody, the second one staged."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loop = RolloutLoop(world)  # type: ignore[arg-type]  # it has the store and the clock
        scorer = Scorer(world.store, world.features, world.bank, on_served=self.loop.note)
        self.api = world.api(world.key(), app=world.make_app(live=LiveScorer(scorer)))
        for person in PEOPLE:
            world.opt_in(person)
        self.old = publish(world, *PEOPLE, staged=False)
        self.new = publish(world, *PEOPLE, staged=True, turned=-1.0)

    def begin(self, **fields: Any) -> dict[str, Any]:
        body = PLAN | {"candidate": {"kind": "release", "id": self.new}} | fields
        response = self.api.post("/v1/rollouts", body)
        assert response.status_code == 201, response.text
        return dict(response.json())

    def release_of(self, person: str) -> str:
        """Of the version that the response says was applied."""
        said = self.api.rerank(person)["personalization"]
        assert said["applied"]
        stored = self.world.store.version("acme", said["adapter"])
        return str(stored.version.release)

    def everybody_uses_it_and(self, likes: Callable[[bool], bool]) -> None:
        """`likes(on the candidate)`: whether they choose the first result or the last."""
        for person in PEOPLE:
            served = self.api.rerank(person)
            self.loop.run_once()
            release = self.world.store.version("acme", served["personalization"]["adapter"]).version.release
            chosen = served["results"][0 if likes(release == self.new) else -1]["index"]
            signal = {"inference_id": served["id"], "user": person, "kind": "choice", "value": chosen}
            assert self.api.post("/v1/feedback", signal).status_code == 202

    def show(self, rollout: str) -> dict[str, Any]:
        return dict(self.api.get(f"/v1/rollouts/{rollout}").json())


@pytest.fixture
def trial(world: World) -> Trial:
    return Trial(world)


def test_a_worse_candidate_rolls_back_by_itself_and_everybody_is_back_without_a_restart(trial: Trial) -> None:
    before = {person: scores(trial.api.rerank(person)) for person in PEOPLE}
    started = trial.begin()
    assert (started["state"], started["share"], started["covers"]) == ("running", 0.5, ["user"])
    assert {trial.release_of(person) for person in PEOPLE} == {trial.old, trial.new}
    trial.everybody_uses_it_and(lambda on_candidate: not on_candidate)
    trial.loop.run_once()
    found = trial.show(started["id"])
    assert (found["state"], found["verdict"], found["share"]) == ("rolled_back", "breach", 0.0)
    assert found["history"][-1]["actor"] == "evaluator"
    assert {trial.release_of(person) for person in PEOPLE} == {trial.old}
    assert {person: scores(trial.api.rerank(person)) for person in PEOPLE} == before


def test_a_better_candidate_completes_and_its_pointer_becomes_live(trial: Trial) -> None:
    started = trial.begin()
    trial.everybody_uses_it_and(lambda on_candidate: on_candidate)
    trial.loop.run_once()
    found = trial.show(started["id"])
    assert (found["state"], found["verdict"], found["share"]) == ("completed", "healthy", 1.0)
    assert {trial.release_of(person) for person in PEOPLE} == {trial.new}
    assert 20 <= sum(found["enrolled"].values()) <= len(PEOPLE)  # it was looked at after each of them


def test_when_nothing_is_shown_either_way_it_stays_where_it_is(trial: Trial) -> None:
    started = trial.begin()
    turns = iter(range(1000))
    trial.everybody_uses_it_and(lambda _: next(turns) % 2 == 0)
    for _ in range(3):
        trial.loop.run_once()
    found = trial.show(started["id"])
    assert (found["state"], found["verdict"], found["step"]) == ("running", "inconclusive", 1)


def test_the_candidates_scores_are_its_own_and_the_others_do_not_change(trial: Trial) -> None:
    before = {person: scores(trial.api.rerank(person)) for person in PEOPLE}
    trial.begin()
    for person in PEOPLE:
        same = scores(trial.api.rerank(person)) == before[person]
        assert same is (trial.release_of(person) == trial.old)


def test_a_setting_is_applied_to_its_share_and_said_in_the_response(trial: Trial) -> None:
    trial.begin(candidate={"kind": "setting", "strength": 0.0}, steps=[0.5])
    said = [trial.api.rerank(person)["personalization"] for person in PEOPLE]
    assert {(one["applied"], one["reason"], one["strength"]) for one in said} == {
        (True, "applied", 1.0),
        (False, "zero_strength", 0.0),
    }


def test_a_person_who_resets_is_served_as_one_who_never_opted_in(trial: Trial) -> None:
    never = trial.api.rerank("never")
    trial.begin()
    person = next(person for person in PEOPLE if trial.release_of(person) == trial.new)
    assert trial.api.post(f"/v1/users/{person}/personalization/reset", {"scope": "all"}).status_code == 200
    after = trial.api.rerank(person)
    assert after["results"] == never["results"]
    assert after["personalization"]["adapter"] is None


def test_abort_answers_at_once_and_needs_no_evaluation(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    started = trial.begin()

    def broken(*_: Any) -> Any:
        raise AssertionError("an abort analyses nothing")

    monkeypatch.setattr(trial.world.store, "rollout_reading", broken)
    monkeypatch.setattr(trial.world.store, "observe_served", broken)
    aborted = trial.api.post(f"/v1/rollouts/{started['id']}/abort", {"reason": "enough"})
    assert (aborted.status_code, aborted.json()["state"]) == (200, "aborted")
    assert {trial.release_of(person) for person in PEOPLE} == {trial.old}


def test_requests_without_personalization_and_of_strangers_are_not_counted(trial: Trial) -> None:
    started = trial.begin()
    for person in PEOPLE[:5]:
        trial.api.rerank(person, personalization="off")
    trial.api.rerank("stranger")
    trial.api.rerank()
    trial.loop.run_once()
    assert trial.show(started["id"])["enrolled"] == {"control": 0, "candidate": 0}


def test_a_candidate_that_does_not_verify_falls_back_and_rolls_back(trial: Trial) -> None:
    started = trial.begin(guardrails={"fallback": 0.2})
    trial.world.damage("release", trial.new)
    assert {trial.release_of(person) for person in PEOPLE} == {trial.old}
    trial.loop.run_once()
    found = trial.show(started["id"])
    (fallback,) = found["evaluation"]["guardrails"]
    assert (fallback["control"]["mean"], fallback["candidate"]["mean"]) == (0.0, 1.0)
    assert found["state"] == "rolled_back"


def test_a_revoked_candidate_is_rolled_back_at_the_next_look(trial: Trial) -> None:
    started = trial.begin()
    trial.world.store.revoke_release("acme", trial.new, trial.world.clock.now(), reason="bad", actor="admin")
    assert {trial.release_of(person) for person in PEOPLE} == {trial.old}
    trial.loop.run_once()
    assert trial.show(started["id"])["state"] == "rolled_back"


def steer(api: Api, rollout: str, action: str, **options: Any) -> httpx.Response:
    return api.post(f"/v1/rollouts/{rollout}/{action}", {"reason": "because"}, **options)


def test_a_draft_is_started_held_and_resumed_by_hand(trial: Trial) -> None:
    draft = trial.begin(start=False)
    assert (draft["state"], draft["share"]) == ("draft", 0.0)
    for action, state in (("start", "running"), ("hold", "held"), ("resume", "running"), ("abort", "aborted")):
        assert steer(trial.api, draft["id"], action).json()["state"] == state
    assert_problem(steer(trial.api, draft["id"], "start"), 409, "conflict")
    assert [entry["state"] for entry in trial.show(draft["id"])["history"]] == [
        "draft",
        "running",
        "held",
        "running",
        "aborted",
    ]


def test_if_match_guards_a_change(trial: Trial) -> None:
    started = trial.begin()
    shown = trial.api.get(f"/v1/rollouts/{started['id']}")
    assert steer(trial.api, started["id"], "hold", headers={"If-Match": shown.headers["etag"]}).status_code == 200
    again = steer(trial.api, started["id"], "resume", headers={"If-Match": shown.headers["etag"]})
    assert_problem(again, 412, "precondition_failed")
    for tag in ("7", '"7"', "x", '"1", "7"'):
        refused = steer(trial.api, started["id"], "resume", headers={"If-Match": tag})
        assert_problem(refused, 412, "precondition_failed")
    assert shown.headers["etag"] == '"1"'
    assert steer(trial.api, started["id"], "resume", headers={"If-Match": '"7", "2"'}).status_code == 200


def test_each_call_needs_its_scope(trial: Trial) -> None:
    started = trial.begin()
    registry = trial.world.api(trial.world.key("acme", Scope.REGISTRY))
    assert registry.get("/v1/rollouts").json()["rollouts"][0]["id"] == started["id"]
    assert registry.get(f"/v1/rollouts/{started['id']}").status_code == 200
    for action in ("start", "hold", "resume", "abort"):
        assert_problem(steer(registry, started["id"], action), 404, "not_found")
    assert_problem(registry.post("/v1/rollouts", PLAN), 404, "not_found")
    others = trial.world.api(trial.world.key("acme", Scope.INFER, Scope.FEEDBACK, Scope.CONTROLS))
    assert_problem(others.get("/v1/rollouts"), 404, "not_found")
    assert_problem(others.get(f"/v1/rollouts/{started['id']}"), 404, "not_found")
    assert_problem(trial.world.api().get("/v1/rollouts"), 401, "not_authenticated")


def test_another_tenants_rollout_answers_like_one_that_does_not_exist(trial: Trial) -> None:
    started = trial.begin()
    stranger = trial.world.api(trial.world.key("other"))
    assert stranger.get("/v1/rollouts").json() == {"rollouts": []}
    for rollout in (started["id"], "missing", "a%00b"):
        assert_problem(stranger.get(f"/v1/rollouts/{rollout}"), 404, "not_found")
        assert_problem(steer(stranger, rollout, "abort"), 404, "not_found")
    body = PLAN | {"candidate": {"kind": "release", "id": trial.new}}
    assert_problem(stranger.post("/v1/rollouts", body), 404, "not_found")
    assert trial.show(started["id"])["state"] == "running"


@pytest.mark.parametrize(
    "fields",
    [
        {"salt": "mine"},
        {"salt": None},
        {"surprise": 1},
        {"steps": []},
        {"steps": [0.0, 1.0]},
        {"steps": [-0.5, 1.0]},
        {"steps": [1.0]},
        {"steps": [0.5, 0.2, 1.0]},
        {"steps": [0.5]},
        {"steps": "all"},
        {"steps": [0.1, 1.1]},
        {"guardrails": {}},
        {"guardrails": {"joy": 0.1}},
        {"guardrails": {"success": -1.0}},
        {"min_people": 0},
        {"alpha": 0.0},
        {"per_person": 0},
        {"slow_ms": -1.0},
        {"reason": ""},
        {"candidate": {"kind": "everything", "id": "x"}},
        {"candidate": {"kind": "global"}},
        {"candidate": {"kind": "release"}},
        {"candidate": {"kind": "setting", "strength": 2.0}},
        {"candidate": {"kind": "release", "id": "x", "salt": "mine"}},
        {"candidate": {"kind": "release", "id": "x\x00"}},
    ],
    ids=str,
)
def test_bad_rollouts_are_refused_and_leave_nothing(trial: Trial, fields: dict[str, Any]) -> None:
    body = PLAN | {"candidate": {"kind": "release", "id": trial.new}} | fields
    assert_problem(trial.api.post("/v1/rollouts", body), 422, "invalid_input")
    assert trial.api.get("/v1/rollouts").json() == {"rollouts": []}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(trial: Trial, number: str) -> None:
    body = f'{{"candidate": {{"kind": "release", "id": "{trial.new}"}}, "steps": [{number}, 1.0], "reason": "x"}}'
    assert trial.api.raw("/v1/rollouts", body.encode()).status_code in (400, 422)


def test_a_second_rollout_of_the_same_pointers_is_a_conflict(trial: Trial) -> None:
    started = trial.begin()
    third = publish(trial.world, *PEOPLE, staged=True, turned=0.5)
    body = PLAN | {"candidate": {"kind": "release", "id": third}}
    problem = assert_problem(trial.api.post("/v1/rollouts", body), 409, "conflict")
    assert started["id"] in problem["detail"]


def test_the_salt_is_never_told(trial: Trial) -> None:
    started = trial.begin()
    for response in (trial.api.get("/v1/rollouts"), trial.api.get(f"/v1/rollouts/{started['id']}")):
        assert "salt" not in response.text


def test_what_could_not_be_counted_waits_and_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(world.store)
    for number in range(3):
        counter.note(Served("acme", f"p{number}", (), 0.1))

    def away(_served: Any) -> int:
        raise UnavailableError("away.")

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "observe_served", away)
        with pytest.raises(UnavailableError):
            counter.flush()
    seen: list[str] = []
    monkeypatch.setattr(world.store, "observe_served", lambda batch: seen.extend(one.subject for one in batch))
    counter.flush()
    assert seen == ["p0", "p1", "p2"]
    for number in range(rollouts.MAX_WAITING + 5):
        counter.note(Served("acme", str(number), (), 0.1))
    counter.flush()
    assert len(seen) == 3 + rollouts.MAX_WAITING


def test_the_loops_thread_outlives_errors_and_stops(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rollouts, "EVALUATE_SECONDS", 0.01)
    looks: list[int] = []

    def failing() -> Any:
        looks.append(1)
        raise (UnavailableError("away."), ValueError("a bug"))[len(looks) % 2]

    monkeypatch.setattr(world.store, "active_rollouts", failing)
    loop = RolloutLoop(world)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "idiolect.rollouts"):
        loop.start()
        until = time.monotonic() + 30
        while len(looks) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        loop.stop()
    assert "put off" in caplog.text
    assert "failed" in caplog.text


def test_one_rollout_that_fails_keeps_no_other_waiting(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    good = trial.begin(guardrails={"failed": 0.9}, min_people=1)
    real = trial.world.store.active_rollouts
    monkeypatch.setattr(trial.world.store, "active_rollouts", lambda: [("acme", "missing"), *real()])
    assert [one.rollout.id for one in trial.loop.run_once()] == [good["id"]]
