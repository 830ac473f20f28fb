"""What a transaction has to say to the recovery log before it commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import Connection

from idiolect.audit import AuditEntry
from idiolect.recovery import LoggedChange
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.stores.sql.prepared import PreparedConnection

_KEY = "idiolect_changes"


@contextmanager
def changes_of_a_transaction(log: RecoveryLog | None) -> Iterator[LoggedChanges]:
    """Around the whole transaction, so that the log stays held until it is committed."""
    with ExitStack() as until_committed:
        yield LoggedChanges(log, until_committed)


class LoggedChanges:
    def __init__(self, log: RecoveryLog | None, until_committed: ExitStack) -> None:
        self._log = log
        self._until_committed = until_committed
        self._changes: list[LoggedChange] = []
        self._connection: Connection | None = None

    def collect(self, connection: Connection) -> None:
        self._connection = connection
        connection.info[_KEY] = self._changes

    def write(self) -> None:
        """The last thing before the commit: whatever is committed is in the log, and nothing that the database
        refuses."""
        if self._log is not None and self._changes:
            if isinstance(self._connection, PreparedConnection):
                self._connection.send()
            self._until_committed.enter_context(self._log.held(alone=False))
            self._log.append(self._changes)


def note(connection: Connection, entry: AuditEntry, extra: Mapping[str, Any] | None) -> None:
    changes: list[LoggedChange] | None = connection.info.get(_KEY)
    if changes is not None:
        changes.append(LoggedChange(entry, extra or {}))
