"""idiolect registry list|show"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from idiolect.errors import NotFoundError
from idiolect.registry.manifest import manifest_bytes
from idiolect.registry.weights import verify_version
from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, console, settings_for
from idiolect_services.wiring import open_installation

app = typer.Typer(help="Look at releases and versions.", no_args_is_help=True)


@app.command("list")
def list_releases(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most releases to show.")] = 20,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """The releases of a tenant, newest first.

    Example: idiolect registry list --limit 5
    """
    with open_installation(settings_for(home)) as installation:
        releases = installation.store.releases(tenant, limit=limit)
        model = installation.store.live_global()
    console.print(f"global model: {model or 'none yet'}")
    table = Table("release", "scope", "versions", "epsilon", "unit", "made", "revoked")
    for release in releases:
        revoked = "yes" if release.revoked else ""
        row = (release.scope, f"{release.versions:,}", f"{release.epsilon:.2f}", release.unit, release.created_at)
        table.add_row(release.id, *row, revoked)
    console.print(table)


@app.command("show")
def show(
    version: Annotated[str, typer.Argument(help="A version's id.")], tenant: Tenant = DEFAULT_TENANT, home: Home = None
) -> None:
    """One version: its signed manifest, verified now.

    Example: idiolect registry show 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b
    """
    with open_installation(settings_for(home)) as installation:
        stored = installation.store.version(tenant, version)
        if stored is None:
            raise NotFoundError(
                f"tenant {tenant!r} has no version {version[:80]!r}.", mend="See: idiolect registry list."
            )
        verify_version(stored.template, stored.version, installation.signer)
    console.print_json(
        json.dumps(json.loads(manifest_bytes(stored.template, stored.version)) | {"revoked": stored.revoked})
    )
    console.print("signature, digest, shapes and values: verified")
