"""idiolect eval"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, bars, console, settings_for
from idiolect_services.wiring import open_installation


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Name of an imported public data set: polis, sample, ...")],
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Accuracy and calibration of what is live, on held-out comparisons of a public data set.

    Example: idiolect eval polis
    """
    from idiolect_services.evaluation import evaluate_dataset

    with open_installation(settings_for(home)) as installation, bars() as shown:
        rows = evaluate_dataset(installation, tenant, dataset, shown.stage("reading texts"))
    table = Table("part", "stack", "accuracy", "95% interval over people", "people", "calibration error")
    for row in rows:
        found = row.accuracy
        interval = f"{found.low:.3f} .. {found.high:.3f}"
        table.add_row(
            row.part, row.stack, f"{found.value:.3f}", interval, f"{found.people:,}", f"{row.calibration_error:.3f}"
        )
    console.print(table)
