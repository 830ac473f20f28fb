"""The store, from its parts. Each part holds the methods of one protocol in `stores.ports`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection

from idiolect.ids import new_id
from idiolect.stores.sql import schema
from idiolect.stores.sql.feedback import Feedback
from idiolect.stores.sql.imports import Imports
from idiolect.stores.sql.ledger import Ledger
from idiolect.stores.sql.registry import Registry
from idiolect.stores.sql.resets import Resets
from idiolect.stores.sql.resolving import Resolving
from idiolect.stores.sql.subjects import Subjects
from idiolect.stores.sql.tenants import Tenants
from idiolect.stores.sql.training_reads import TrainingReads


class SqlStore(Tenants, Subjects, Imports, Feedback, TrainingReads, Ledger, Registry, Resolving, Resets):
    """Everything, behind one connection pool. Safe to use from many threads and processes."""

    def check(self) -> None:
        self._database.write(_write_and_take_back)

    def close(self) -> None:
        self._database.engine.dispose()


if TYPE_CHECKING:
    from idiolect.stores.ports import Store

    _complete: type[Store] = SqlStore


def _write_and_take_back(connection: Connection) -> None:
    with connection.begin_nested() as savepoint:
        connection.execute(schema.tenants.insert(), {"name": f"check {new_id()}", "created_at": 0})
        savepoint.rollback()
