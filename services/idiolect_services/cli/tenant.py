"""idiolect tenant upstream set|show|remove, and the commands of quotas and of retention"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.upstreams import HostRules
from idiolect_services.cli.common import Home, console, open_for, settings_for
from idiolect_services.cli.quota import app as quota_app
from idiolect_services.cli.retention import app as retention_app
from idiolect_services.upstream_settings import new_upstream

app = typer.Typer(help="Settings of one tenant.", no_args_is_help=True)
upstream_app = typer.Typer(help="The OpenAI-compatible server that its completions come from.", no_args_is_help=True)
app.add_typer(upstream_app, name="upstream")
app.add_typer(quota_app, name="quota")
app.add_typer(retention_app, name="retention")

Name = Annotated[str, typer.Argument(help="The tenant.")]


@upstream_app.command("set")
def set_upstream(
    tenant: Name,
    base_url: Annotated[str, typer.Argument(help="Up to before /chat/completions.")],
    model: Annotated[str | None, typer.Option(help="Use this model, whatever a request asks for.")] = None,
    key_from: Annotated[
        str | None,
        typer.Option(help="Environment variable with the upstream's API key; none is sent if not given."),
    ] = None,
    home: Home = None,
) -> None:
    """Set where a tenant's completions come from. A running server uses it from the next request on.

    The host has to be listed in IDIOLECT_UPSTREAM_HOSTS. The key is read from the environment, since arguments show in
    the list of processes, and is stored sealed.

    Example: idiolect tenant upstream set acme https://api.example.com/v1 --key-from UPSTREAM_KEY
    """
    api_key = None if key_from is None else _key_in(key_from)
    settings = settings_for(home)
    rules = HostRules.parse(settings.upstream_hosts)
    with open_for(settings, tenant) as installation:
        now = installation.clock.now()
        upstream = new_upstream(rules, installation.vault, tenant, base_url, model, api_key, now)
        installation.store.set_upstream(tenant, upstream)
    console.print(f"completions of {tenant} come from {base_url}.", soft_wrap=True)


@upstream_app.command("show")
def show(tenant: Name, home: Home = None) -> None:
    """Where a tenant's completions come from; never the key.

    Example: idiolect tenant upstream show acme
    """
    with open_for(settings_for(home), tenant) as installation:
        upstream = installation.store.upstream(tenant)
    if upstream is None:
        raise NotFoundError(f"tenant {tenant[:80]!r} has no upstream.", mend="Set one: idiolect tenant upstream set.")
    key = "with a key" if upstream.sealed_key is not None else "without a key"
    console.print(f"{upstream.base_url}   model: {upstream.model or 'as asked for'}   {key}", soft_wrap=True)


@upstream_app.command("remove")
def remove(tenant: Name, home: Home = None) -> None:
    """Forget a tenant's upstream and its key.

    Example: idiolect tenant upstream remove acme
    """
    with open_for(settings_for(home), tenant) as installation:
        installation.store.remove_upstream(tenant)
    console.print(f"tenant {tenant} has no upstream.")


def _key_in(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key or len(key) > 500:
        raise InvalidInputError(
            f"the environment variable {variable[:80]!r} holds no usable key.", mend="Export the upstream's key in it."
        )
    return key
