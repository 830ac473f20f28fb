"""A file system that is read-only but for some folders, as Python sees it: the first folder on the import path makes a
server run in it. It works for any user, root as well, and on any system.

    ONLY_WRITABLE=/home/of/it:/tmp PYTHONPATH=<a folder with this file as sitecustomize.py> idiolect serve
"""

from __future__ import annotations

import errno
import os
import sys

_WRITABLE = (*map(os.path.realpath, os.environ["ONLY_WRITABLE"].split(":")), "/dev", "/proc")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# The number of leading arguments of each event that are paths.
_CHANGES = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2}
_CHANGES |= {"os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "sqlite3.connect": 1}


def _check(path: object) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor, which was opened before
    real = os.path.realpath(os.fsdecode(path))
    if not real.startswith(_WRITABLE):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), real)


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments[:3]
        if (isinstance(flags, int) and flags & _WRITES) or (isinstance(mode, str) and set(mode) & set("wax+")):
            _check(path)
    elif event in _CHANGES:
        for path in arguments[: _CHANGES[event]]:
            _check(path)


sys.addaudithook(_audit)
