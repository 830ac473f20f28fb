from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from idiolect.rollouts.plan import Candidate, Guardrail, Plan, Rollout
from idiolect.rollouts.verdicts import Evaluation, Evidence, Move, Tally, Verdict, evaluate, next_move

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PLAN = Plan(steps=(0.1, 0.5, 1.0), guardrails=(Guardrail("success", 0.1),), min_people=100)


def evidence(
    control: tuple[int, float] = (2000, 0.5), candidate: tuple[int, float] = (2000, 0.5), **fields: Any
) -> Evidence:
    tallies = {
        ("control", "success"): Tally(control[0], control[0] * control[1]),
        ("candidate", "success"): Tally(candidate[0], candidate[0] * candidate[1]),
    }
    values: dict[str, Any] = {"enrolled": {"control": 2000, "candidate": 2000}, "tallies": tallies}
    return Evidence(**values | fields)


def verdict(found: Evidence, plan: Plan = PLAN) -> Verdict:
    return evaluate(plan, 1, found).verdict


def test_each_verdict_has_its_own_word() -> None:
    assert verdict(evidence()) == "healthy"
    assert verdict(evidence(candidate=(2000, 0.2))) == "breach"
    assert verdict(evidence(candidate=(2000, 0.4))) == "inconclusive"
    assert verdict(evidence(enrolled={"control": 2000, "candidate": 1000})) == "sample ratio mismatch"
    assert verdict(evidence(enrolled={"control": 99, "candidate": 101})) == "not enough data"
    assert verdict(Evidence()) == "not enough data"


def test_a_breach_is_called_before_the_step_has_its_people_and_whatever_the_ratio() -> None:
    harm = evidence(control=(60, 0.9), candidate=(60, 0.1), enrolled={"control": 60, "candidate": 60})
    assert verdict(harm) == "breach"
    assert verdict(replace(harm, enrolled={"control": 6000, "candidate": 60})) == "breach"


def test_a_ratio_has_to_be_the_less_likely_the_more_steps_are_looked_at() -> None:
    """1,865 of 4,000 at a share of a half: an evidence of 7.01 nats, between log(1,000) and log(2,000)."""
    found = evidence(enrolled={"control": 2135, "candidate": 1865})
    assert evaluate(replace(PLAN, steps=(0.5, 1.0)), 0, found).verdict == "sample ratio mismatch"
    assert evaluate(PLAN, 1, found).verdict == "healthy"


def test_the_smaller_arm_must_have_its_people() -> None:
    plan = replace(PLAN, steps=(0.1, 1.0))
    few = evidence(enrolled={"control": 900, "candidate": 99})
    assert evaluate(plan, 0, few).verdict == "not enough data"


def test_better_is_no_breach() -> None:
    assert verdict(evidence(candidate=(2000, 0.9))) == "healthy"


def test_more_of_what_is_bad_is_a_breach() -> None:
    plan = replace(PLAN, guardrails=(Guardrail("slow", 0.1),))
    tallies: Any = {("control", "slow"): Tally(500, 10), ("candidate", "slow"): Tally(500, 250)}
    assert verdict(evidence(tallies=tallies), plan) == "breach"
    turned: Any = {("control", "slow"): Tally(500, 250), ("candidate", "slow"): Tally(500, 10)}
    assert verdict(evidence(tallies=turned), plan) == "healthy"


def test_complaints_can_stop_a_rollout_and_need_not_be_disproved() -> None:
    plan = replace(PLAN, guardrails=(Guardrail("complaints", 1.0),))

    def complaints(control: float, candidate: float) -> Evidence:
        tallies: Any = {("control", "complaints"): Tally(0, control), ("candidate", "complaints"): Tally(0, candidate)}
        return evidence(tallies=tallies)

    assert verdict(complaints(0, 0), plan) == "healthy"
    assert verdict(complaints(30, 40), plan) == "healthy"
    assert verdict(complaints(3, 60), plan) == "breach"


def test_complaints_are_judged_against_the_share() -> None:
    plan = replace(PLAN, guardrails=(Guardrail("complaints", 1.0),))
    tallies: Any = {("control", "complaints"): Tally(9, 9), ("candidate", "complaints"): Tally(60, 60)}
    found = evidence(tallies=tallies, enrolled={"control": 1800, "candidate": 200})
    assert evaluate(plan, 0, found).verdict == "breach"
    fair: Any = {("control", "complaints"): Tally(180, 180), ("candidate", "complaints"): Tally(20, 20)}
    assert evaluate(plan, 0, replace(found, tallies=fair)).verdict == "healthy"


def rollout(**fields: Any) -> Rollout:
    values: dict[str, Any] = {
        "id": "r1",
        "tenant": "acme",
        "candidate": Candidate("release", "new"),
        "plan": PLAN,
        "state": "running",
        "step": 0,
        "revision": 3,
        "verdict": "not enough data",
        "reason": "try",
        "actor": "admin",
        "created_at": NOW,
        "moved_at": NOW,
        "owners": (("user", ""),),
    }
    return Rollout(**values | fields)


def move(word: Verdict, **fields: Any) -> Move | None:
    return next_move(rollout(**fields), Evaluation(word, "because", ()))


def test_a_healthy_step_advances_and_the_last_one_completes() -> None:
    step = move("healthy")
    assert step is not None
    assert (step.state, step.step, step.promotes) == ("running", 1, False)
    end = move("healthy", step=1)
    assert end is not None
    assert (end.state, end.step, end.promotes) == ("completed", 2, True)


def test_the_end_of_a_settings_test_promotes_nothing() -> None:
    setting = Candidate("setting", strength=0.5)
    end = move("healthy", candidate=setting, plan=replace(PLAN, steps=(0.1, 0.5)), step=1)
    assert end is not None
    assert (end.state, end.step, end.promotes) == ("completed", 1, False)
    done = rollout(state="completed", candidate=setting, plan=replace(PLAN, steps=(0.1, 0.5)), step=1)
    assert done.share == 0.0


def test_what_decided_about_a_completed_rollout_is_its_last_step_with_a_control_arm() -> None:
    assert [rollout(step=step).tested_step for step in range(3)] == [0, 1, 1]
    assert rollout(state="completed", step=2).tested_step == 1


@pytest.mark.parametrize("state", ["running", "held"])
def test_a_breach_rolls_back_from_anywhere(state: str) -> None:
    found = move("breach", state=state, step=1)
    assert found is not None
    assert (found.state, found.step, found.promotes) == ("rolled_back", 1, False)


def test_a_mismatch_holds_and_what_is_held_never_advances() -> None:
    held = move("sample ratio mismatch")
    assert held is not None
    assert held.state == "held"
    stays = move("healthy", state="held")
    assert stays is not None
    assert (stays.state, stays.step) == ("held", 0)


@pytest.mark.parametrize("word", ["inconclusive", "not enough data"])
def test_what_is_not_known_changes_nothing_but_the_word(word: Verdict) -> None:
    assert move(word, verdict=word) is None
    said = move(word, verdict="healthy")
    assert said is not None
    assert (said.state, said.step, said.promotes) == ("running", 0, False)


@pytest.mark.parametrize("state", ["draft", "completed", "rolled_back", "aborted"])
def test_what_is_not_active_never_moves_by_itself(state: str) -> None:
    for word in ("healthy", "breach", "inconclusive", "sample ratio mismatch"):
        assert move(word, state=state) is None  # type: ignore[arg-type]
