"""The store, from its parts. Each part holds the methods of one protocol in `stores.ports`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection

from idiolect.ids import new_id
from idiolect.stores.sql import schema
from idiolect.stores.sql.agreement import Agreement
from idiolect.stores.sql.audit import Audit
from idiolect.stores.sql.feedback import Feedback
from idiolect.stores.sql.garbage import GarbageCollecting
from idiolect.stores.sql.global_rollouts import GlobalRollouts
from idiolect.stores.sql.idempotency import Idempotency
from idiolect.stores.sql.imports import Imports
from idiolect.stores.sql.key_binding import KeyBinding
from idiolect.stores.sql.large_weights import LargeWeights
from idiolect.stores.sql.ledger import Ledger
from idiolect.stores.sql.lineage import Lineages
from idiolect.stores.sql.person_pages import PersonPages
from idiolect.stores.sql.pointers import Pointers
from idiolect.stores.sql.purges import Purges
from idiolect.stores.sql.quotas import Quotas
from idiolect.stores.sql.recovering import Recovering
from idiolect.stores.sql.registry import Registry
from idiolect.stores.sql.resets import Resets
from idiolect.stores.sql.resolving import Resolving
from idiolect.stores.sql.retention import Retention
from idiolect.stores.sql.rollouts import Rollouts
from idiolect.stores.sql.sealing_existing import SealingExisting
from idiolect.stores.sql.snapshots import Snapshots
from idiolect.stores.sql.standing import Standings
from idiolect.stores.sql.subjects import Subjects
from idiolect.stores.sql.swaps import Swaps
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT, is_bound
from idiolect.stores.sql.tenants import Tenants
from idiolect.stores.sql.training_reads import TrainingReads
from idiolect.stores.sql.upstreams import Upstreams
from idiolect.stores.sql.withheld import Withholding


class _Administration(
    Audit, Pointers, Withholding, Lineages, GarbageCollecting, Rollouts, GlobalRollouts, Recovering, Snapshots
):
    """What admins ask."""


class _Protection(KeyBinding, SealingExisting, Retention):
    """What opens the rows of people, seals those that never were, and deletes them in time."""


class SqlStore(
    Swaps,
    Agreement,
    Tenants,
    Subjects,
    PersonPages,
    Idempotency,
    Imports,
    Feedback,
    TrainingReads,
    Ledger,
    Registry,
    LargeWeights,
    Resolving,
    Standings,
    Resets,
    Purges,
    Upstreams,
    Quotas,
    _Administration,
    _Protection,
):
    """Everything, behind one connection pool. Safe to use from many threads and processes."""

    @property
    def embedded(self) -> bool:
        return self._database.is_sqlite

    @property
    def tenants_walled(self) -> bool | None:
        if self._database.is_sqlite:
            return None
        with self._database.reading(NO_TENANT) as connection:
            return is_bound(connection)

    def check(self) -> None:
        self._database.write(ALL_TENANTS, _write_and_take_back)

    def close(self) -> None:
        self._database.close()


if TYPE_CHECKING:
    from idiolect.stores.ports import Store

    _complete: type[Store] = SqlStore


def _write_and_take_back(connection: Connection) -> None:
    with connection.begin_nested() as savepoint:
        connection.execute(schema.tenants.insert(), {"name": f"check {new_id()}", "created_at": 0})
        savepoint.rollback()
