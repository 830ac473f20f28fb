"""idiolect bench"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from idiolect.errors import ConfigurationError
from idiolect_services.bench.catalogue import BENCHMARKS, Options, find_benchmark, run_benchmark
from idiolect_services.bench.form import Report, Result, check_writable, write_report
from idiolect_services.bench.privacy_plots import can_draw
from idiolect_services.bench.targets import target_of
from idiolect_services.cli.common import Home, bars, console, settings_for

UNBOUNDED = 10_000


def bench(
    name: Annotated[str | None, typer.Argument(help="The benchmark; lists them if not given.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the outcome to this file as well.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="preference, privacy: folder of real data sets (default: IDIOLECT_DATA_DIR, else the sample)."
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="privacy: folder for its figures (default: beside the --json file). Needs matplotlib."),
    ] = None,
    people: Annotated[
        int | None, typer.Option(min=1000, help="registry: people in the release (default: a million).")
    ] = None,
    resets: Annotated[
        int | None, typer.Option(min=1, help="reset: resets while things go wrong (default: 10,000, about 10 minutes).")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=10, max=3600, help="load: length of its long run (default: ten minutes).")
    ] = None,
    home: Home = None,
) -> None:
    """Run one benchmark, with its peer in the same run, and print the outcome beside the targets.

    Example: idiolect bench http --json http.json
    """
    if name is None:
        _list()
        return
    benchmark = find_benchmark(name)
    if json is not None:
        check_writable(json)
    figures = _figures_folder(json, plots) if benchmark.draws else None
    options = Options(settings_for(home, data_dir=data), figures, people, seconds, resets)
    with bars() as shown:
        report = run_benchmark(name, options, shown)
    if json is not None:
        write_report(report, json)
    _print_table(report)
    for missing in report.missing:
        console.print(f"Not measured: {missing.metric}: {missing.why}", soft_wrap=True, markup=False)
    console.print(_where(report), soft_wrap=True)
    if figures is not None:
        console.print(f"Figures are in {figures}.", soft_wrap=True)


def _figures_folder(json: Path | None, plots: Path | None) -> Path | None:
    """Raises ConfigurationError if figures were asked for and can't be drawn; checked before anything runs."""
    folder = plots or (None if json is None else json.absolute().parent)
    if folder is None or can_draw():
        return folder
    if plots is not None:
        raise ConfigurationError("figures need matplotlib.", mend="Install it, or leave --plots out.")
    console.print("Without matplotlib there are no figures; the table does not need it.")
    return None


def _list() -> None:
    table = Table("benchmark", "what it measures")
    for name, benchmark in BENCHMARKS.items():
        table.add_row(name, benchmark.about)
    console.print(table)
    console.print("Run one: idiolect bench NAME")


def _print_table(report: Report) -> None:
    table = Table(title=report.benchmark, box=SIMPLE_HEAD)
    for name in ("metric", "value", "spread", "unit", "peer", "its value", "ratio", "target"):
        table.add_column(name, justify="left" if name in ("metric", "unit", "peer") else "right", no_wrap=True)
    for result in report.results:
        table.add_row(*_row(report.benchmark, result))
    # A cut name or figure is worse than a line that the terminal wraps.
    Console(width=max(console.width, Console(width=UNBOUNDED).measure(table).maximum)).print(table)


def _row(benchmark: str, result: Result) -> tuple[str, ...]:
    spread = "" if result.low is None else f"{_figure(result.low)} .. {_figure(result.high)}"
    peer = (result.peer or "", _figure(result.peer_value), _figure(result.ratio))
    return (result.metric, _figure(result.value), spread, result.unit, *peer, _verdict(benchmark, result))


def _verdict(benchmark: str, result: Result) -> str:
    target = target_of(benchmark, result.metric)
    if target is None:
        return ""
    colour, word = ("green", "met") if result.met else ("red", "missed")
    return f"[{colour}]{target} {word}[/]"


def _figure(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}" if abs(number) >= 10 else f"{number:.3f}"


def _where(report: Report) -> str:
    machine, versions = report.machine, report.versions
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['cpu']}, {machine['cores']} cores{gpu}; {tools}; commit {report.commit or 'unknown'}"
