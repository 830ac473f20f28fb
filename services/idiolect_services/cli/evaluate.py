"""idiolect eval"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, bars, console, open_for, settings_for

if TYPE_CHECKING:  # it imports what takes seconds
    from idiolect_adapters.evaluation.judging import Judged


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Name of an imported public data set: polis, sample, ...")],
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for a report: Markdown, and figures where matplotlib is installed."),
    ] = None,
    pairs: Annotated[
        list[int] | None,
        typer.Option(help="Try adapters of everybody's first N comparisons as well; may be repeated.", min=1),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon of what --pairs tries (default: IDIOLECT_USER_EPSILON).")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Accuracy and calibration of what is live, on held-out comparisons of a public data set.

    For each part and stack: accuracy, its 95% interval over people, that of the worst tenth of people, the expected
    calibration error (above each part, what chance alone makes of it), and the gain over the stack below (user
    adapters: over + domain).

    What --pairs tries is trained as `idiolect train users` would, for this table alone: it is published to nobody, and
    charged to nobody, since the data are public.

    Example: idiolect eval polis --pairs 5 --pairs 50 --epsilon 1 --report polis-report
    """
    from idiolect_adapters.evaluation.report import check_folder, save_report
    from idiolect_services.evaluation import GAVE, TRIAL_DRAWS, evaluate_dataset

    if report is not None:
        check_folder(report)
    settings = settings_for(home, user_epsilon=epsilon)
    with open_for(settings, tenant) as installation, bars() as shown:
        evaluation = evaluate_dataset(installation, tenant, dataset, shown.stage("reading texts"), pairs or ())
    for part in dict.fromkeys(one.part for one in evaluation.judged):
        _show([one for one in evaluation.judged if one.part == part])
    console.print(f"Live user adapters: {evaluation.about['live user adapters']}.", markup=False)
    if pairs:
        console.print(
            f"Adapters of so many pairs were tried at epsilon {settings.user_epsilon:g}, {TRIAL_DRAWS} times: the "
            f"table shows means over the draws of noise. Pairs: {evaluation.about[GAVE]}."
        )
    if report is not None:
        page, *drawn = save_report(report, evaluation)
        console.print(f"Report: {page}" + (f", with {len(drawn)} figure files" if drawn else ""))


def _show(judged: Sequence[Judged]) -> None:
    """One part, in 80 columns."""
    from idiolect_adapters.evaluation.report import figure, interval, signed

    table = Table(
        "stack", "accuracy", "95%", "worst", "ECE", "gain", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for one in judged:
        gain = "" if one.gain is None else f"{signed(one.gain.value)} ({_close(interval(one.gain))})"
        figures = (_close(interval(one.accuracy)), figure(one.worst), figure(one.calibration_error))
        table.add_row(one.stack, figure(one.accuracy.value), *figures, gain)
    pairs, people = judged[0].pairs, judged[0].accuracy.people
    chance = figure(max(one.chance_error for one in judged))
    said = f"{judged[0].part}: {pairs:,} pairs, {people:,} people with at least 4; ECE by chance {chance}"
    console.print(said, markup=False)
    console.print(table)


def _close(interval: str) -> str:
    return interval.replace(" ", "")
