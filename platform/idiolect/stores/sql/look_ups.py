"""Rows by some of their values, found by statements whose texts are always the same, so that they may be prepared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import zip_longest
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam

from idiolect.stores.sql.engine import AnyRow, chunks

FEW = 16  # values that a look-up takes at once
_NAMES = [f"few{place}" for place in range(FEW)]


class LookUp:
    """Of one value, or of as many as can be."""

    def __init__(self, query: Select[Any], column: ColumnElement[Any]) -> None:
        some = [bindparam(name, type_=column.type) for name in _NAMES]
        self._one = query.where(column == some[0])
        self._some = query.where(column.in_(some))

    def rows(self, connection: Connection, values: Collection[Any], names: Mapping[str, Any]) -> list[AnyRow]:
        if len(values) == 1:
            (value,) = values
            return list(connection.execute(self._one, {**names, _NAMES[0]: value}))
        found: list[AnyRow] = []
        for few in chunks(sorted(values), FEW):
            bound: dict[str, Any] = dict(zip_longest(_NAMES, few, fillvalue=few[-1]))
            found += connection.execute(self._some, {**names, **bound})
        return found
