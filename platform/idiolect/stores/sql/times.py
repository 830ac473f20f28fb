"""Times as whole microseconds since 1970, UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

from idiolect.errors import InvalidInputError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = ((one.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND for one in (datetime.min, datetime.max))


@overload
def micros(moment: datetime) -> int: ...
@overload
def micros(moment: None) -> None: ...
def micros(moment: datetime | None) -> int | None:
    """Exact (no floats). Raises InvalidInputError for a time without a zone: nobody can know which moment it means; and
    for one that has no year in UTC: it could be stored, and never be read."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidInputError(f"the time {moment.isoformat()} has no zone.", mend="Add one, such as +00:00.")
    value = (moment - _EPOCH) // _MICROSECOND
    if not _FIRST <= value <= _LAST:
        raise InvalidInputError(f"the time {moment.isoformat()} is of no year in UTC.", mend="Correct it.")
    return value


@overload
def moment(value: int) -> datetime: ...
@overload
def moment(value: None) -> None: ...
def moment(value: int | None) -> datetime | None:
    return None if value is None else _EPOCH + timedelta(microseconds=value)
