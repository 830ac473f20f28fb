"""What all processes of an installation must agree on, or they spoil each other's work.

With another master key a server knows nobody: the same person has another pseudonym. With a signing key that the others
don't trust, they refuse (and quarantine) whatever it publishes.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, select, update

from idiolect.errors import ConfigurationError
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.tenant_wall import NO_TENANT

_MASTER, _SIGNING = "master key", "signing key"
_A = schema.agreements.c
_MEND = "Give all servers the same secrets: see deploy/README.md. After a rotation, the new ones."


class Agreement(Part):
    def agree(self, master_check: str, signing: str, trusted: Collection[str]) -> None:
        wanted = {_MASTER: master_check, _SIGNING: signing}
        with self._database.reading(NO_TENANT) as connection:
            if _agreed(connection) == wanted:
                return
        self._database.write(NO_TENANT, lambda connection: _agree(connection, wanted, trusted))


def _agreed(connection: Connection) -> dict[str, str]:
    return {row.name: row.value for row in connection.execute(select(_A.name, _A.value))}


def _agree(connection: Connection, wanted: dict[str, str], trusted: Collection[str]) -> None:
    statement = insert(connection, schema.agreements).on_conflict_do_nothing()
    connection.execute(statement, [{"name": name, "value": value} for name, value in sorted(wanted.items())])
    agreed = _agreed(connection)
    if agreed[_MASTER] != wanted[_MASTER]:
        raise ConfigurationError("the master key is not the one that this database was made with.", mend=_MEND)
    signing = agreed[_SIGNING]
    if signing == wanted[_SIGNING]:
        return
    if signing not in trusted:
        raise ConfigurationError(
            f"the signing key {wanted[_SIGNING]} is not the installation's, which is {signing}.", mend=_MEND
        )
    # Whoever signs with a newer key and still trusts the older one has rotated.
    connection.execute(update(schema.agreements).where(_A.name == _SIGNING).values(value=wanted[_SIGNING]))
