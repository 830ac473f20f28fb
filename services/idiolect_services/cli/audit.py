"""idiolect audit verify|list"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from idiolect.audit import INSTALLATION, AuditEntry, Head, verify
from idiolect.errors import InvalidInputError, NotFoundError
from idiolect_services.cli.common import Home, console, settings_for
from idiolect_services.wiring import Installation, open_installation

app = typer.Typer(
    help="Who changed what, when and why; and proof that nobody changed the answer.", no_args_is_help=True
)

Chain = Annotated[str | None, typer.Option("--tenant", help="The tenant whose log it is.")]
OfInstallation = Annotated[bool, typer.Option("--installation", help="The installation's own log.")]


@app.command("verify")
def verify_logs(
    tenant: Chain = None,
    installation_log: OfInstallation = False,
    expect_head: Annotated[
        str | None, typer.Option(help="A head that an earlier verification printed, kept somewhere else.")
    ] = None,
    home: Home = None,
) -> None:
    """Check every entry of every log, or of one; the exit code is 1 if one is broken.

    The hashes alone show any change in the middle. Whoever owns the database could still cut off the newest entries
    together with the stored head, or rebuild a whole log: keep the printed heads elsewhere, and give one back later.

    Example: idiolect audit verify --tenant demo
    """
    one = _chain(tenant, installation_log)
    expected = None if expect_head is None else Head.parse(expect_head)
    if expected is not None and one is None:
        raise InvalidInputError("a head belongs to one log.", mend="Name it with --tenant or --installation.")
    with open_installation(settings_for(home)) as installation:
        known = installation.store.audit_chains()
        if one and expected is None and one not in known and not installation.store.tenant_exists(one):
            raise NotFoundError(f"there is no tenant {one[:80]!r}.", mend="Without --tenant all logs are checked.")
        chains = known if one is None else [one]
        results = [_verify(installation, chain, expected) for chain in chains]
    if not all(results):
        raise typer.Exit(1)


def _chain(tenant: str | None, installation_log: bool) -> str | None:
    if installation_log and tenant is not None:
        raise InvalidInputError("--tenant and --installation name two logs.", mend="Give one of them.")
    return INSTALLATION if installation_log else tenant


def _name(chain: str) -> str:
    return f"tenant {chain}" if chain else "installation"


def _verify(installation: Installation, chain: str, expected: Head | None) -> bool:
    store = installation.store
    verdict = verify(store.audit_walk(chain), store.audit_head(chain), expected)
    broken = verdict.broken
    if broken is None:
        console.print(f"[green]holds[/]  {escape(_name(chain))}: {verdict.entries} entries", soft_wrap=True)
        console.print(f"       head {verdict.head.anchor}", soft_wrap=True)
        return True
    console.print(
        f"[red]broken[/] {escape(_name(chain))}: entry {broken.seq} is {broken.fault}: {broken.explanation}.",
        soft_wrap=True,
    )
    return False


@app.command("list")
def list_entries(
    tenant: Chain = None,
    installation_log: OfInstallation = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most entries to show.")] = 20,
    before: Annotated[
        int | None, typer.Option(min=1, max=1 << 53, help="Only entries with a number under this one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, with hashes.")] = False,
    home: Home = None,
) -> None:
    """The entries of a log, newest first; of the installation if no tenant is named.

    Example: idiolect audit list --tenant demo --limit 50
    """
    with open_installation(settings_for(home)) as installation:
        entries = installation.store.audit_entries(
            _chain(tenant, installation_log) or INSTALLATION, before=before, limit=limit
        )
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry_json(entry)))
    else:
        _show(entries)


def entry_json(entry: AuditEntry) -> dict[str, object]:
    return {
        "seq": entry.seq,
        "at": entry.at.isoformat(),
        "actor": entry.actor,
        "action": entry.action,
        "object": entry.object,
        "reason": entry.reason,
        "details": json.loads(entry.details),
        "previous": entry.previous,
        "hash": entry.hash,
    }


def _show(entries: Sequence[AuditEntry]) -> None:
    table = Table(box=None)
    for name in ("entry", "time (UTC)", "actor", "action", "object"):
        table.add_column(name, no_wrap=name in ("entry", "time (UTC)", "action"))
    table.add_column("reason")
    for entry in entries:
        said = (entry.actor, entry.action, entry.object, entry.reason)
        table.add_row(str(entry.seq), f"{entry.at:%Y-%m-%d %H:%M:%S}", *map(escape, said))
    console.print(table)
