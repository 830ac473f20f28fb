"""idiolect bench"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from idiolect_services.bench.catalogue import BENCHMARKS, Options, find_benchmark, run_benchmark
from idiolect_services.bench.form import Report, Result, check_writable, write_report
from idiolect_services.bench.targets import target_of
from idiolect_services.cli.common import Home, bars, console, settings_for


def bench(
    name: Annotated[str | None, typer.Argument(help="The benchmark; lists them if not given.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the outcome to this file as well.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="preference: folder of real data sets (default: IDIOLECT_DATA_DIR, else the sample)."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="preference: train the global model to the end.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="preference: train for exactly so many epochs.")] = None,
    home: Home = None,
) -> None:
    """Run one benchmark, with its peer in the same run, and print the outcome beside the targets.

    Example: idiolect bench http --json http.json
    """
    if name is None:
        _list()
        return
    find_benchmark(name)
    if json is not None:
        check_writable(json)
    options = Options(settings_for(home, data_dir=data), epochs, full)
    with bars() as shown:
        report = run_benchmark(name, options, shown)
    if json is not None:
        write_report(report, json)
    console.print(_table(report))
    console.print(_where(report))


def _list() -> None:
    table = Table("benchmark", "what it measures")
    for name, benchmark in BENCHMARKS.items():
        table.add_row(name, benchmark.about)
    console.print(table)
    console.print("Run one: idiolect bench NAME")


def _table(report: Report) -> Table:
    table = Table(title=report.benchmark)
    table.add_column("metric", overflow="fold")
    table.add_column("unit")
    for name in ("value", "low", "high"):
        table.add_column(name, justify="right")
    table.add_column("peer")
    table.add_column("its value", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("target", justify="right")
    for result in report.results:
        table.add_row(*_row(report.benchmark, result))
    return table


def _row(benchmark: str, result: Result) -> tuple[str, ...]:
    figures = [_figure(number) for number in (result.value, result.low, result.high)]
    target = target_of(benchmark, result.metric)
    verdict = (
        "" if target is None else f"[{'green' if result.met else 'red'}]{target} {'met' if result.met else 'missed'}[/]"
    )
    ratio = _figure(result.ratio)
    return (result.metric, result.unit, *figures, result.peer or "", _figure(result.peer_value), ratio, verdict)


def _figure(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}" if abs(number) >= 10 else f"{number:.4f}"


def _where(report: Report) -> str:
    machine, versions = report.machine, report.versions
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['cpu']}, {machine['cores']} cores; {tools}; commit {report.commit or 'unknown'}"
