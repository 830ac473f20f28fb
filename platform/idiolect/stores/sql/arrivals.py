"""Releases that arrive in batches: what everybody else sees of one, which is nothing until all of it is there.

A release that does not fit one batch has a row in `arrivals` while its versions are written. Until then a person's
pointer says both: `version` is live, and `coming` will be once the row is gone. So that moment is one small write,
however many people it is about, and nothing has to follow: afterwards `coming` is live and `version` the previous one,
until the pointer moves again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, and_, bindparam, case, exists, func, select, text
from sqlalchemy.sql.elements import TextClause

from idiolect.registry.pointers import PREVIOUS, Pointer
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import AnyRow
from idiolect.stores.sql.prepared import ahead

_A, _P, _V, _R = schema.arrivals.c, schema.pointers.c, schema.versions.c, schema.releases.c

# For a row of `releases`. The table is all but empty, so asking costs next to nothing.
RELEASE_IS_HERE = ~exists().where(_A.tenant == _R.tenant, _A.release == _R.id).correlate(schema.releases)


def has_come(pointers: Any) -> ColumnElement[bool]:
    """For a row of `pointers`, or an alias of it: whether it has moved on to what was coming."""
    return and_(pointers.c.coming.is_not(None), pointers.c.arrival.not_in(select(_A.number)))


HAS_COME = has_come(schema.pointers)
# Of a row of `pointers`: what is live (None: nothing), and its revision.
LIVE_VERSION: ColumnElement[str | None] = case((HAS_COME, _P.coming), else_=func.nullif(_P.version, ""))
LIVE_REVISION: ColumnElement[int] = _P.revision + case((HAS_COME, 1), else_=0)


# As `live_version` where `arrivals` is joined by this: to look something up by it. Postgres would use no index for what
# it must compare with the result of a subquery, since behind the tenants' wall that might tell of other rows.
def what_arrives(pointers: FromClause = schema.pointers) -> ColumnElement[bool]:
    return _A.number == pointers.c.arrival


def live_to_join(pointers: FromClause = schema.pointers) -> ColumnElement[str | None]:
    """For a row of `pointers`, or of a selection of them."""
    of = pointers.c
    has_come = and_(of.coming.is_not(None), _A.number.is_(None))
    return case((has_come, of.coming), else_=func.nullif(of.version, ""))


WHAT_ARRIVES, LIVE_TO_JOIN = what_arrives(), live_to_join()

# Of all rows of an owner, for `standing`.
STANDING = (
    _P.name,
    LIVE_VERSION.label("version"),
    LIVE_REVISION.label("revision"),
    _P.coming,
    case((HAS_COME, func.nullif(_P.version, ""))).label("before"),
)

_IS_MINE = _A.tenant == bindparam("tenant")
_RELEASE = select(_A.release).where(_IS_MINE)
_KEPT = _RELEASE.with_for_update(read=True)

# The same as text, for the driver: what a row of `pointers` becomes when its version is replaced. What is still coming
# goes on coming.
_COME = "pointers.coming IS NOT NULL AND pointers.arrival NOT IN (SELECT number FROM arrivals)"
NEXT_REVISION = f"pointers.revision + 1 + CASE WHEN {_COME} THEN 1 ELSE 0 END"
STILL_COMING = {name: f"CASE WHEN {_COME} THEN NULL ELSE pointers.{name} END" for name in ("coming", "arrival")}
REPLACED = {"version": "excluded.version", "revision": NEXT_REVISION, **STILL_COMING}


def standing(rows: Sequence[AnyRow]) -> dict[str, Pointer]:
    """One owner's pointers by name, from `STANDING`."""
    found = {row.name: Pointer(row.name, row.version, row.revision) for row in rows if row.version is not None}
    for row in rows:
        if row.before is not None:
            older = found.get(PREVIOUS, Pointer(PREVIOUS, None, 0))
            found[PREVIOUS] = Pointer(PREVIOUS, row.before, older.revision + 1)
    return found


def replacing() -> dict[str, TextClause]:
    return {name: text(value) for name, value in REPLACED.items()}


def is_here(versions: Any = schema.versions) -> ColumnElement[bool]:
    """For a row of `versions`, or an alias of it: whether its release has arrived."""
    of = versions.c
    return ~exists().where(_A.tenant == of.tenant, _A.release == of.release).correlate(versions)


IS_HERE = is_here()


def arriving(connection: Connection, tenant: str, *, keep: bool = False) -> str | None:
    """The release that arrives. `keep` it so until the transaction ends (Postgres; a SQLite writer is alone)."""
    return ask_arriving(connection, tenant, keep=keep)()


def ask_arriving(connection: Connection, tenant: str, *, keep: bool = False) -> Callable[[], str | None]:
    """As `arriving`, asked ahead."""
    asked = ahead(connection, _KEPT if keep else _RELEASE, {"tenant": tenant})

    def release() -> str | None:
        row = asked().one_or_none()
        return None if row is None else row.release

    return release


def tell_arriving(connection: Connection, tenant: str, whose: ColumnElement[bool]) -> None:
    """A pointer moved before what is coming for it: that will replace what is live now. `whose`: of `versions`."""
    mine = and_(_P.tenant == _V.tenant, _P.subject == _V.subject, _P.domain == _V.domain, _P.name == "live")
    live = select(_P.version).where(mine).correlate(schema.versions).scalar_subquery()
    connection.execute(
        schema.versions.update()
        .where(_V.tenant == tenant, ~IS_HERE, exists().where(mine).correlate(schema.versions), whose)
        .values(replaced=live)
    )
