"""One row of a data file, with typed access to its columns. Every refusal names the file, the line and the column."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from idiolect.errors import InvalidInputError
from idiolect.signals.context import LANGUAGE_TAG, MAX_NAME_CHARS

_MAX_MILLISECONDS = 4_102_444_800_000  # 2100-01-01: later ones are in another unit
_MAX_NUMBER = 1e9  # numbers become float32 in training, which must not overflow


class Row:
    __slots__ = ("_columns", "file", "line")

    def __init__(self, columns: Mapping[str, Any], file: str, line: int) -> None:
        self._columns = columns
        self.file = file
        self.line = line

    def wrong(self, problem: str, mend: str) -> InvalidInputError:
        return InvalidInputError(f"{self.file} line {self.line}: {problem}", mend=mend)

    def _wrong_type(self, column: str, value: object, expected: str) -> InvalidInputError:
        return self.wrong(f"column {column!r} is {repr(value)[:60]}.", f"It must be {expected}.")

    def raw(self, column: str) -> Any:
        try:
            return self._columns[column]
        except KeyError:
            raise self.wrong(f"column {column!r} is missing.", "Check that the file is of this format.") from None

    def text(self, column: str) -> str:
        value = self.raw(column)
        if not isinstance(value, str):
            raise self._wrong_type(column, value, "a string")
        return value

    def text_or(self, column: str, default: str) -> str:
        """`default` where the column is missing, null or empty."""
        if self._columns.get(column) in (None, ""):
            return default
        return self.text(column)

    def language(self, column: str, default: str | None = None) -> str:
        tag = self.text(column) if default is None else self.text_or(column, default)
        if not LANGUAGE_TAG.fullmatch(tag):
            raise self.wrong(f"{column} {tag[:40]!r} is not a language tag.", "Use one like en or pt-BR.")
        return tag

    def name_or(self, column: str, default: str) -> str:
        """A word for a table: short, and printable."""
        name = self.text_or(column, default)
        if len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise self.wrong(
                f"{column} {name[:40]!r} is not a name.", f"Use at most {MAX_NAME_CHARS} printable characters."
            )
        return name

    def identifier(self, column: str) -> str:
        """A string or an integer, as a string."""
        return self._as_identifier(column, self.raw(column))

    def _as_identifier(self, column: str, value: object) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong_type(column, value, "a string or an integer")
        return str(value)

    def integer(self, column: str) -> int:
        value = self.raw(column)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong_type(column, value, "an integer")
        return value

    def number(self, column: str) -> float:
        value = self.raw(column)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(column, value, "a number")
        return self._bounded(column, value)

    def _bounded(self, column: str, value: float) -> float:
        if not abs(value) <= _MAX_NUMBER:  # also true of NaN
            raise self._wrong_type(column, value, f"a number between -{_MAX_NUMBER:g} and {_MAX_NUMBER:g}")
        return float(value)

    def texts(self, column: str) -> list[str]:
        value = self.raw(column)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._wrong_type(column, value, "a list of strings")
        return value

    def pairs(self, column: str) -> list[tuple[str, str]]:
        """A list of [id, id]."""
        value = self.raw(column)
        if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            raise self._wrong_type(column, value, "a list of [chosen, rejected] pairs")
        return [(self._as_identifier(column, chosen), self._as_identifier(column, other)) for chosen, other in value]

    def milliseconds_or_none(self, column: str) -> int | None:
        """None where the column is missing or null."""
        return None if self._columns.get(column) is None else self.milliseconds(column)

    def milliseconds(self, column: str) -> int:
        """Milliseconds since 1970."""
        value = self.integer(column)
        if not 0 <= value <= _MAX_MILLISECONDS:
            raise self._wrong_type(column, value, "milliseconds since 1970")
        return value


class CsvRow(Row):
    """A row whose columns are all strings; numbers are parsed."""

    __slots__ = ()

    def raw(self, column: str) -> Any:
        if None in self._columns:  # where csv.DictReader puts what is beyond the header
            raise self.wrong("there are more fields than column names.", "Quote fields that contain a comma.")
        return super().raw(column)

    def number(self, column: str) -> float:
        text = self.text(column)
        try:
            return self._bounded(column, float(text))
        except ValueError:
            raise self._wrong_type(column, text, "a number") from None


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
