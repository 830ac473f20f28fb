"""A process that dies in the middle of a change, at a chosen write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from idiolect.stores.sql import SqlStore
from idiolect.stores.sql.prepared import Prepared, PreparedConnection
from idiolect.stores.sql.prepared_postgres import PostgresConnection

_WRITES = ("INSERT", "UPDATE", "DELETE")


class Crash(BaseException):
    """Nobody catches it. What had been written in the transaction is gone, as it is when a process is killed."""


@contextmanager
def crashing(store: SqlStore, after: int) -> Iterator[None]:
    """Let `after` writing statements through, and die at the next one, or else before what was written is committed."""
    left = after
    written: list[Any] = []  # the connections that did; others commit what they only read

    def write(connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        nonlocal left
        if statement.lstrip().startswith(_WRITES):
            written.append(connection)
            left -= 1
            if left < 0:
                raise Crash(statement)

    def commit(connection: Any) -> None:
        if any(one is connection for one in written):
            raise Crash("commit")

    with listening(store, before_cursor_execute=write, commit=commit):
        yield


def writes_of(store: SqlStore, change: Any) -> int:
    """Carry the change out, and count."""
    count = 0

    def write(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        nonlocal count
        count += statement.lstrip().startswith(_WRITES)

    with listening(store, before_cursor_execute=write):
        change()
    return count


@contextmanager
def listening(store: SqlStore, **listeners: Any) -> Iterator[None]:
    for name, listener in listeners.items():
        event.listen(store._database.engine, name, listener)
    try:
        with _prepared_too(**listeners):
            yield
    finally:
        for name, listener in listeners.items():
            event.remove(store._database.engine, name, listener)


def _in_transaction(connection: PreparedConnection) -> bool:
    """Not where each statement is one by itself: what it wrote is committed already."""
    return bool(connection._words) if isinstance(connection, PostgresConnection) else connection._begun


@contextmanager
def _prepared_too(before_cursor_execute: Any, commit: Any = None) -> Iterator[None]:
    """What goes straight to the driver is no event of the engine."""
    find = PreparedConnection._prepared

    def found(connection: PreparedConnection, statement: Any) -> Prepared:
        prepared = find(connection, statement)
        before_cursor_execute(connection, None, prepared.sql)
        return prepared

    def running(run: Any) -> Any:
        def ran(connection: PreparedConnection, statement: str, parameters: Any) -> Any:
            before_cursor_execute(connection, None, statement)
            return run(connection, statement, parameters)

        return ran

    def ending(end: Any) -> Any:
        def ended(connection: PreparedConnection) -> None:
            if commit is not None and _in_transaction(connection):
                commit(connection)
            end(connection)

        return ended

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PreparedConnection, "_prepared", found)
        for kind in (PreparedConnection, PostgresConnection):
            patched.setattr(kind, "exec_driver_sql", running(kind.exec_driver_sql))
            patched.setattr(kind, "commit", ending(kind.commit))
        yield
