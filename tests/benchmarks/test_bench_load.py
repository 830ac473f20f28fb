"""The arithmetic of the load benchmark, and what its load and its memory watch really do."""

from __future__ import annotations

import ast
import math
import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idiolect.errors import ConfigurationError
from idiolect_services.bench import load_bench
from idiolect_services.bench.form import Measured, results_for
from idiolect_services.bench.load_bench import METRICS, Answer, Run, Work, answers_of, summary, watched_memory


def answers(count: int, status: int = 200, second: int = 0, clear: bool = False, ms: float = 10.0) -> list[Answer]:
    return [Answer(second, "rerank_known", status, ms, clear) for _ in range(count)]


CALM = Run(10.0, answers(1000))


def measured(
    steady: Run = CALM, memory: tuple[float, ...] = (1e6,) * 9, overload: Run = CALM, after: Run = CALM
) -> dict[str, Measured]:
    return {one.metric: one for one in summary(CALM, steady, memory, overload, after)}


def met(found: dict[str, Measured]) -> dict[str, bool | None]:
    return {result.metric: result.met for result in results_for("load", found.values())}


def test_a_calm_run_yields_every_metric_and_meets_every_target() -> None:
    found = measured()
    assert tuple(found) == METRICS
    assert found["capacity"].value == 100.0
    assert found["recovery"].value == 0.0
    assert set(met(found).values()) == {True, None}


@pytest.mark.parametrize("status", [500, 503, 0])
def test_one_failure_in_the_long_run_misses_its_target_also_if_no_answer_came(status: int) -> None:
    found = measured(steady=Run(600.0, [*answers(10_000), *answers(1, status)]))
    assert found["steady_5xx"].value == 1
    assert met(found)["steady_5xx"] is False


def test_memory_is_compared_by_the_medians_of_its_last_two_thirds() -> None:
    warming_up = (1.0, 5.0, 9.0, 10.0, 10.0, 99.0, 10.0, 10.4, 10.4)
    found = measured(memory=warming_up)
    assert found["steady_memory_growth"].value == pytest.approx(1.04)
    assert met(found)["steady_memory_growth"] is True
    assert met(measured(memory=(1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 11.0, 11.0, 11.0)))["steady_memory_growth"] is False


def test_goodput_counts_good_answers_alone_against_the_capacity() -> None:
    overload = Run(10.0, [*answers(880), *answers(2000, 503, clear=True), *answers(5, 404)])
    found = measured(overload=overload)
    assert found["overload_goodput"].value == 88.0
    assert met(found)["overload_goodput"] is False
    assert found["overload_offered"].value == pytest.approx(288.5)
    assert found["overload_refused"].value == pytest.approx(2000 / 2885)


@pytest.mark.parametrize(
    ("status", "clear", "unclear"),
    [(429, True, 0), (503, True, 0), (429, False, 1), (503, False, 1), (500, True, 1), (0, False, 1), (404, False, 1)],
)
def test_a_refusal_is_clear_if_it_says_when_to_come_again(status: int, clear: bool, unclear: int) -> None:
    found = measured(overload=Run(10.0, [*answers(950), *answers(1, status, clear=clear)]))
    assert found["overload_unclear"].value == unclear


def test_recovery_is_the_second_after_the_last_answer_that_was_not_good() -> None:
    after = Run(30.0, [*answers(5), *answers(1, 503, second=6, clear=True), *answers(5, second=7)])
    assert measured(after=after)["recovery"].value == 7.0
    assert met(measured(after=after))["recovery"] is False


def test_quantiles_are_those_of_good_answers() -> None:
    run = Run(1.0, [Answer(0, "x", 200, float(ms), False) for ms in range(101)] + answers(50, 503, ms=9999.0))
    assert (run.quantile(0.5), run.quantile(0.99)) == (50.0, 99.0)
    assert math.isnan(Run(1.0, answers(1, 503)).quantile(0.5))


def test_what_the_load_writes_is_read_back() -> None:
    assert answers_of([[3, "reset", 503, 1.5, True, ""]]) == [Answer(3, "reset", 503, 1.5, True)]


def test_rankings_that_name_nobody_are_counted_among_those_that_say_something() -> None:
    said = [Answer(0, "rerank_known", 200, 1.0, False, reason) for reason in ("applied", "unconfirmed", "no_adapter")]
    quiet = [Answer(0, "consent", 200, 1.0, False), Answer(0, "rerank_known", 503, 1.0, True)]
    assert measured(steady=Run(1.0, [*said, *quiet]))["steady_unconfirmed"].value == pytest.approx(1 / 3)
    assert measured()["overload_unconfirmed"].value == 0.0


def test_a_shorter_run_shrinks_all_of_it() -> None:
    assert Work.of(20) == Work(steady_s=20, capacity_s=5, overload_s=5, after_s=5)
    assert Work.of(600).overload_s == 60


def test_memory_is_that_of_the_process_that_is_watched() -> None:
    with watched_memory(os.getpid()) as samples:
        while not samples:
            time.sleep(0.001)
    assert all(1e6 < sample < 1e12 for sample in samples)


def test_without_locust_it_says_how_to_get_it_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Path:
        raise ConfigurationError(f"{name} is not set up.", mend="Run: make peers.")

    monkeypatch.setattr(load_bench, "peer_python", missing)
    with pytest.raises(ConfigurationError, match="locust is not set up"):
        load_bench.measure(tmp_path / "home", tmp_path, Work(), None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the load's script defines. locust is in an environment of its own; here its names stand for nothing."""
    locust = {"FastHttpUser": object, "task": lambda _weight: lambda call: call}
    monkeypatch.setitem(sys.modules, "locust", SimpleNamespace(**locust))
    monkeypatch.setitem(sys.modules, "locust.env", SimpleNamespace(Environment=object))
    return runpy.run_path(str(Path(load_bench.__file__).with_name("peer_locust.py")))


def test_callers_who_begin_together_call_at_moments_of_their_own_and_evenly(
    load: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    plan = {"port": 1, "secret": "s", "callers": 40, "rate": 80.0, "seconds": 60.0}
    kind = load["callers_of"](load["Run"](plan, name="a"))
    begins = []
    for _ in range(40):
        now[0] = 0.0
        caller = kind()
        caller.on_start()
        begins.append(now[0])
        for call in range(1, 4):
            now[0] += 0.1  # its answer takes so long
            now[0] += caller.wait_time()
            assert now[0] == pytest.approx(begins[-1] + 0.5 * call)
    assert 0.0 <= min(begins) < 0.1 < 0.4 < max(begins) < 0.5
    now[0] += 2.0  # what is late is not made up for
    assert caller.wait_time() == 0.0
    assert caller.wait_time() == pytest.approx(0.5)


def test_callers_without_a_rate_never_wait(load: dict[str, Any]) -> None:
    plan = {"port": 1, "secret": "s", "callers": 4, "rate": None, "seconds": 60.0}
    caller = load["callers_of"](load["Run"](plan))()
    caller.on_start()
    assert caller.wait_time() == 0.0


def test_the_load_calls_nothing_but_loopback_and_imports_nothing_of_ours() -> None:
    source = (Path(load_bench.__file__).parent / "peer_locust.py").read_text()
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert not {name for name in imported if name.startswith("idiolect")}
    assert source.count("http://") == 1
    assert 'host = f"http://127.0.0.1:{run.plan' in source
