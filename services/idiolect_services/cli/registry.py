"""idiolect registry list|show|card, and the commands of registry_moves, registry_files and registry_peft"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from idiolect.errors import NotFoundError
from idiolect.privacy.claims import render_card
from idiolect.registry.manifest import manifest_bytes
from idiolect.registry.resolution import ReleaseSummary
from idiolect.registry.weights import verify_version
from idiolect.stores.ports import StoredVersion
from idiolect_services.cli import registry_files, registry_moves, registry_peft
from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, console, open_for, settings_for

app = typer.Typer(help="Look at releases and versions, and move what is live.", no_args_is_help=True)
app.command("promote")(registry_moves.promote)
app.command("rollback")(registry_moves.rollback)
app.command("revoke")(registry_moves.revoke)
app.command("history")(registry_moves.history)
app.command("diff")(registry_moves.diff)
app.command("lineage")(registry_moves.lineage)
app.command("gc")(registry_moves.gc)
app.command("export")(registry_files.export)
app.command("import")(registry_files.import_)
app.command("add-peft")(registry_peft.add_peft)
app.command("export-peft")(registry_peft.export_peft)


@app.command("list")
def list_registry(
    versions: Annotated[bool, typer.Option("--versions", help="List versions instead of releases.")] = False,
    user: Annotated[str | None, typer.Option(help="Only the versions of this person.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows to show.")] = 20,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """The releases of a tenant, newest first; or versions, by id.

    Example: idiolect registry list --limit 5
    """
    with open_for(settings_for(home), tenant) as installation:
        if versions or user is not None:
            subject = None if user is None else installation.pseudonym(tenant, user)
            _show_versions(installation.store.versions(tenant, subject=subject, limit=limit))
        else:
            console.print(f"global model: {installation.store.live_global() or 'none yet'}")
            _show_releases(installation.store.releases(tenant, limit=limit))


def _table(*columns: str) -> Table:
    """The first column is an id, shown whole so that it can be copied."""
    table = Table(box=None)
    table.add_column(columns[0], no_wrap=True, min_width=36)
    for name in columns[1:]:
        table.add_column(name, no_wrap=True)
    return table


def _show_releases(releases: Sequence[ReleaseSummary]) -> None:
    table = _table("release", "versions", "epsilon per", "state")
    for release in releases:
        cost = f"{_claimed(release.epsilon)} {release.unit or ''}".strip()
        table.add_row(release.id, f"{release.versions:,} {release.scope}", cost, _state(release.revoked))
    console.print(table)


def _show_versions(versions: Sequence[StoredVersion]) -> None:
    table = _table("version", "of", "epsilon", "state")
    for stored in versions:
        owner = stored.version.domain or f"a user, generation {stored.version.generation}"
        table.add_row(
            stored.version.id,
            owner,
            _claimed(None if stored.template.privacy is None else stored.template.privacy.epsilon),
            stored.withheld or _state(stored.revoked),
        )
    console.print(table)


def _claimed(epsilon: float | None) -> str:
    return "none claimed" if epsilon is None else f"{epsilon:.2f}"


def _state(revoked: bool) -> str:
    return "revoked" if revoked else "good"


@app.command("show")
def show(
    version: Annotated[str, typer.Argument(help="A version's id.")], tenant: Tenant = DEFAULT_TENANT, home: Home = None
) -> None:
    """One version: its signed manifest, verified now.

    Example: idiolect registry show 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b
    """
    with open_for(settings_for(home), tenant) as installation:
        stored = installation.store.version(tenant, version)
        if stored is None:
            raise NotFoundError(
                f"tenant {tenant!r} has no version {version[:80]!r}.", mend="See: idiolect registry list --versions."
            )
        verify_version(stored.template, installation.store.with_weights(stored).version, installation.signer)
    console.print_json(
        json.dumps(
            json.loads(manifest_bytes(stored.template, stored.version))
            | {"revoked": stored.revoked, "withheld": stored.withheld}
        )
    )
    console.print("signature, digest, shapes and values: verified")


@app.command("card")
def card(
    release: Annotated[str, typer.Argument(help="A release's id.")], tenant: Tenant = DEFAULT_TENANT, home: Home = None
) -> None:
    """The model card of a release, in Markdown. All that it claims is read from a manifest whose signature holds.

    Example: idiolect registry card 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b
    """
    with open_for(settings_for(home), tenant) as installation:
        found = installation.store.versions(tenant, release=release, limit=1)
        if found:
            verify_version(found[0].template, installation.store.with_weights(found[0]).version, installation.signer)
        summary = installation.store.release(tenant, release)
    if summary is None or not found:
        raise NotFoundError(
            f"tenant {tenant!r} has no version of release {release[:80]!r}.", mend="See: idiolect registry list."
        )
    text = render_card(found[0].template, summary.versions, summary.revoked)
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
