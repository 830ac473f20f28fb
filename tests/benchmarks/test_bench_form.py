from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from idiolect.errors import InvalidInputError
from idiolect_services.bench import machine
from idiolect_services.bench.catalogue import BENCHMARKS, Benchmark, find_benchmark
from idiolect_services.bench.form import Measured, Missing, Report, judged, results_for
from idiolect_services.bench.targets import Target, all_targets, read_tables, target_of
from idiolect_services.cli import app
from idiolect_services.cli.bench import _print_table

FIELDS = {"metric", "unit", "value", "low", "high", "peer", "peer_value", "ratio", "target", "met"}
AT_LEAST_HALF = Target("x", 0.5, "at_least", "ratio")


def _fake_run(_options: Any, _stages: Any) -> Iterable[Measured | Missing]:
    yield Measured("rerank_requests_per_second", "requests/s", 60.0, 50.0, 70.0, "peer", 100.0)
    yield Measured("rerank_p50", "ms", math.nan)
    yield Missing("rerank_p99", "its peer, X, is not set up. Run: make peers.")


def _fake_metrics() -> Sequence[str]:
    return ("rerank_requests_per_second", "rerank_p50")


@pytest.fixture
def fake_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "http", Benchmark("fake", _fake_run, _fake_metrics))  # type: ignore[arg-type]


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_json_file_has_exactly_the_documented_form(fake_http: None, tmp_path: Path) -> None:
    result = bench("http", "--json", str(tmp_path / "out.json"), "--home", str(tmp_path / "home"))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert set(report) == {"benchmark", "commit", "machine", "versions", "results", "missing"}
    assert report["benchmark"] == "http"
    assert set(report["versions"]) == {"python", "torch", "numpy", "transformers", "idiolect"}
    assert {"cpu", "cores", "memory_bytes", "avx"} <= set(report["machine"])
    first, second = report["results"]
    assert set(first) == set(second) == FIELDS
    assert report["missing"] == [{"metric": "rerank_p99", "why": "its peer, X, is not set up. Run: make peers."}]
    assert (first["ratio"], first["target"], first["met"]) == (0.6, 0.5, True)
    assert (second["value"], second["ratio"], second["target"], second["met"]) == (None, None, None, None)


def test_the_table_shows_every_metric_whole_with_its_target(fake_http: None, tmp_path: Path) -> None:
    output = bench("http", "--home", str(tmp_path)).output
    assert "rerank_requests_per_second" in output
    assert "50 .. 70" in output
    assert "Not measured: rerank_p99: its peer, X, is not set up." in output
    assert "≥ 0.5 x peer met" in output


def test_no_figure_is_cut_however_long_the_names_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "an_accuracy_of_" + "people_" * 20
    measured = Measured(name, "accuracy over the stack below", 0.8384, 0.826, 0.851, "collaborative filtering", 0.8363)
    _print_table(Report("preference", None, {}, {}, results_for("preference", [measured])))
    output = capsys.readouterr().out
    assert "…" not in output
    assert all(part in output for part in (name, "0.838", "0.826 .. 0.851", "0.836", "1.003"))


def test_without_a_name_the_benchmarks_are_listed() -> None:
    output = bench().output
    assert all(name in output for name in BENCHMARKS)


def test_help_has_an_example() -> None:
    assert "Example: idiolect bench http" in " ".join(bench("--help").output.split())


def test_an_unknown_benchmark_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(InvalidInputError, match=r"no benchmark 'nope'.*preference, http"):
        find_benchmark("nope")
    assert isinstance(bench("nope").exception, InvalidInputError)


@pytest.mark.parametrize("target", ["missing/out.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "http", Benchmark("", pytest.fail, tuple))  # type: ignore[arg-type]
    assert isinstance(bench("http", "--json", str(tmp_path / target)).exception, InvalidInputError)


def test_a_target_on_the_ratio_is_met_from_its_bound_on() -> None:
    results = [judged(Measured("x", "1/s", value, peer_value=100.0), AT_LEAST_HALF) for value in (49.0, 50.0, 90.0)]
    assert [(one.ratio, one.met) for one in results] == [(0.49, False), (0.5, True), (0.9, True)]


def test_a_ratio_that_the_benchmark_measured_itself_goes_before_the_quotient() -> None:
    assert judged(Measured("x", "1/s", 80.0, peer_value=100.0, ratio=0.4), AT_LEAST_HALF).met is False


def test_an_upper_bound_is_met_up_to_it() -> None:
    target = Target("x", 0.03, "at_most", "value")
    assert [judged(Measured("x", "", value), target).met for value in (0.0, 0.03, 0.031)] == [True, True, False]


@pytest.mark.parametrize(
    "measured", [Measured("x", "", math.nan), Measured("x", "", 1.0), Measured("x", "", 1.0, peer_value=0)]
)
def test_what_could_not_be_measured_misses_its_target(measured: Measured) -> None:
    assert judged(measured, AT_LEAST_HALF).met is False


def test_every_target_is_of_a_metric_that_its_benchmark_produces_and_no_metric_has_two() -> None:
    assert set(all_targets()) <= set(BENCHMARKS)
    for benchmark, targets in all_targets().items():
        metrics = BENCHMARKS[benchmark].metrics()
        assert len(set(metrics)) == len(metrics)
        matches = [[metric for metric in metrics if target_of(benchmark, metric) == target] for target in targets]
        assert all(matches), [target.pattern for target, found in zip(targets, matches, strict=True) if not found]
        for metric in metrics:
            assert sum(target.matches(metric) for target in targets) <= 1, metric


def test_every_target_has_one_finite_bound() -> None:
    for row in (row for rows in read_tables().values() for row in rows.values()):
        bounds = {"at_least", "at_most"} & set(row)
        assert len(bounds) == 1
        assert math.isfinite(row[bounds.pop()])  # type: ignore[arg-type]
        assert set(row) <= {"at_least", "at_most", "of"}
        assert row.get("of", "value") in ("value", "ratio")


def test_the_commit_is_unknown_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b" / "c" / "machine.py"
    monkeypatch.setattr(machine, "__file__", str(inside))
    assert machine.commit() is None


def test_a_machine_that_tells_nothing_is_still_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert machine.machine()["avx"] == []
    assert machine.machine()["cores"] >= 1
