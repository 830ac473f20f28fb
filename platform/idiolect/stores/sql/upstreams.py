"""Where each tenant's completions come from."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, select

from idiolect.errors import NotFoundError
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.times import micros, moment
from idiolect.upstreams import Upstream

_U = schema.upstreams.c
_OF_TENANT = select(_U.base_url, _U.model, _U.sealed_key, _U.updated_at).where(_U.tenant == bindparam("tenant"))


class Upstreams(Part):
    def set_upstream(self, tenant: str, upstream: Upstream) -> None:
        values: dict[str, object] = {
            "base_url": upstream.base_url,
            "model": upstream.model,
            "sealed_key": upstream.sealed_key,
            "updated_at": micros(upstream.updated_at),
        }
        self._database.write(tenant, lambda connection: _set(connection, tenant, values))
        self._database.scrub()  # the key before, though sealed, goes from the log too

    def upstream(self, tenant: str) -> Upstream | None:
        with self._database.reading(tenant) as connection:
            row = connection.execute(_OF_TENANT, {"tenant": tenant}).one_or_none()
        return None if row is None else Upstream(row.base_url, row.model, row.sealed_key, moment(row.updated_at))

    def remove_upstream(self, tenant: str) -> None:
        self._database.write(
            tenant, lambda connection: connection.execute(delete(schema.upstreams).where(_U.tenant == tenant))
        )
        self._database.scrub()


def _set(connection: Connection, tenant: str, values: dict[str, object]) -> None:
    if connection.scalar(select(schema.tenants.c.name).where(schema.tenants.c.name == tenant)) is None:
        raise NotFoundError(f"the tenant {tenant[:80]!r} does not exist.", mend="Create it first.")
    statement = insert(connection, schema.upstreams).values(tenant=tenant, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["tenant"], set_=values))
