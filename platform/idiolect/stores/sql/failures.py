"""From a driver's exception to one of ours, with the culprit and the mend."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from idiolect.errors import ConfigurationError, ConflictError, IdiolectError, InvalidInputError, UnavailableError

# What `translated` understands; everything else is a bug and passes through.
DRIVER_ERRORS = (SQLAlchemyError, sqlite3.Error, UnicodeEncodeError)

# SQLSTATEs. A serialisation failure or deadlock is settled by trying again; a key that is taken is either a race of two
# first inserts, which one more look settles, or simply taken.
_LOST = {"40001", "40P01"}
_TAKEN = {"23505", "23503"}

_SQLITE: tuple[tuple[str, type[IdiolectError], str, str], ...] = (
    ("file is not a database", ConfigurationError, "is not a SQLite database", "Restore a backup, or move it away."),
    ("malformed", ConfigurationError, "is damaged", "Restore a backup, or move it away."),
    ("readonly", ConfigurationError, "can't be written", "Make the file and its folder writable."),
    ("unable to open", ConfigurationError, "can't be opened", "Make its folder exist and be writable."),
    ("disk is full", UnavailableError, "has no space left on its disk", "Free space; nothing was half-written."),
    ("locked", UnavailableError, "stayed locked by another process for too long", "Try again."),
    ("disk i/o", UnavailableError, "could not be read or written", "Check the disk, then try again."),
)

_POSTGRES: tuple[tuple[str, type[IdiolectError], str, str], ...] = (
    ("28", ConfigurationError, "refuses the user or password", "Correct IDIOLECT_DATABASE_URL."),
    ("3D", ConfigurationError, "does not exist", "Create it, or correct IDIOLECT_DATABASE_URL."),
    ("42501", ConfigurationError, "refuses this user", "Grant the user all rights on it."),
    ("25006", ConfigurationError, "is read-only", "Use the primary server."),
    ("25P03", UnavailableError, "ended a transaction of a server that had stood still", "Try again."),
    ("53", UnavailableError, "has no resources left (disk, memory or connections)", "Free some, then try again."),
    ("55P03", UnavailableError, "stayed locked by another writer for too long", "Try again."),
)


# libpq gives a refused connection no SQLSTATE, only words.
_REFUSED: tuple[tuple[str, type[IdiolectError], str, str], ...] = (
    ("password", ConfigurationError, "refuses the user or password", "Correct IDIOLECT_DATABASE_URL."),
    ("pg_hba.conf", ConfigurationError, "refuses this user from this host", "Allow them in its pg_hba.conf."),
    (
        '" does not exist',
        ConfigurationError,
        "or its user does not exist",
        "Create it, or correct IDIOLECT_DATABASE_URL.",
    ),
)


def is_transient(error: BaseException, attempt: int) -> bool:
    """Whether the same transaction, run again from its start, may well succeed. `attempt` counts from 0."""
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return state in _LOST or (state in _TAKEN and attempt == 0)


def is_locked(error: BaseException) -> bool:
    """Whether SQLite said that another writer is at work."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, sqlite3.OperationalError) and "locked" in str(cause)


def translated(error: BaseException, where: str) -> IdiolectError:
    """`where` names the database without its password. Parameters never enter the message: they are people's texts."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        found = _first(_SQLITE, where, lambda sign: sign in str(cause).lower())
    else:
        state = str(getattr(cause, "sqlstate", None) or "")
        found = _first(_POSTGRES, where, lambda sign: state.startswith(sign))
        found = found or _first(_REFUSED, where, lambda sign: not state and sign in str(cause))
    return found or _by_kind(error, where)


def _first(
    table: tuple[tuple[str, type[IdiolectError], str, str], ...], where: str, matches: Callable[[str], bool]
) -> IdiolectError | None:
    for sign, kind, what, mend in table:
        if matches(sign):
            return kind(f"the database {where} {what}.", mend=mend)
    return None


def _by_kind(error: BaseException, where: str) -> IdiolectError:
    if isinstance(error, DataError | UnicodeEncodeError):
        return InvalidInputError(
            "a name or reason holds characters or numbers that can't be stored.",
            mend="Use printable characters, without NUL and lone surrogates.",
        )
    if isinstance(error, IntegrityError | sqlite3.IntegrityError):
        return ConflictError(f"the database {where} moved in the meantime.", mend="Read again and decide.")
    if isinstance(error, PoolTimeoutError):
        return UnavailableError(f"all connections to the database {where} are busy.", mend="Try again.")
    return UnavailableError(
        f"the database {where} can't be reached ({type(error).__name__}).",
        mend="Check that it runs and that IDIOLECT_DATABASE_URL is right, then try again.",
    )
