from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from idiolect.errors import InvalidInputError
from idiolect.rollouts.plan import Candidate, Guardrail, Plan


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (0.0, 1.0),
        (-0.1, 1.0),
        (1.0,),
        (math.nan, 1.0),
        (math.inf,),
        (0.5, 1.5),
        (0.5, 0.5, 1.0),
        (0.5, 0.25, 1.0),
        (1.0, 0.5),
        ("0.5", 1.0),
        (True,),
        (1e-9, 1.0),
        tuple(number / 100 for number in range(1, 30)),
    ],
)
def test_shares_must_rise_strictly_between_nobody_and_everybody(steps: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Plan(steps=steps)
    assert caught.value.mend


@pytest.mark.parametrize(
    "fields",
    [
        {"guardrails": ()},
        {"guardrails": (Guardrail("success", 0.1), Guardrail("success", 0.2))},
        {"min_people": 0},
        {"min_people": 1.5},
        {"min_people": True},
        {"per_person": 0},
        {"per_person": 21},
        {"slow_ms": 0.0},
        {"slow_ms": math.nan},
        {"alpha": 0.0},
        {"alpha": 0.9},
        {"alpha": math.nan},
    ],
)
def test_every_other_part_of_a_plan_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Plan(**fields)


@pytest.mark.parametrize(
    ("metric", "margin"),
    [("success", -0.1), ("success", 1.0), ("success", math.nan), ("complaints", 100.0), ("joy", 0.1), ("slow", "0")],
)
def test_guardrails_name_a_metric_and_a_margin(metric: Any, margin: Any) -> None:
    with pytest.raises(InvalidInputError):
        Guardrail(metric, margin)


@pytest.mark.parametrize(
    ("kind", "name", "strength"),
    [
        ("version", "", None),
        ("release", "r1", 0.5),
        ("setting", "", None),
        ("setting", "r1", 0.5),
        ("setting", "", 1.0),
        ("setting", "", -0.5),
        ("setting", "", math.nan),
        ("setting", "", True),
        ("global", "", None),
        ("global", "g1", 0.5),
        ("everything", "g1", None),
    ],
)
def test_a_candidate_is_one_thing_exactly(kind: Any, name: str, strength: Any) -> None:
    with pytest.raises(InvalidInputError):
        Candidate(kind, name, strength)


def test_an_adapter_ends_with_everybody_and_a_setting_before() -> None:
    Plan().check_for("release")
    half = replace(Plan(), steps=(0.5,))
    half.check_for("setting")
    with pytest.raises(InvalidInputError):
        half.check_for("version")
    with pytest.raises(InvalidInputError):
        Plan().check_for("setting")


def test_alpha_is_split_over_all_tests_with_a_control_arm() -> None:
    plan = Plan(steps=(0.1, 0.5, 1.0), guardrails=(Guardrail("success", 0.1), Guardrail("slow", 0.1)), alpha=0.04)
    assert plan.alpha_per_test == pytest.approx(0.01)
    assert Plan.from_json(plan.to_json()) == plan
