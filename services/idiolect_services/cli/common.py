"""What all commands share: the options, one clear line per error, and progress bars."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.json import JSON
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from idiolect.errors import IdiolectError, InvalidInputError, NotFoundError
from idiolect.settings import Settings, load_settings
from idiolect.stores.ports import Store
from idiolect_services.wiring import Installation, open_installation

# What a terminal obeys, and what turns the order of a line around.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Of what somebody else wrote, such as a reason, the terminal obeys nothing: it is shown as JSON shows it."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_HIGHLIGHTER = JSONHighlighter()


class _Terminal(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def print_json(self, json: str | None = None, **options: Any) -> None:
        self.print(_HIGHLIGHTER(visible(JSON(json or "null", **options).text.plain)), soft_wrap=True)


console = _Terminal(emoji=False)  # :bomb: in a reason stays what somebody wrote
errors = _Terminal(stderr=True, emoji=False)

Home = Annotated[
    Path | None, typer.Option("--home", help="Folder that holds all state (default: IDIOLECT_HOME or ~/.idiolect).")
]
Tenant = Annotated[str, typer.Option("--tenant", help="The tenant that the data belongs to.")]
MAX_REASON_CHARS = 500  # as over the API


def _said(reason: str) -> str:
    if not reason.strip() or len(reason) > MAX_REASON_CHARS:
        raise InvalidInputError(
            f"a reason of {len(reason)} characters tells nobody why.", mend=f"Say it in 1 to {MAX_REASON_CHARS}."
        )
    return reason


Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history and the audit log.", callback=_said)]

DEFAULT_TENANT = "demo"
OPERATOR = "operator"  # who moved a pointer or revoked a key, in the registry's history and the audit log
DEBUG = "IDIOLECT_DEBUG"


def settings_for(home: Path | None, **overrides: object) -> Settings:
    return load_settings(home=home, **overrides)


@contextmanager
def open_for(settings: Settings, tenant: str) -> Iterator[Installation]:
    """For a command about one tenant. Raises NotFoundError, as `check_tenant` does."""
    with open_installation(settings) as installation:
        check_tenant(installation.store, tenant)
        yield installation


def check_tenant(store: Store, tenant: str) -> str:
    """The tenant. Raises NotFoundError for one that there is not: nothing is done for a misspelt name."""
    if not store.tenant_exists(tenant):
        raise NotFoundError(
            f"there is no tenant {tenant[:80]!r}.",
            mend="Check the name; idiolect keys create and idiolect import make a new one.",
        )
    return tenant


def run_app(app: typer.Typer) -> None:
    """Run the command line; every error that can be expected is one line that names the culprit and the mend."""
    _write_what_the_encoding_has_no_letter_for()
    try:
        app()
    except IdiolectError as error:
        _fail(error.message, error.mend)
    except KeyboardInterrupt:
        errors.print("Stopped. What was finished is kept; start again to go on.")
        sys.exit(130)
    except OSError as error:
        if os.environ.get(DEBUG):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f" ({error.filename})" if error.filename else ""
        _fail(
            f"{error.strerror or error}{where}.",
            "Free some space and start again: nothing half-written was kept."
            if full
            else "Check the path and its rights.",
        )
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            f"unexpected {type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error}",
            f"This is a defect. {DEBUG}=1 shows the whole trace.",
        )


def _write_what_the_encoding_has_no_letter_for() -> None:
    """As Python would write it, where a terminal or a pipe is of ASCII or Latin 1, and somebody wrote Chinese."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, mend: str) -> None:
    errors.print(f"[bold red]error:[/] {escape(message)} {escape(mend)}".rstrip(), soft_wrap=True)
    sys.exit(1)


class Bars:
    """Progress bars, one per stage; plain lines where the output is not a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, name: str) -> Callable[[int, int], None]:
        task = self._progress.add_task(name, total=None)
        said = False

        def update(done: int, total: int) -> None:
            nonlocal said
            self._progress.update(task, completed=done, total=total)
            if done >= total and not said and not console.is_terminal:
                said = True
                console.print(f"  {name}: {total}")

        return update


@contextmanager
def bars() -> Iterator[Bars]:
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress)
