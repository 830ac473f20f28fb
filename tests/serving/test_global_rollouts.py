"""Two global models in one server: who may start it, which model answers, and what is counted meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving_world import HashModel, K, M, World, assert_problem, scores, signed_version, some_weights, template_for

from idiolect.audit import INSTALLATION
from idiolect.errors import CorruptArtifactError, UnavailableError
from idiolect.ids import new_id
from idiolect.registry.manifest import Carried
from idiolect.rollouts.outcomes import Served
from idiolect.rollouts.plan import Candidate, Guardrail, Plan
from idiolect.rollouts.verdicts import Move
from idiolect.stores.rollout_ports import StagedModel
from idiolect.tenancy import Scope
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_services.candidate import RETRY_SECONDS, CandidateKeeper
from idiolect_services.live import LiveScorer
from idiolect_services.models import CandidateScorer
from idiolect_services.scorer import Scorer
from idiolect_services.takeover import Takeover

OLD, NEW = HashModel.digest, "d" * 64
PEOPLE = [f"person {number}" for number in range(24)]
BODY = {
    "candidate": {"kind": "global", "id": "latest"},
    "steps": [0.5, 1.0],
    "guardrails": {"fallback": 0.3},
    "min_people": 1,
    "reason": "try",
}
PLAN = Plan((0.5, 1.0), (Guardrail("fallback", 0.3),), min_people=1)


class Shifted(HashModel):
    """The candidate: every score is one higher."""

    digest = NEW
    temperature = 3.0

    def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        rows = super().project(pairs)
        rows[:, 0] += 1.0
        return rows


class Installed:
    """A server that loads what is tried when `look` is called, and everybody's adapters on both models."""

    def __init__(self, world: World) -> None:
        self.world, self.store, self.now = world, world.store, 0.0
        self.noted: list[Served] = []
        self.built: list[str] = []
        self.broken = False
        self.candidate_model = Shifted()
        self.live = LiveScorer(Scorer(world.store, world.features, world.bank, on_served=self.note))
        keeper = CandidateKeeper(self.live, world.store.global_trial, self.build, monotonic=lambda: self.now)
        self.takeover = Takeover(self.live, world.store.live_global, self.build, candidate=keeper)
        self.app = world.make_app(live=self.live)
        self.api = world.api(world.key(), self.app)
        self.pairs = [self.publish("user", person) for person in PEOPLE] + [self.publish("domain", "chat")]
        world.store.stage_model(StagedModel(NEW, OLD, b"{}", world.clock.now(), "test", "test"))

    def note(self, served: Served) -> None:
        counted = self.live.countable(served)
        if counted is not None:
            self.noted.append(counted)

    def build(self, digest: str) -> CandidateScorer:
        self.built.append(digest)
        if self.broken:
            raise CorruptArtifactError("a byte of the model is wrong.")
        model, store = self.candidate_model, self.store
        bank = AdapterBank(model, self.world.whole, self.world.signer, max_adapters=1_000)
        return CandidateScorer(store, FeatureCache(model, max_bytes=1 << 20), bank, on_served=self.note)

    def publish(self, scope: str, name: str) -> tuple[str, str]:
        """The live version and what was carried from it; a person opts in first."""
        world = self.world
        if scope == "user":
            world.opt_in(name)
        live = world.publish_user(name) if scope == "user" else world.publish_domain(name)
        template = replace(
            template_for("acme", scope, world.model, world.clock),
            global_digest=NEW,
            carried=Carried(live.release, OLD, ()),
        )
        weights = [-weight for weight in some_weights(name, K if scope == "user" else M)]
        owner = {"subject": live.subject} if scope == "user" else {"domain": name}
        release = new_id()
        copy = signed_version(template, world.signer, weights, release=release, parent=live.id, **owner)
        world.store.publish(release, template, [copy], world.clock.now(), reason="t", actor="t", staged=True)
        return live.id, copy.id

    def begin(self) -> Any:
        now = self.world.clock.now()
        candidate = Candidate("global", NEW)
        return self.store.create_rollout(INSTALLATION, candidate, PLAN, now, reason="try", actor="test", start=True)

    def end(self, rollout: Any) -> None:
        now = self.world.clock.now()
        self.store.steer_rollout(INSTALLATION, rollout.id, "abort", now, reason="enough", actor="test")

    def ask(self, person: str, **fields: Any) -> dict[str, Any]:
        return self.api.rerank(person, domain="chat", **fields)

    def on_candidate(self) -> set[str]:
        return {person for person in PEOPLE if self.ask(person)["model"] == NEW}


@pytest.fixture
def installed(world: World) -> Installed:
    return Installed(world)


def test_each_person_is_answered_by_their_model_with_their_adapters_on_it(installed: Installed) -> None:
    before = {person: installed.ask(person) for person in PEOPLE}
    installed.begin()
    assert installed.takeover.look() is None
    assert installed.built == [NEW]
    for person, (live, copy) in zip(PEOPLE, installed.pairs, strict=False):
        answer = installed.ask(person, explain=True)
        said = answer["personalization"]
        on_it = answer["model"] == NEW
        assert (said["adapter"], said["domain"]) == (
            (copy, installed.pairs[-1][1]) if on_it else (live, installed.pairs[-1][0])
        )
        assert said["applied"]
        if not on_it:
            assert scores(answer) == scores(before[person])
            continue
        for result in answer["results"]:
            parts = {part["index"]: part["parts"] for part in before_explained(installed, person)}
            old = parts[result["index"]]
            assert result["parts"]["global"] == old["global"] + 1.0
            assert result["parts"]["user"] == -old["user"]
    assert 4 < len(installed.on_candidate()) < 20
    assert installed.api.rerank()["model"] == installed.api.rerank("stranger")["model"] == OLD


def before_explained(installed: Installed, person: str) -> list[dict[str, Any]]:
    """As the live model alone ranks them."""
    world = installed.world
    api = world.api(world.key(), world.make_app(live=LiveScorer(Scorer(world.store, world.features, world.bank))))
    return list(api.rerank(person, domain="chat", explain=True)["results"])


def test_relevance_is_by_the_temperature_of_the_model_that_answered(installed: Installed) -> None:
    installed.begin()
    installed.takeover.look()
    body = {"query": "q", "a": "a", "b": "b", "domain": "chat"}
    person = min(installed.on_candidate())
    score = installed.api.post("/v1/score", {"query": "q", "documents": ["a", "b"], "user": person, "domain": "chat"})
    a, b = (entry["score"] for entry in score.json()["data"])
    compared = installed.api.post("/v1/compare", body | {"user": person}).json()
    assert compared["model"] == score.json()["model"] == NEW
    assert compared["probability"] == pytest.approx(1 / (1 + np.exp(-(a - b) / Shifted.temperature)))


def test_until_it_is_loaded_its_people_are_on_the_live_model_and_neither_arm_counts(installed: Installed) -> None:
    before = {person: scores(installed.ask(person)) for person in PEOPLE}
    installed.begin()
    missing = set()
    for person in PEOPLE:
        answer = installed.ask(person)
        assert (scores(answer), answer["model"]) == (before[person], OLD)
        if "candidate_missing" in answer["personalization"]:
            assert answer["personalization"]["candidate_missing"] == NEW
            missing.add(person)
    assert installed.noted == []
    installed.takeover.look()
    assert installed.on_candidate() == missing
    assert len(installed.noted) == len(PEOPLE)
    assert {one.fallback for one in installed.noted} == {False}


def test_one_that_can_not_be_loaded_counts_as_a_fallback_of_its_arm_and_is_tried_again(installed: Installed) -> None:
    installed.broken = True
    installed.begin()
    installed.takeover.look()
    installed.takeover.look()
    assert installed.built == [NEW]
    assert installed.api.get("/readyz").json() == {"status": "ok", "candidate": "missing"}
    for person in PEOPLE:
        assert installed.ask(person)["model"] == OLD
    assert len(installed.noted) == len(PEOPLE)
    assert all(one.fallback is (one.trials[0].arm == "candidate") for one in installed.noted)
    installed.broken, installed.now = False, RETRY_SECONDS + 1
    installed.takeover.look()
    assert installed.on_candidate()
    assert installed.api.get("/readyz").json() == {"status": "ok"}


def test_after_an_abort_the_candidate_answers_nothing_even_where_it_is_still_in_memory(installed: Installed) -> None:
    before = {person: installed.ask(person)["results"] for person in PEOPLE}
    rollout = installed.begin()
    installed.takeover.look()
    assert installed.on_candidate()
    installed.end(rollout)
    assert {person: installed.ask(person)["results"] for person in PEOPLE} == before
    assert installed.live.candidate is not None
    installed.takeover.look()
    assert installed.live.candidate is None
    assert installed.live.wait_until_drained(20)


def test_an_abort_between_the_two_looks_is_answered_by_the_live_model(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = installed.begin()
    installed.takeover.look()
    person = min(installed.on_candidate())
    before = scores(installed.api.rerank(person, domain="chat", personalization="off"))
    real = CandidateScorer._resolving

    def aborted_first(scorer: CandidateScorer, request: Any) -> Any:
        installed.end(rollout)
        return real(scorer, request)

    monkeypatch.setattr(CandidateScorer, "_resolving", aborted_first)
    answer = installed.ask(person)
    assert (answer["model"], answer["personalization"]["applied"]) == (OLD, True)
    assert scores(answer) != before
    new_text = installed.api.post("/v1/rerank", {"query": "never", "documents": ["seen"], "user": person}).json()
    assert new_text["model"] == OLD


def test_an_adapter_of_the_candidate_that_does_not_verify_is_quarantined_and_counts_as_a_fallback(
    installed: Installed,
) -> None:
    installed.begin()
    installed.takeover.look()
    before = {person: scores(answer) for person in PEOPLE if (answer := before_ranked(installed, person))}
    person = min(installed.on_candidate())
    installed.noted.clear()
    copy = installed.pairs[PEOPLE.index(person)][1]
    installed.world.damage("id", copy)
    installed.live.forget("acme", installed.world.pseudonym("acme", person))
    answer = installed.ask(person)
    assert (answer["model"], scores(answer)) == (OLD, before[person])
    assert installed.store.version("acme", copy).withheld.startswith("quarantined")
    assert [(one.fallback, one.trials[0].arm) for one in installed.noted] == [(True, "candidate")]
    assert installed.ask(person)["model"] == OLD
    assert len(installed.noted) == 1  # from now on they take no part


def before_ranked(installed: Installed, person: str) -> dict[str, Any]:
    world = installed.world
    api = world.api(world.key(), world.make_app(live=LiveScorer(Scorer(world.store, world.features, world.bank))))
    return api.rerank(person, domain="chat")


def test_while_the_store_is_away_everybody_is_on_the_live_model(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.begin()
    installed.takeover.look()
    person = min(installed.on_candidate())

    def away(*_: Any) -> Any:
        raise UnavailableError("away.")

    monkeypatch.setattr(installed.store, "resolve", away)
    answer = installed.ask(person)
    assert (answer["model"], answer["personalization"]["reason"]) == (OLD, "store_unavailable")


def test_a_reset_reaches_the_adapters_on_both_models(installed: Installed) -> None:
    never = installed.ask("stranger")
    installed.begin()
    installed.takeover.look()
    person = min(installed.on_candidate())
    assert installed.api.post(f"/v1/users/{person}/personalization/reset", {"scope": "all"}).status_code == 200
    after = installed.ask(person)
    assert (after["results"], after["model"]) == (never["results"], OLD)
    candidate = installed.live.candidate
    assert candidate is not None
    subject = installed.world.pseudonym("acme", person)
    assert installed.store.versions("acme", subject=subject) == []
    held = installed.world.named("domain", "chat")[1]
    assert not candidate.bank.holds(owner_of(subject), held)


def owner_of(subject: str) -> Any:
    from idiolect_adapters.runtime.bank import Owner

    return Owner("acme", "user", subject)


def test_on_completion_the_loaded_candidate_takes_over_and_nothing_is_loaded_again(installed: Installed) -> None:
    rollout = installed.begin()
    installed.takeover.look()
    on_it = {person: installed.ask(person)["results"] for person in installed.on_candidate()}
    done = Move("completed", 1, "healthy", "better", promotes=True)
    installed.store.move_rollout(rollout, done, installed.world.clock.now(), actor="test")
    answers = {person: installed.ask(person) for person in PEOPLE}
    assert {answer["model"] for answer in answers.values()} == {NEW}  # before any server has looked
    assert {person: answers[person]["results"] for person in on_it} == on_it
    assert all(answer["personalization"]["applied"] for answer in answers.values())
    assert installed.takeover.look() is installed.live.current
    assert (installed.built, installed.live.candidate) == ([NEW], None)
    assert installed.live.wait_until_drained(20)
    assert installed.api.rerank()["model"] == NEW
    assert {person: installed.ask(person)["results"] for person in PEOPLE} == {
        person: answer["results"] for person, answer in answers.items()
    }


def test_texts_of_both_models_in_one_moment_are_a_forward_of_each(installed: Installed) -> None:
    installed.begin()
    installed.takeover.look()
    on_it = installed.on_candidate()
    one, other = min(on_it), min(set(PEOPLE) - on_it)
    calls = (len(installed.world.model.calls), len(installed.candidate_model.calls))
    for person in (one, other):
        installed.api.post("/v1/rerank", {"query": "fresh", "documents": ["x", "y"], "user": person})
    assert (len(installed.world.model.calls), len(installed.candidate_model.calls)) == (calls[0] + 1, calls[1] + 1)


def test_only_admins_of_the_operators_tenant_may_roll_out_a_global_model(installed: Installed) -> None:
    world = installed.world
    refused = installed.api.post("/v1/rollouts", BODY)
    assert_problem(refused, 404, "not_found")
    app = world.make_app(live=installed.live, settings=world.settings.model_copy(update={"operator_tenant": "acme"}))
    operator, stranger = world.api(world.key(), app), world.api(world.key("other"), app)
    assert_problem(stranger.post("/v1/rollouts", BODY), 404, "not_found")
    reader = world.api(world.key("acme", Scope.REGISTRY), app)
    assert_problem(reader.post("/v1/rollouts", BODY), 404, "not_found")
    assert_problem(
        operator.post("/v1/rollouts", BODY | {"candidate": {"kind": "global", "id": "x" * 64}}), 404, "not_found"
    )
    assert_problem(operator.post("/v1/rollouts", BODY | {"candidate": {"kind": "global"}}), 422, "invalid_input")
    made = operator.post("/v1/rollouts", BODY)
    assert made.status_code == 201
    rollout = made.json()
    assert (rollout["candidate"]["id"], rollout["covers"], rollout["state"]) == (NEW, ["global"], "running")
    for nobody in (stranger, installed.api):
        assert nobody.get("/v1/rollouts").json() == {"rollouts": []}
        assert_problem(nobody.get(f"/v1/rollouts/{rollout['id']}"), 404, "not_found")
        assert_problem(nobody.post(f"/v1/rollouts/{rollout['id']}/abort", {"reason": "x"}), 404, "not_found")
    assert [one["id"] for one in reader.get("/v1/rollouts").json()["rollouts"]] == [rollout["id"]]
    assert operator.get(f"/v1/rollouts/{rollout['id']}").json()["enrolled"] == {"control": 0, "candidate": 0}
    again = operator.post("/v1/rollouts", BODY)
    assert_problem(again, 409, "conflict")
    aborted = operator.post(f"/v1/rollouts/{rollout['id']}/abort", {"reason": "enough"})
    assert aborted.json()["state"] == "aborted"
    app.state.gateway.close()
