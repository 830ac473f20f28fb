"""Which key store opens what this database holds: never another one without anybody noticing.

Two servers on two key stores would each seal what the other can't read, and a new, empty key store in place of a lost
one would look like a database whose people were all forgotten.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from idiolect.errors import ConfigurationError
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import queue_up
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import NO_TENANT

_B = schema.key_store.c


class KeyBinding(Part):
    def use_keys(self, keys: SubjectKeys, *, instead: bool = False) -> None:
        """Seal and open with `keys` from now on; the store closes them. Raises ConfigurationError if the database
        belongs to another key store, unless they are to be used `instead` of that one: what it opened is lost then."""
        database = self._database
        with database.reading(NO_TENANT) as connection:
            bound = connection.scalar(select(_B.id))
        if bound != keys.identity:
            database.write(NO_TENANT, lambda connection: bind(connection, keys, instead=instead))
        database.key_store = keys
        database.rest()


def bind(connection: Connection, keys: SubjectKeys, *, instead: bool) -> None:
    queue_up(connection, "key store")
    bound = connection.scalar(select(_B.id))
    if bound is not None and bound != keys.identity and not instead:
        raise ConfigurationError(
            f"the keys of the people in this database are in another key store than {keys.where}.",
            mend="Bring that one back, or correct IDIOLECT_KEYS_URL. If it is lost for good: "
            "idiolect keys replace-store, or idiolect restore --without-keys.",
        )
    if bound != keys.identity:
        connection.execute(delete(schema.key_store))
        connection.execute(schema.key_store.insert().values(id=keys.identity, sealed_at=None))
