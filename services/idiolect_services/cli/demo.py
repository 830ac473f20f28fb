"""idiolect demo"""

from __future__ import annotations

import fcntl
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from idiolect.errors import ConfigurationError
from idiolect.settings import Settings
from idiolect_services.cli.common import Home, bars, console, settings_for
from idiolect_services.datasets import sample_folder
from idiolect_services.wiring import Installation, open_installation

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from idiolect_services.demo.prepare import DemoSource


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data sets; its `polis` is used (default: IDIOLECT_DATA_DIR).")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Verify every step, then stop: exit code 0 or 1.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    home: Home = None,
) -> None:
    """Import data, train everything under differential privacy, and serve it. A second start reuses what is there.

    Example: idiolect demo --check
    """
    from idiolect_services.serving import listen

    settings = settings_for(home, data_dir=data, host=host, port=port)
    with listen(settings) as listener, open_installation(settings) as installation, _alone(installation):
        _run(installation, listener, check=check)


def _run(installation: Installation, listener: socket.socket, *, check: bool) -> None:
    from idiolect_services.demo.check import DemoClient, check_demo
    from idiolect_services.demo.lines import curl_lines
    from idiolect_services.demo.prepare import prepare
    from idiolect_services.demo.server import demo_key, running
    from idiolect_services.serving import create_server_app

    settings = installation.settings
    source = _source(settings)
    console.print(f"Idiolect demo on {source.kind} data, state in {installation.root}")
    with bars() as shown:
        prepared = prepare(installation, source, shown)
    console.print("Everything was there already." if prepared.reused else "Trained and published.")
    key = demo_key(installation)
    address = f"http://{settings.host}:{settings.port}"
    with running(create_server_app(installation, prepared.model), listener) as thread:
        client = DemoClient(address, key)
        try:
            if check:
                check_demo(
                    client, prepared.showcase, lambda line: console.print(f"  [green]ok[/] {line}", soft_wrap=True)
                )
                console.print("Every step holds.")
                return
            inference = client.rerank(prepared.showcase, prepared.showcase.users[0])
        finally:
            client.close()
        console.print(f"\nServing at {address} (Ctrl-C stops). Try, in another terminal:\n")
        for what, line in curl_lines(address, key, prepared.showcase, inference):
            console.print(f"# {what}", style="dim", highlight=False, soft_wrap=True)
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        with _until_stopped():
            while thread.is_alive():
                thread.join(0.5)


def _source(settings: Settings) -> DemoSource:
    from idiolect_services.demo.prepare import DemoSource

    if settings.data_dir is None:
        return DemoSource("sample", sample_folder())
    folder = settings.data_dir.expanduser() / "polis"
    if not folder.is_dir():
        raise ConfigurationError(
            f"there is no folder {folder}.", mend="Point --data or IDIOLECT_DATA_DIR at the folder that holds `polis`."
        )
    return DemoSource("polis", folder)


@contextmanager
def _alone(installation: Installation) -> Iterator[None]:
    """One demo per home: a second one would train everything twice."""
    with (installation.root / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"another demo is running on {installation.root}.", mend="Stop it, or use another --home."
            ) from error
        yield


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Ctrl-C and a polite kill end the demo in order."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nStopped. All state is kept; the next start reuses it.")
