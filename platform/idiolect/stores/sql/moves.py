"""The history of pointers: rows of `pointer_history`, and what a release's publishing says without one for each person.

Publishing makes every version of a release live. That is one entry for the release, whose number is `releases.moves`;
whose pointer moved, from what and to what is in the versions' own rows. Before such a version is deleted, its entry is
written out. An entry's `place` is its order: its id, or the number of its release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Select,
    Subquery,
    and_,
    bindparam,
    func,
    literal,
    select,
    union_all,
)

from idiolect.registry.pointers import LIVE
from idiolect.stores.sql import schema
from idiolect.stores.sql.prepared import ahead

_M, _V, _R = schema.pointer_history.c, schema.versions.c, schema.releases.c
_TOLD = ("tenant", "subject", "domain", "name", "old_version", "version", "at", "reason", "actor")

_NUMBER = schema.pointer_history.insert().values({name: bindparam(name) for name in _TOLD}).returning(_M.id)


def replaced(old: str | None, parent: str | None) -> str | None:
    """As `versions.replaced` says what was live before: nothing if that was the parent, as it mostly is."""
    return None if old == parent else old or ""


def replaced_by(version: Any) -> ColumnElement[str | None]:
    """What was live before `version`, columns of `versions`; None if nothing was."""
    return func.nullif(func.coalesce(version.replaced, version.parent), "")


def number_of_release(connection: Connection, tenant: str, release: str, at: int, reason: str, actor: str) -> int:
    """Its entry, of nobody in particular. To be made while every pointer that moves with it is locked."""
    return ask_number(connection, tenant, release, at, reason, actor)()


def ask_number(
    connection: Connection, tenant: str, release: str, at: int, reason: str, actor: str
) -> Callable[[], int]:
    """As `number_of_release`, asked ahead."""
    told = {"name": "release", "old_version": None, "version": release, "at": at, "reason": reason, "actor": actor}
    asked = ahead(connection, _NUMBER, {"tenant": tenant, "subject": "", "domain": ""} | told)
    return lambda: asked().one()[0]


def moves_of(tenant: str, subject: str, domain: str) -> Subquery:
    """All entries of an owner."""
    written = select(func.coalesce(_M.place, _M.id).label("place"), *(_M[name] for name in _TOLD)).where(
        _M.tenant == tenant, _M.subject == subject, _M.domain == domain
    )
    mine = (_V.tenant == tenant, _V.subject == subject, _V.domain == domain)
    return union_all(written, _published(*mine)).subquery("moves")


def keep_moves(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Before versions are deleted: write out what publishing them said. `which`: conditions on `versions`."""
    connection.execute(keeping(*which))


def keeping(*which: ColumnElement[bool]) -> Insert:
    """As `keep_moves`, to be executed."""
    return schema.pointer_history.insert().from_select(["place", *_TOLD], _published(*which))


def _published(*which: ColumnElement[bool]) -> Select[Any]:
    told = (_R.moves.label("place"), _V.tenant, _V.subject, _V.domain, literal(LIVE).label("name"))
    return (
        select(*told, replaced_by(_V).label("old_version"), _V.id, _R.published_at, _R.reason, _R.actor)
        .select_from(schema.versions)
        .join(schema.releases, and_(_R.tenant == _V.tenant, _R.id == _V.release))
        .where(*which, _R.moves.is_not(None))
    )
