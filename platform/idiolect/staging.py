"""Files and folders that are made aside and renamed into place; and those that killed processes left behind.

Whoever makes one keeps it locked, and the system ends that lock with the process, however it ends. So what is locked by
nobody is left over, and goes when the next one is made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".staging-"
YOUNG_SECONDS = 60.0  # it may not be locked yet


@contextmanager
def staged_folder(root: Path) -> Iterator[Path]:
    """A new folder in `root`, which is made if need be. Unless it was renamed it is gone in the end."""
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    with _kept(Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))) as staging:
        yield staging


@contextmanager
def staged_file(root: Path) -> Iterator[Path]:
    """As `staged_folder`."""
    remove_leftovers(root)
    handle, name = tempfile.mkstemp(prefix=PREFIX, dir=root)
    os.close(handle)
    with _kept(Path(name)) as staging:
        yield staging


def remove_leftovers(root: Path) -> None:
    """What can't be locked stays, be it in use or on a file system without locks."""
    for path in root.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < YOUNG_SECONDS:
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(handle)


@contextmanager
def _kept(staging: Path) -> Iterator[Path]:
    handle = os.open(staging, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield staging
    finally:
        _remove(staging)
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
