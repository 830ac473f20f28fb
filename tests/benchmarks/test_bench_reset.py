from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from quiet import QuietStages

from idiolect_services.bench.reset_bench import (
    ANSWERS,
    FAULTY_RATE,
    FAULTY_UNCONFIRMED,
    METRICS,
    P50,
    P99,
    PLANTED,
    RATE,
    RESETS,
    UNCONFIRMED,
    VIOLATIONS,
    Run,
    Work,
    measure,
    summary,
)
from idiolect_services.bench.reset_checker import Acknowledged, Answered
from idiolect_services.bench.reset_client import Journal

SMALL = Work(
    replicas=2,
    people=6,
    resets=40,
    calm=15,
    planted=20,
    rate=60.0,
    resets_rate=10.0,
    connections=4,
    fault_spacing=0.4,
    warm_up=0.5,
)


def test_the_whole_benchmark_runs_finds_what_was_planted_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "home"
    stages = QuietStages()
    measured = {one.metric: one.value for one in measure(root, SMALL, stages)}
    assert tuple(measured) == METRICS
    assert len(stages.names) == 3
    assert measured[RESETS] == 55
    assert measured[ANSWERS] > 50
    assert (measured[VIOLATIONS], measured[PLANTED]) == (0, 1)
    assert 0 < measured[P50] <= measured[P99]
    assert list(root.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


def test_violations_of_both_runs_are_added_and_those_of_the_planted_one_only_caught() -> None:
    wrong = [Acknowledged("ann", 1), Answered("ann", 0, None, (0.0,))]
    bad, good = (Run(Journal(list(log), [10.0, 20.0]), Counter({"cut": 2}), 1.0) for log in (wrong, []))
    measured = {one.metric: one.value for one in summary(good, bad, good)}
    assert (measured[VIOLATIONS], measured[PLANTED]) == (1, 0)
    measured = {one.metric: one.value for one in summary(bad, bad, bad)}
    assert (measured[VIOLATIONS], measured[PLANTED]) == (2, 1)
    assert measured["faults"] == 2


def test_answers_that_name_nobody_are_counted_for_each_run() -> None:
    quiet = Run(Journal([Answered("ann", 0, None, (0.0,))] * 8, [10.0], reasons=Counter(applied=8)), Counter(), 4.0)
    loud = Run(
        Journal([Answered("ann", None, None, (0.0,))] * 4, [10.0], reasons=Counter(unconfirmed=1)), Counter(), 2.0
    )
    measured = {one.metric: one.value for one in summary(quiet, loud, quiet)}
    assert (measured[RATE], measured[FAULTY_RATE]) == (2.0, 2.0)
    assert (measured[UNCONFIRMED], measured[FAULTY_UNCONFIRMED]) == (0.0, 0.25)


def test_a_size_that_was_asked_for_is_the_number_of_resets_under_faults() -> None:
    assert (Work.of(40).resets, Work.of(40).calm, Work.of(5000).calm) == (40, 50, 500)
