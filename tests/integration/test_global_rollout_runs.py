"""A global model is rolled out on a whole server over HTTP, with real models on disk: two models serve at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from test_live_takeover import running
from test_retraining import eventually
from training_home import NEW, TENANT, Home, Quiet

from idiolect.audit import INSTALLATION
from idiolect.errors import ConflictError, CorruptArtifactError, NotFoundError, PreconditionError
from idiolect.registry.pointers import Adapter
from idiolect.registry.weights import verify_version
from idiolect.resets.plan import plan_reset
from idiolect.rollouts.plan import Candidate, Guardrail, Plan, Rollout
from idiolect.rollouts.verdicts import Move
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_adapters.preference import CARD
from idiolect_services import rollouts, takeover, training_runs
from idiolect_services.carrying import Follower
from idiolect_services.passage import CarryReport, Passage
from idiolect_services.rollouts import evaluate_rollout
from idiolect_services.serving import create_server_app

Answer = dict[str, Any]
HALF = Plan(steps=(0.5, 1.0), min_people=1, guardrails=(Guardrail("fallback", 0.3),))
COMPLETE = Move("completed", 1, "healthy", "better", promotes=True)
PEOPLE = [f"person {number}" for number in NEW]


def staged(home: Home, monkeypatch: pytest.MonkeyPatch, *, carry: bool = True) -> tuple[str, CarryReport]:
    """Everybody has adapters on the live model, and there is another one for a rollout."""
    monkeypatch.setattr(takeover, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(rollouts, "EVALUATE_SECONDS", 0.05)
    home.trainer().train_users(TENANT)
    home.trainer().train_domain(TENANT, "chat")
    monkeypatch.setattr(training_runs, "GLOBAL_OPTIONS", replace(training_runs.GLOBAL_OPTIONS, seed=1))
    told: list[CarryReport] = []
    model = training_runs.train_global_model(
        home.installation, TENANT, Quiet(), carry=carry, staged=True, on_carried=told.append
    )
    assert home.store.live_global() == home.model.digest != model.digest
    return model.digest, told[0]


def begin(home: Home, plan: Plan = HALF) -> Rollout:
    now = home.installation.clock.now()
    return home.store.create_rollout(  # type: ignore[no-any-return]
        INSTALLATION, Candidate("global", "latest"), plan, now, reason="try", actor="test", start=True
    )


class Server:
    def __init__(self, home: Home, base: str, secret: str) -> None:
        self.home = home
        self.api = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {secret}"}, timeout=30)
        self.items = home.world.items[:4]

    def rank(self, user: str | None = None, **fields: Any) -> Answer:
        named = {} if user is None else {"user": user}
        body = {"query": self.items[0].prompt, "documents": [item.text for item in self.items]}
        answer = self.api.post("/v1/rerank", json=body | named | {"domain": "chat"} | fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def everybody(self) -> dict[str, Answer]:
        """At the same moment."""
        with ThreadPoolExecutor(len(PEOPLE)) as pool:
            return dict(zip(PEOPLE, pool.map(self.rank, PEOPLE), strict=True))

    def choose(self, user: str, value: int) -> None:
        signal = {"inference_id": self.rank(user)["id"], "kind": "choice", "value": value, "user": user}
        assert self.api.post("/v1/feedback", json=signal).status_code == 202


@contextmanager
def served(home: Home) -> Iterator[Server]:
    secret = new_secret()
    home.store.create_key(TENANT, list(Scope), hash_secret(secret), home.installation.clock.now())
    with running(create_server_app(home.installation), home) as base:
        server = Server(home, base, secret)
        with server.api:
            yield server


def results(answers: dict[str, Answer]) -> dict[str, Any]:
    return {user: answer["results"] for user, answer in answers.items()}


def models(answers: dict[str, Answer]) -> dict[str, str]:
    return {user: answer["model"] for user, answer in answers.items()}


def loaded(server: Server, digest: str) -> bool:
    return digest in models(server.everybody()).values()


def begun_on_both(home: Home, server: Server, digest: str) -> Rollout:
    """A rollout with somebody in each arm: who is in which is drawn anew with every salt."""
    while True:
        rollout = begin(home)
        arms = [home.store.resolve(TENANT, person, "chat").candidate is not None for person in home.new_people]
        if any(arms) and not all(arms):
            assert eventually(lambda: loaded(server, digest))
            return rollout
        abort(home, rollout)


def completed(home: Home, rollout: Rollout) -> bool:
    """The server's evaluator writes to it as well."""
    try:
        current = home.store.rollout(INSTALLATION, rollout.id)
        home.store.move_rollout(current, COMPLETE, home.installation.clock.now(), actor="test")
    except PreconditionError:
        return False
    return True


def abort(home: Home, rollout: Rollout) -> None:
    now = home.installation.clock.now()
    home.store.steer_rollout(INSTALLATION, rollout.id, "abort", now, reason="enough", actor="test")


def test_a_staged_model_serves_nobody_and_its_adapters_wait(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    before = None
    digest, report = staged(home, monkeypatch)
    assert (report.carried, report.passed_over, report.fenced) == (len(NEW) + 1, 0, 0)
    before = home.scored(home.scorer(), home.new_people[0], domain="chat")
    assert before.personalization.global_digest == home.model.digest
    kept = home.store.staged_model("latest")
    assert (kept.digest, kept.base) == (digest, home.model.digest)
    passage = Passage.from_bytes(kept.passage)
    assert Passage.from_bytes(passage.to_bytes()).to_bytes() == kept.passage
    assert len(home.store.waiting_releases(digest)) == 2
    again = training_runs.carry_adapters(home.installation, TENANT, Quiet(), "latest")
    assert again.carried == 0, "only what is missing is carried"


def test_two_models_serve_at_once_and_an_abort_puts_everybody_back_bit_for_bit(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _ = staged(home, monkeypatch)
    with served(home) as server:
        before = server.everybody()
        assert set(models(before).values()) == {home.model.digest}
        rollout = begun_on_both(home, server, digest)
        during = server.everybody()
        assert set(models(during).values()) == {home.model.digest, digest}
        for user, answer in during.items():
            said = answer["personalization"]
            assert (said["applied"], said["reason"], said["global"]) == (True, "applied", answer["model"])
            assert "candidate_missing" not in said
            bound = [home.store.version(TENANT, said[part]).template.global_digest for part in ("adapter", "domain")]
            assert bound == [answer["model"]] * 2
            same = answer["results"] == before[user]["results"]
            assert same is (answer["model"] == home.model.digest)
            explained = server.api.get(f"/v1/users/{user}/explanation").json()["adapter"]
            assert (explained["version"], explained["norm"] is not None) == (said["adapter"], True)
        assert server.rank()["model"] == server.rank("stranger")["model"] == home.model.digest
        abort(home, rollout)
        after = server.everybody()
        assert (results(after), models(after)) == (results(before), models(before))


def test_a_restart_reassigns_nobody(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, _ = staged(home, monkeypatch)
    with served(home) as server:
        begun_on_both(home, server, digest)
        first = models(server.everybody())
    with served(home) as server:
        assert eventually(lambda: models(server.everybody()) == first)


def test_who_resets_during_the_rollout_is_as_one_who_never_opted_in(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _ = staged(home, monkeypatch)
    with served(home) as server:
        begun_on_both(home, server, digest)
        never = server.rank("stranger")
        user = next(user for user, model in models(server.everybody()).items() if model == digest)
        done = server.api.post(f"/v1/users/{user}/personalization/reset", json={"scope": "all"})
        assert done.status_code == 200
        after = server.rank(user)
        assert (after["results"], after["model"]) == (never["results"], home.model.digest)
        assert home.store.versions(TENANT, subject=home.installation.pseudonym(TENANT, user)) == []


def test_who_gives_feedback_is_trained_once_and_right_on_both_models(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _ = staged(home, monkeypatch)
    with served(home) as server:
        rollout = begun_on_both(home, server, digest)
        user = next(user for user, model in models(server.everybody()).items() if model == digest)
        subject = home.installation.pseudonym(TENANT, user)
        old, spent = server.rank(user)["personalization"]["adapter"], home.spent(subject)
        server.choose(user, 2)

        def carried_anew() -> bool:
            said = server.rank(user)["personalization"]
            return said["applied"] and said["global"] == digest and said["adapter"] != old

        assert eventually(carried_anew)
        new = home.store.version(TENANT, server.rank(user)["personalization"]["adapter"])
        source = home.store.version(TENANT, new.version.parent)
        assert source.template.global_digest == home.model.digest
        assert (new.template.run, new.template.privacy) == (source.template.run, source.template.privacy)
        assert verify_version(new.template, new.version, home.installation.signer)
        runs = [run for run in home.store.runs(TENANT) if run.purpose == "user adapters"]
        assert len(runs) == 2
        assert home.spent(subject) > spent
        abort(home, rollout)
        assert server.rank(user)["personalization"]["adapter"] == source.version.id


def test_a_completed_rollout_is_live_for_everybody_without_a_moment_in_between(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _ = staged(home, monkeypatch)
    with served(home) as server:
        rollout = begun_on_both(home, server, digest)
        on_it = {user for user, model in models(server.everybody()).items() if model == digest}
        before = results(server.everybody())
        assert eventually(lambda: completed(home, rollout))
        answers = server.everybody()
        for answer in answers.values():
            assert answer["personalization"]["applied"]
            assert answer["model"] == digest
        assert {user: results(answers)[user] for user in on_it} == {user: before[user] for user in on_it}
        assert eventually(lambda: home.store.global_trial() is None)
        live, *_ = home.store.pointers(TENANT, Adapter("user", home.new_people[0]))
        assert home.store.version(TENANT, live.version).template.global_digest == digest
        assert eventually(lambda: server.rank()["model"] == digest)
        assert results(server.everybody()) == results(answers)
        server.choose(PEOPLE[0], 1)  # from now on people are trained on the new model
        subject = home.installation.pseudonym(TENANT, PEOPLE[0])
        newest = lambda: home.store.resolve(TENANT, subject, None).user.id  # noqa: E731
        assert eventually(lambda: home.store.version(TENANT, newest()).template.carried is None)
        assert home.store.version(TENANT, newest()).template.global_digest == digest


@pytest.mark.parametrize("trouble", ["missing", "damaged"])
def test_a_candidate_that_can_not_be_loaded_leaves_its_people_on_the_live_model_says_so_and_is_rolled_back(
    home: Home, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    digest, _ = staged(home, monkeypatch)
    card = home.installation.models / digest / CARD
    if trouble == "missing":
        card.unlink()
    else:
        card.write_bytes(card.read_bytes() + b" ")
    with served(home) as server:
        before = results(server.everybody())
        rollout = begin(home)
        assert eventually(lambda: server.api.get("/readyz").json() == {"status": "ok", "candidate": "missing"})
        answers = server.everybody()
        assert results(answers) == before
        for user, answer in answers.items():
            on = home.store.resolve(TENANT, home.installation.pseudonym(TENANT, user), "chat").candidate
            assert answer["personalization"].get("candidate_missing") == (digest if on else None)
        crowd = [f"extra {number}" for number in range(40)]
        for user in crowd:
            server.api.put(f"/v1/users/{user}/personalization", json={"opted_in": True})
            server.rank(user)
        assert eventually(lambda: home.store.rollout(INSTALLATION, rollout.id).state == "rolled_back")
        found = home.store.rollout(INSTALLATION, rollout.id)
        assert (found.verdict, "fallback" in found.reason) == ("breach", True)
        assert home.store.live_global() == home.model.digest
        assert results(server.everybody()) == before
        assert eventually(lambda: server.api.get("/readyz").json() == {"status": "ok"})


def test_what_stayed_behind_is_carried_before_the_model_becomes_live(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _ = staged(home, monkeypatch)
    rollout = begin(home, replace(HALF, guardrails=(Guardrail("failed", 0.9),)))
    with monkeypatch.context() as broken:
        broken.setattr(Follower, "_passage", lambda *_: 1 / 0)
        home.trainer(user_epsilon=8.0, user_budget_epsilon=500.0).train_users(TENANT)  # goes through all the same
    assert len(home.store.left_behind(TENANT, digest)) == len(NEW)
    gone = home.new_people[0]
    home.store.apply_reset(TENANT, gone, "x1", plan_reset("adapter"), home.installation.clock.now())
    healthy = rollouts.Evaluation("healthy", "ok", ())
    monkeypatch.setattr(rollouts, "evaluate", lambda *_: healthy)
    (home.installation.models / home.model.digest / CARD).rename(home.installation.root / "away")
    with pytest.raises(CorruptArtifactError):
        evaluate_rollout(home.installation, INSTALLATION, rollout.id)
    assert home.store.live_global() == home.model.digest, "it must not go live while people would lose their adapters"
    (home.installation.root / "away").rename(home.installation.models / home.model.digest / CARD)
    assert evaluate_rollout(home.installation, INSTALLATION, rollout.id).rollout.state == "completed"
    assert home.store.live_global() == digest
    assert home.store.global_trial() is None
    for person in home.new_people:
        served = home.store.resolve(TENANT, person, None).user
        assert (served is None) is (person == gone)
        if served is not None:
            parent = home.store.version(TENANT, home.store.version(TENANT, served.id).version.parent)
            assert parent.version.release == home.store.version(TENANT, served.id).template.carried.release
    assert home.store.left_behind(TENANT, digest) == []


def test_what_can_not_be_staged_or_rolled_out_is_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="train global --staged"):
        begin(home)
    with pytest.raises(NotFoundError):
        training_runs.carry_adapters(home.installation, TENANT, Quiet(), "e" * 64)
    with pytest.raises(ConflictError, match="live already"):
        training_runs.carry_adapters(home.installation, TENANT, Quiet(), home.model.digest)
    digest, report = staged(home, monkeypatch, carry=False)
    assert report == CarryReport()
    with pytest.raises(ConflictError, match="carry --to"):
        begin(home)
    assert training_runs.carry_adapters(home.installation, TENANT, Quiet(), digest).carried == len(NEW) + 1
    begin(home)
