"""idiolect eval"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, bars, console, settings_for
from idiolect_services.wiring import open_installation


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Name of an imported public data set: polis, sample, ...")],
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for a report: Markdown, and figures where matplotlib is installed."),
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Accuracy and calibration of what is live, on held-out comparisons of a public data set.

    Example: idiolect eval polis --report polis-report
    """
    from idiolect_adapters.evaluation.report import check_folder, figure, interval, save_report
    from idiolect_services.evaluation import evaluate_dataset

    if report is not None:
        check_folder(report)
    with open_installation(settings_for(home)) as installation, bars() as shown:
        evaluation = evaluate_dataset(installation, tenant, dataset, shown.stage("reading texts"))
    table = Table("part", "stack", "accuracy", "95% over people", "people", "worst tenth", "calibration error", "gain")
    for one in evaluation.judged:
        gain = "" if one.gain is None else f"{one.gain.value:+.3f} ({interval(one.gain)})"
        people = f"{one.accuracy.people:,}"
        figures = (figure(one.accuracy.value), interval(one.accuracy), people, figure(one.worst))
        table.add_row(one.part, one.stack, *figures, figure(one.calibration_error), gain)
    console.print(table)
    if report is not None:
        page, *drawn = save_report(report, evaluation)
        console.print(f"Report: {page}" + (f", with {len(drawn)} figure files" if drawn else ""))
