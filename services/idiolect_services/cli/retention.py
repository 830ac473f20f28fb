"""idiolect tenant retention set|show|sweep"""

from __future__ import annotations

from typing import Annotated

import typer

from idiolect_services.cli.common import OPERATOR, Home, console, open_for, settings_for
from idiolect_services.retention import sweep_all
from idiolect_services.wiring import open_installation

app = typer.Typer(help="How long texts that were served are kept.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The tenant.")]


@app.command("set")
def set_retention(
    tenant: Name,
    days: Annotated[int | None, typer.Argument(help="Whole days; IDIOLECT_RETENTION_DAYS if not given.")] = None,
    home: Home = None,
) -> None:
    """Set for how many days a tenant's texts are kept. A running server deletes what is older within an hour.

    Example: idiolect tenant retention set acme 90
    """
    settings = settings_for(home)
    with open_for(settings, tenant) as installation:
        installation.store.set_retention(tenant, days, installation.clock.now(), actor=OPERATOR)
    console.print(f"texts of {tenant} are kept for {days or settings.retention_days:,} days.")


@app.command("show")
def show(tenant: Name, home: Home = None) -> None:
    """For how many days a tenant's texts are kept.

    Example: idiolect tenant retention show acme
    """
    settings = settings_for(home)
    with open_for(settings, tenant) as installation:
        own = installation.store.retention(tenant)
    whose = "its own" if own else "the installation's"
    console.print(f"{own or settings.retention_days:,} days ({whose})")


@app.command("sweep")
def sweep(home: Home = None) -> None:
    """Delete now what is older than its tenant's retention, of all tenants. A server does it every hour by itself.

    Example: idiolect tenant retention sweep
    """
    with open_installation(settings_for(home)) as installation:
        swept = sweep_all(installation, actor=OPERATOR)
    for tenant, done in swept.items():
        console.print(
            f"{tenant}: {done.inferences:,} answers, {done.texts:,} texts, {done.signals:,} signals and "
            f"{done.comparisons:,} comparisons deleted"
        )
