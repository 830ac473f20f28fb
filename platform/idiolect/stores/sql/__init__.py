"""The store in SQL: SQLite for one machine, Postgres for several. `open_store` is the only door."""

from __future__ import annotations

from idiolect.stores.sql.opening import open_database
from idiolect.stores.sql.store import SqlStore

__all__ = ["SqlStore", "open_store"]


def open_store(url: str, *, lock_timeout_s: float = 10.0) -> SqlStore:
    """Open the database of `url` (sqlite:///FILE or postgresql://...), bringing its schema up to date first.

    Safe when several processes start at once. `lock_timeout_s`: how long a call waits for another writer before it
    raises UnavailableError. Raises ConfigurationError for a URL, file, server or schema that can't be used.
    """
    return SqlStore(open_database(url, lock_timeout_s))
