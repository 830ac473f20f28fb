"""idiolect doctor"""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sys
from collections.abc import Callable, Iterable

import httpx
import typer
from rich.markup import escape

from idiolect.errors import ConfigurationError, IdiolectError
from idiolect.settings import Settings
from idiolect_services.cli.common import Home, console, settings_for
from idiolect_services.wiring import Installation, open_installation

PACKAGES = ("torch", "transformers", "safetensors", "peft", "dp-accounting", "fastapi", "sqlalchemy")
MIN_FREE_BYTES = 1 << 30  # a global model is about 90 MB, and several live side by side


def doctor(home: Home = None) -> None:
    """Check versions, settings, stores and the backbone, and say how to mend what is wrong.

    Example: idiolect doctor
    """
    settings: list[Settings] = []
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        ("settings", lambda: _settings(settings, settings_for(home))),
    ]
    healthy = _report_all(checks)
    if settings:
        found = settings[0]
        later: list[tuple[str, Callable[[], str]]] = [
            ("disk", lambda: _disk(found)),
            ("store", lambda: _store(found)),
            ("backbone", lambda: _backbone(found)),
            ("global model", lambda: _model(found)),
            ("port", lambda: _port(found)),
        ]
        healthy = _report_all(later) and healthy
    console.print("All is well." if healthy else "Mend what is marked above, then run this again.")
    if not healthy:
        raise typer.Exit(1)


def _report_all(checks: Iterable[tuple[str, Callable[[], str]]]) -> bool:
    """Every check runs, also after one that failed."""
    results = [_report(name, check) for name, check in checks]
    return all(results)


def _report(name: str, check: Callable[[], str]) -> bool:
    try:
        console.print(f"[green]ok[/]    {name}: {escape(check())}", soft_wrap=True)
    except IdiolectError as error:
        console.print(f"[red]wrong[/] {name}: {escape(error.message)} {escape(error.mend)}", soft_wrap=True)
        return False
    return True


def _packages() -> str:
    missing = [name for name in PACKAGES if not _installed(name)]
    if missing:
        raise ConfigurationError(f"not installed: {', '.join(missing)}.", mend="Run make run, or pip install idiolect.")
    python = f"python {sys.version.split()[0]}, "
    return python + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _settings(into: list[Settings], settings: Settings) -> str:
    into.append(settings)
    if settings.data_dir is not None and not settings.data_dir.expanduser().is_dir():
        raise ConfigurationError(
            f"IDIOLECT_DATA_DIR is {settings.data_dir}, which is no folder.", mend="Correct or unset it."
        )
    return f"home {settings.root}"


def _disk(settings: Settings) -> str:
    folder = next(path for path in (settings.root, *settings.root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise ConfigurationError(f"only {free / 1e9:.1f} GB are free at {folder}.", mend="Free at least 1 GB.")
    return f"{free / 1e9:.0f} GB free"


def _store(settings: Settings) -> str:
    with open_installation(settings) as installation:
        installation.store.check()
        if installation.store.tenants_walled is False:
            raise ConfigurationError(
                "the database's user is a superuser or has BYPASSRLS, so row-level security does not bind it.",
                mend="Use an ordinary role that owns the database, and name it in IDIOLECT_DATABASE_URL.",
            )
        return f"{settings.sql_url.split(':', 1)[0]} reads and writes; secrets are in place"


def _backbone(settings: Settings) -> str:
    from idiolect_adapters.backbone import find_backbone

    return f"{settings.backbone} at {find_backbone(settings.backbone)}"


def _model(settings: Settings) -> str:
    with open_installation(settings) as installation:
        if installation.store.live_global() is None:
            return "none yet; idiolect demo or idiolect train global makes one"
        return _verified(installation)


def _verified(installation: Installation) -> str:
    return f"{installation.load_live_model().digest[:12]} is live, every byte verified"


def _port(settings: Settings) -> str:
    where = f"{settings.host}:{settings.port}"
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if _answers(where):
                return f"{where} is served by Idiolect"
            raise ConfigurationError(
                f"{where} can't be listened on: {error.strerror}.",
                mend="Stop what uses that port, or set IDIOLECT_PORT to another one.",
            ) from error
    return f"{where} is free"


def _answers(where: str) -> bool:
    """Does an Idiolect server answer there?"""
    try:
        return "X-Request-Id" in httpx.get(f"http://{where}/healthz", timeout=2.0).headers
    except httpx.HTTPError:
        return False
