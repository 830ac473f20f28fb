"""What every part of the store is built from."""

from __future__ import annotations

from idiolect.stores.sql.engine import Database


class Part:
    """One group of methods over the shared database."""

    def __init__(self, database: Database) -> None:
        self._database = database
