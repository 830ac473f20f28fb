"""idiolect backup|restore"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from idiolect.errors import ConfigurationError
from idiolect_services.cli.common import Home, console, settings_for
from idiolect_services.restoring import back_up
from idiolect_services.restoring import restore as restore_archive
from idiolect_services.wiring import open_installation

Passphrase = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File whose first line is the passphrase of the secrets.")
]


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write; it must not exist.")],
    passphrase_file: Passphrase = None,
    home: Home = None,
) -> None:
    """Save the database, the global models and the public signing keys, as one moment saw them, while all goes on.

    The secrets go along only with --passphrase-file, sealed; otherwise keep a copy of the home's `secrets` folder. Keep
    one of its `recovery` folder too: without it a later restore can't know who was reset. The keys of people never go
    along: mirror the key store, and keep no old copies of it, since they would outlive a reset.

    Example: idiolect backup monday.idiolect
    """
    with open_installation(settings_for(home)) as installation:
        rows = back_up(installation, file, _passphrase(passphrase_file))
    console.print(f"{file}: {rows:,} rows, {file.stat().st_size:,} bytes.", soft_wrap=True)
    if passphrase_file is None:
        console.print(f"It holds no secrets: keep a copy of {installation.settings.secrets}.", soft_wrap=True)
    console.print("It opens only with the key store, which is no part of it.", soft_wrap=True)


def restore(
    file: Annotated[Path, typer.Argument(help="An archive of `idiolect backup`.")],
    log: Annotated[
        list[Path] | None, typer.Option("--log", help="A recovery log of another machine, or a copy. May be repeated.")
    ] = None,
    nothing_since: Annotated[
        bool, typer.Option("--nothing-since", help="There is no log, because nothing was changed after the backup.")
    ] = False,
    passphrase_file: Passphrase = None,
    without_keys: Annotated[
        bool,
        typer.Option("--without-keys", help="The key store is lost; what was stored of people stays unreadable."),
    ] = False,
    home: Home = None,
) -> None:
    """Bring a backup back, and make every reset, revocation and charge since again. Stop all servers first.

    Example: idiolect restore monday.idiolect
    """
    passphrase = _passphrase(passphrase_file)
    done = restore_archive(
        settings_for(home),
        file,
        log or (),
        nothing_since=nothing_since,
        passphrase=passphrase,
        without_keys=without_keys,
    )
    console.print(f"Restored {done.rows:,} rows of {done.created_at} and {done.models:,} models.", soft_wrap=True)
    for action, count in sorted(done.recovered.applied.items()):
        console.print(f"made again since: {count:,} x {action}")
    if done.aside is not None:
        console.print(f"The database that was there before is {done.aside}; delete it when you can.", soft_wrap=True)


def _passphrase(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the passphrase file {file} can't be read.", mend="Check the path.") from error
