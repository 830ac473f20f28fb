"""The audit has teeth: it comes near true claims without passing them, and catches every planted fault.

The noise has no seed, so confidence and trials are such that a test fails by chance less often than 1 in 10^6.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from idiolect.errors import InvalidInputError
from idiolect_adapters.audit.canary import CLIP_NORM, Mechanism
from idiolect_adapters.audit.domain_canaries import shipped_domain
from idiolect_adapters.audit.faults import (
    planted_domain_faults,
    planted_global_faults,
    planted_lora_faults,
    planted_user_faults,
)
from idiolect_adapters.audit.global_canaries import shipped_global
from idiolect_adapters.audit.lora_canaries import shipped_lora
from idiolect_adapters.audit.recipes import alternating, summing
from idiolect_adapters.audit.run import AuditReport, CanaryResult, audit_mechanism
from idiolect_adapters.audit.user_canaries import shipped_user
from idiolect_adapters.training.domain import train_domain
from idiolect_adapters.training.user import PaddedComparisons, train_users

DELTA = 1e-5
SURE = 1.0 - 1e-7

PLANTED = {
    (mechanism, name): fault
    for mechanism, planted in (
        ("user", planted_user_faults()),
        ("domain", planted_domain_faults()),
        ("lora", planted_lora_faults()),
        ("global", planted_global_faults()),
    )
    for name, fault in planted.items()
}


class Counting:
    """1, 2, 3, ... in turn: one value for all entries of a draw."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.draws += 1
        return np.full(shape, float(self.draws))


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0])
def test_the_user_mechanism_keeps_its_claim_and_the_bound_comes_near_it(epsilon: float) -> None:
    report = audit_mechanism(shipped_user(), epsilon, DELTA, confidence=SURE)
    assert not report.caught, report
    assert report.lower_bound <= epsilon
    assert 0.5 * epsilon <= report.lower_bound_gdp <= epsilon
    assert report.evidence == "aligned"


def test_the_domain_mechanism_keeps_its_claim_and_the_bound_is_no_empty_word() -> None:
    report = audit_mechanism(shipped_domain(), 4.0, DELTA, confidence=SURE)
    assert not report.caught, report
    assert 0.25 <= report.ratio <= 1.0


@pytest.mark.parametrize("shipped", [shipped_lora, shipped_global])
def test_the_other_mechanisms_of_subjects_keep_their_claims_too(shipped: Callable[[], Mechanism]) -> None:
    report = audit_mechanism(shipped(), 4.0, DELTA, confidence=SURE)
    assert not report.caught, report
    assert 0.1 <= report.ratio <= 1.0


SAMPLED = 0.2


def test_a_sampled_domain_keeps_its_smaller_claim_and_one_that_reads_everybody_does_not() -> None:
    shipped = shipped_domain(SAMPLED)
    report = audit_mechanism(shipped, 8.0, DELTA, confidence=SURE)
    assert not report.caught, report
    assert report.lower_bound_gdp > 0.0
    everybody = replace(shipped, train=train_domain)
    assert audit_mechanism(everybody, 8.0, DELTA, stop_when_caught=True).caught


@pytest.mark.parametrize("key", PLANTED, ids=" / ".join)
def test_a_planted_fault_is_caught(key: tuple[str, str]) -> None:
    report = audit_mechanism(PLANTED[key], 4.0, DELTA, stop_when_caught=True)
    assert report.caught, report


def test_every_fault_of_the_contract_is_planted_in_every_mechanism() -> None:
    required = {
        "half the noise",
        "no clipping",
        "rows clipped apart",
        "denominator from private n",
        "no noise on an empty batch",
        "seed reused in each draw",
        "seed reused in each run",
        "releases an undeclared tensor",
    }
    assert required <= set(planted_user_faults())
    assert required <= set(planted_domain_faults())
    assert required <= set(planted_lora_faults())
    assert required | {"no noise in the moment"} <= set(planted_global_faults())


def test_undeclared_tensors_and_arrays_are_named() -> None:
    faults = planted_user_faults()
    reports = [
        audit_mechanism(faults[name], 2.0, DELTA, stop_when_caught=True)
        for name in ("releases an undeclared tensor", "trains an undeclared array")
    ]
    assert "head.bias" in reports[0].structure[0]
    assert "curvature_K_K" in reports[1].structure[0]
    assert [report.evidence for report in reports] == ["structure", "structure"]
    assert [report.canaries for report in reports] == [(), ()]  # stopped before any attack


def test_a_fault_that_no_canary_looks_for_is_not_reported() -> None:
    """The verdict comes from the attacks: without the canary that shows it, a shared draw stays hidden."""
    fault = planted_user_faults()["one draw for all steps"]
    blind = replace(fault, canaries=tuple(c for c in fault.canaries if c.name == "aligned"))
    assert not audit_mechanism(blind, 2.0, DELTA, confidence=SURE).caught


def test_the_summing_recipe_releases_the_plain_sum_and_the_alternating_one_the_difference() -> None:
    nobody = PaddedComparisons(np.zeros((1, 0, 2)), np.zeros((1, 0)), np.zeros((1, 0)))
    summed = train_users(nobody, summing(4), 3.0, Counting())
    assert np.allclose(summed, 3.0 * CLIP_NORM * (1 + 2 + 3 + 4), rtol=1e-9)
    assert np.allclose(train_users(nobody, alternating(), 3.0, Counting()), 3.0 * CLIP_NORM * (2 - 1), rtol=1e-9)


def test_a_report_says_what_it_claims_and_is_plain_json() -> None:
    rows = (CanaryResult("one", 10, 0.5, 0.4, 0.2, 0.1), CanaryResult("two", 10, 0.1, 1.5, 0.2, 0.1))
    report = AuditReport("user", "comparison", 2.0, DELTA, 0.99, 10, rows, ())
    shown = json.loads(json.dumps(report.to_json()))
    assert (shown["lower_bound"], shown["lower_bound_gdp"], shown["ratio"]) == (0.5, 1.5, 0.75)
    assert (shown["caught"], shown["evidence"], shown["confidence"]) == (False, "two", 0.99)
    assert replace(report, epsilon_claimed=1.4).caught
    assert replace(report, structure=("a bias",)).caught


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"delta": 0.0}, "delta"),
        ({"trials": 0}, "0 trials"),
        ({"trials": -5}, "-5 trials"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
    ],
)
def test_settings_that_can_show_nothing_are_refused_before_anything_runs(changes: dict, culprit: str) -> None:
    def explode(*_: object) -> np.ndarray:
        raise AssertionError("trained")

    options = {"epsilon": 2.0, "delta": DELTA} | changes
    with pytest.raises(InvalidInputError, match=culprit):
        audit_mechanism(replace(shipped_user(), train=explode), **options)
