"""idiolect tenant quota set|show|remove"""

from __future__ import annotations

from typing import Annotated

import typer

from idiolect.quotas import QUOTAS
from idiolect_services.cli.common import Home, console, open_for, settings_for

app = typer.Typer(help="What a tenant may use at most; nothing is bounded unless it is set.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The tenant.")]
What = Annotated[str, typer.Argument(help=f"One of: {', '.join(QUOTAS)}.")]


@app.command("set")
def set_quota(
    tenant: Name,
    quota: What,
    most: Annotated[int, typer.Argument(min=0, help="How many.")],
    home: Home = None,
) -> None:
    """Bound what a tenant may use: people who are opted in; signals, trainings or bytes of served texts in a day (UTC).

    It holds from the next use on. Whatever is over it already stays. What is served over `text_bytes` is ranked and not
    kept; together with the retention it bounds what is stored.

    Example: idiolect tenant quota set acme people 10000
    """
    _set(tenant, quota, most, home)
    console.print(f"tenant {tenant}: at most {most:,} {QUOTAS[quota]}.")


@app.command("show")
def show(tenant: Name, home: Home = None) -> None:
    """The quotas of a tenant, and what of them is used.

    Example: idiolect tenant quota show acme
    """
    with open_for(settings_for(home), tenant) as installation:
        found = installation.store.quotas(tenant, installation.clock.now())
    for quota in found:
        console.print(f"{quota.name}: {quota.used:,} of {quota.most:,} {QUOTAS[quota.name]}")
    if not found:
        console.print(f"tenant {tenant} has no quotas.")


@app.command("remove")
def remove(tenant: Name, quota: What, home: Home = None) -> None:
    """Bound it no longer.

    Example: idiolect tenant quota remove acme people
    """
    _set(tenant, quota, None, home)
    console.print(f"tenant {tenant}: no bound on {QUOTAS[quota]}.")


def _set(tenant: str, quota: str, most: int | None, home: Home) -> None:
    with open_for(settings_for(home), tenant) as installation:
        now = installation.clock.now()
        installation.store.set_quota(tenant, quota, most, now)
