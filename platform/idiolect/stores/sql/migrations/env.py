"""Runs migrations on the connection that `upgrading` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from idiolect.stores.sql import schema
from idiolect.stores.sql.upgrading import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
