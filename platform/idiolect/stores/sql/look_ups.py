"""Rows by some of their values, found by statements whose texts are always the same, so that they may be prepared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sqlalchemy import ColumnElement, Connection, Delete, Select, bindparam

from idiolect.stores.sql.engine import AnyRow, chunks
from idiolect.stores.sql.prepared import together

FEW = 16
# Values that a statement takes; the last one is repeated for those that are missing, which costs as much as others do.
SIZES = (1, FEW, 32, 64, 96, 128, 256)
_NAMES = [f"few{place}" for place in range(SIZES[-1])]


class LookUp:
    """`statement`, of the rows whose `column` has one of the values."""

    def __init__(self, statement: Select[Any] | Delete, column: ColumnElement[Any]) -> None:
        some = [bindparam(name, type_=column.type) for name in _NAMES]
        self._by_size = [(1, statement.where(column == some[0]))]
        self._by_size += [(size, statement.where(column.in_(some[:size]))) for size in SIZES[1:]]

    def rows(self, connection: Connection, values: Collection[Any], names: Mapping[str, Any]) -> list[AnyRow]:
        return [row for few, bound in self._bound(values, names) for row in connection.execute(few, bound)]

    def asked(self, values: Collection[Any], names: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
        """The statements that find them."""
        return list(self._bound(values, names))

    def delete(self, connection: Connection, values: Collection[Any], names: Mapping[str, Any]) -> int:
        """How many rows those were."""
        changed = [connection.execute(few, bound) for few, bound in self._bound(values, names)]
        return sum(one.rowcount for one in changed)

    def _bound(self, values: Collection[Any], names: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        size, statement = next((one for one in self._by_size if one[0] >= len(values)), self._by_size[-1])
        for few in chunks(sorted(values), size):
            bound = dict(zip_longest(_NAMES[:size], few, fillvalue=few[-1]))
            bound.update(names)
            yield statement, bound


def rows_of_each(
    connection: Connection, wanted: Sequence[tuple[LookUp, Collection[Any], Mapping[str, Any]]]
) -> list[list[AnyRow]]:
    """As `rows` of each, all together."""
    asked = [look_up.asked(values, names) for look_up, values, names in wanted]
    found = iter(together(connection, [one for some in asked for one in some]))
    return [[row for _ in some for row in next(found)] for some in asked]
