"""idiolect registry export|import"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from idiolect.errors import ConfigurationError
from idiolect_services.cli.common import DEFAULT_TENANT, OPERATOR, Home, Reason, Tenant, console, open_for, settings_for
from idiolect_services.release_transfer import ImportReport, export_release, import_release


def export(
    release: Annotated[str, typer.Argument(help="A release's id.")],
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Write all of a release that may be served into one signed file. It holds people's adapters: guard it.

    Example: idiolect registry export 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b chat.release
    """
    with open_for(settings_for(home), tenant) as installation:
        now = installation.clock.now()
        lines = export_release(installation.store, installation.signer, tenant, release, now, actor=OPERATOR)
        size = _write(file, lines)
    console.print(f"{file}: {size:,} bytes, signed with {installation.signer.public_key.hex()}.", soft_wrap=True)


def _write(file: Path, lines: Iterable[bytes]) -> int:
    """Whole or not at all, never over another file, readable by its owner alone. Its size."""
    if file.exists():
        raise ConfigurationError(f"{file} exists already.", mend="Name a new file.")
    try:
        handle, staging = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error.strerror}.", mend="Check its folder.") from error
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.writelines(lines)
            opened.flush()
            os.fsync(opened.fileno())
            size = opened.tell()
        os.link(staging, file)  # unlike a rename, it never replaces what somebody else wrote meanwhile
    except FileExistsError as error:
        raise ConfigurationError(f"{file} exists already.", mend="Name a new file.") from error
    finally:
        Path(staging).unlink(missing_ok=True)
    return size


def import_(
    file: Annotated[Path, typer.Argument(help="A file of `idiolect registry export`.")],
    reason: Reason,
    from_key: Annotated[
        str | None,
        typer.Option(help="Public key of another installation, in hex, which its export printed. Ask its owner."),
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Bring a release back, or in from elsewhere; nothing of it goes live before it is promoted or rolled out.

    Example: idiolect registry import chat.release --reason "trained in Berlin" --from-key 59f3...
    """
    with open_for(settings_for(home), tenant) as installation:
        now = installation.clock.now()
        try:
            with file.open("rb") as opened:
                report = import_release(
                    installation.store,
                    installation.signer,
                    tenant,
                    opened,
                    now,
                    reason=reason,
                    actor=OPERATOR,
                    from_key=from_key,
                )
        except OSError as error:
            raise ConfigurationError(f"{file} can't be read: {error.strerror}.", mend="Check the path.") from error
        live = installation.store.live_global() == report.global_digest
    _show(report, live)


def _show(report: ImportReport, live: bool) -> None:
    if report.known:
        console.print(f"release {report.release} is here already: nothing changed.")
        return
    console.print(f"{report.versions:,} versions of release {report.release}, live for nobody yet.")
    left_out = {"people who were reset or left since": report.fenced, "quarantined here": report.quarantined}
    for why, count in left_out.items():
        if count:
            console.print(f"left out: {count:,} ({why})")
    if not live:
        console.print(f"They are bound to the global model {report.global_digest}, which is not the live one.")
    else:
        console.print(f"Make it live: idiolect registry promote {report.release}; or try it: idiolect rollout start.")
