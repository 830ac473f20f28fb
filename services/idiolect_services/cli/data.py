"""idiolect import"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from idiolect.errors import InvalidInputError
from idiolect.settings import Settings
from idiolect.stores.ports import ImportOptions
from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, bars, console, settings_for
from idiolect_services.datasets import import_dataset, read_dataset, sample_folder
from idiolect_services.wiring import open_installation


class Format(StrEnum):
    POLIS = "polis"
    UKPCONVARG = "ukpconvarg"
    COAUTHOR = "coauthor"
    RATINGS = "ratings"
    SAMPLE = "sample"


def import_data(
    kind: Annotated[Format, typer.Argument(metavar="FORMAT", help="polis, ukpconvarg, coauthor, ratings or sample.")],
    path: Annotated[Path | None, typer.Argument(help="The data set's folder; `sample` comes with Idiolect.")] = None,
    public: Annotated[
        bool, typer.Option(help="Declare the data public: only then may it train the global model.")
    ] = False,
    opt_in: Annotated[
        bool, typer.Option(help="The new people of the data set have agreed to a personal adapter each.")
    ] = False,
    language: Annotated[
        list[str] | None,
        typer.Option(help="polis: read statements in these languages only, or in all of them (default: en)."),
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Import a data set of preferences. It takes the place of an earlier one of the same name.

    Example: idiolect import polis data/polis --public --opt-in
    """
    if path is None and kind is not Format.SAMPLE:
        raise InvalidInputError(f"the folder of {kind.value} is not named.", mend="Give it after the format.")
    folder, options = path or sample_folder(), ImportOptions(public=public, opt_in=opt_in)
    run_import(settings_for(home), tenant, kind.value, folder, options, language or ())


def run_import(
    settings: Settings, tenant: str, kind: str, path: Path, options: ImportOptions, languages: Sequence[str] = ()
) -> None:
    with bars() as shown:
        dataset = read_dataset(kind, path, shown.stage(f"reading {kind}"), languages)
        with open_installation(settings) as installation:
            replaced = any(info.name == dataset.name for info in installation.store.datasets(tenant))
            outcome = import_dataset(installation, tenant, dataset, options, shown.stage("storing"))
    imported = "imported, in place of what it was before" if replaced else "imported"
    console.print(f"{dataset.name} {'was there already' if outcome.unchanged else imported}.")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    for name, count in outcome.counts.items():
        table.add_row(f"{count:,}", name.replace("_", " "))
    console.print(table)
    if not any(dataset.evaluation.values()):
        console.print("Nobody is held out, so idiolect eval can't measure anything on it: too few people said enough.")
