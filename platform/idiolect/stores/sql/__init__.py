"""The store in SQL: SQLite for one machine, Postgres for several. `open_store` is the only door."""

from __future__ import annotations

from contextlib import ExitStack

from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql.key_store import KeyStore, open_key_store
from idiolect.stores.sql.opening import open_database
from idiolect.stores.sql.store import SqlStore

__all__ = ["KeyStore", "SqlStore", "open_key_store", "open_store"]


def open_store(
    url: str, keys: SubjectKeys | None = None, *, lock_timeout_s: float = 10.0, instead: bool = False
) -> SqlStore:
    """Open the database of `url` (sqlite:///FILE or postgresql://...), bringing its schema up to date first.

    Safe when several processes start at once. `lock_timeout_s`: how long a call waits for another writer before it
    raises UnavailableError. Raises ConfigurationError for a URL, file, server or schema that can't be used.

    `keys` seal and open what is stored of people, and are closed with the store; without them such rows are refused.
    `instead`: see `KeyBinding.use_keys`.
    """
    with ExitStack() as on_failure:
        if keys is not None:
            on_failure.callback(keys.close)
        store = SqlStore(open_database(url, lock_timeout_s))
        on_failure.callback(store.close)
        if keys is not None:
            store.use_keys(keys, instead=instead)
        on_failure.pop_all()
    return store
