"""Statements to a Postgres server, as many in one journey as are known.

A look-up is 15 microseconds of work on either side. What takes ten times as long is to wake a process, let it find its
data again and put it to sleep, which a statement with a journey of its own does four times. So what begins a
transaction, says whose rows it is about and asks the first questions goes out together, and comes back together.

This is libpq's pipeline mode. psycopg gives its functions and its conversion of values; its own pipelines cost as much
processor time as journeys do.
"""

from __future__ import annotations

import re
import select
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import abc
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult

PREPARED_AFTER = 5  # times that a connection was asked the same
MOST_PREPARED = 256  # of one connection: the server keeps a plan for each
_MOST_COUNTED = 1024

_Key = tuple[bytes, tuple[int, ...]]  # a statement and the types of its values


class Answer:
    """What the server said to one statement. Like a cursor to whoever only reads all of it."""

    __slots__ = ("_result", "_transformer")

    def __init__(self, result: PGresult, transformer: abc.Transformer) -> None:
        self._result = result
        self._transformer = transformer

    @property
    def description(self) -> list[tuple[bytes | None, int]]:
        """(name, type) of each column."""
        result = self._result
        return [(result.fname(place), result.ftype(place)) for place in range(result.nfields)]

    @property
    def rowcount(self) -> int:
        changed = self._result.command_tuples
        return -1 if changed is None else changed

    def fetchall(self) -> list[tuple[Any, ...]]:
        self._transformer.set_pgresult(self._result)
        return self._transformer.load_rows(0, self._result.ntuples, tuple)


class Asked:
    """A statement and its values as they are sent. `answer` is there once its journey came back."""

    __slots__ = ("answer", "formats", "key", "values")

    def __init__(self, key: _Key, values: Sequence[abc.Buffer | None], formats: Sequence[Format] | None) -> None:
        self.key = key
        self.values = values
        self.formats = formats
        self.answer: Answer | None = None


class Pipeline:
    """Over one connection, which nobody else uses. After an error of the connection it is of no more use."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._pgconn = raw.pgconn
        self._pgconn.enter_pipeline_mode()
        self._transformer: abc.Transformer = Transformer(raw)
        self._ready = select.poll()
        self._names: dict[_Key, bytes] = {}
        self._counts: dict[_Key, int] = {}
        self._given = 0  # names
        self._owed = 0  # journeys that nobody has waited for

    def asked(self, sql: str, values: Sequence[Any]) -> Asked:
        """Not sent yet. Raises psycopg's errors for values that can't be."""
        transformer = self._transformer
        dumped = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        return Asked((numbered(sql), transformer.types or ()), dumped, transformer.formats)

    def run(self, asked: Sequence[Asked]) -> None:
        """One journey. Raises the first of the server's errors; what stands behind it was not done."""
        sent: list[Asked | _Key] = []
        for one in asked:
            sent += self._send(one)
        self._depart()
        self.settle()
        failed: PGresult | None = None
        for what, result in zip(sent, self._results(), strict=True):
            done = result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
            if isinstance(what, Asked):
                what.answer = Answer(result, self._transformer)
            elif not done:
                del self._names[what]
            failed = failed or (None if done else result)
        if failed is not None:
            raise error_from_result(failed, encoding=self._transformer.encoding)

    def post(self, asked: Asked) -> None:
        """A journey that nobody waits for: its answer comes in before that of the next one, and is not looked at."""
        self._send(asked)
        self._depart()
        self._owed += 1

    def settle(self) -> None:
        """Take in what nobody waited for."""
        while self._owed:
            self._results()
            self._owed -= 1

    def _send(self, asked: Asked) -> Sequence[Asked | _Key]:
        """What the server will answer to: maybe that the statement is prepared, then the statement."""
        key, (sql, types) = asked.key, asked.key
        name = self._names.get(key)
        prepares = name is None and self._is_frequent(key)
        if prepares:
            self._given += 1
            name = self._names[key] = b"idiolect_%d" % self._given
            self._pgconn.send_prepare(name, sql, types)
        if name is None:
            self._pgconn.send_query_params(sql, asked.values, types, asked.formats)
        else:
            self._pgconn.send_query_prepared(name, asked.values, asked.formats)
        return (key, asked) if prepares else (asked,)

    def _is_frequent(self, key: _Key) -> bool:
        if len(self._names) >= MOST_PREPARED:
            return False
        if len(self._counts) >= _MOST_COUNTED:  # statements that were made for one use
            self._counts.clear()
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count > PREPARED_AFTER

    def _depart(self) -> None:
        self._pgconn.pipeline_sync()
        while self._pgconn.flush():  # the server may have to get rid of answers before it takes more
            if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._pgconn.consume_input()

    def _results(self) -> list[PGresult]:
        """Of one journey. Raises OperationalError if the connection is lost."""
        pgconn = self._pgconn
        results: list[PGresult] = []
        while True:
            while pgconn.is_busy():
                self._wait(select.POLLIN)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is not None:
                if result.status == ExecStatus.PIPELINE_SYNC:
                    return results
                results.append(result)
            elif pgconn.status != ConnStatus.OK:
                self._raise_lost(results)

    def _raise_lost(self, results: Sequence[PGresult]) -> None:
        """With what the server said at last, where it said anything."""
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise error_from_result(result, encoding=self._transformer.encoding)
        raise psycopg.OperationalError(self._pgconn.get_error_message())

    def _wait(self, until: int) -> int:
        self._ready.register(self._pgconn.socket, until)
        return self._ready.poll()[0][1]


_PLACES = re.compile(r"%[s%]")


@lru_cache(maxsize=1024)
def numbered(sql: str) -> bytes:
    """With places as libpq has them: `$1` for the first `%s`, and `%` for `%%`."""
    places = iter(range(1, sql.count("%s") + 1))
    return _PLACES.sub(lambda found: "%" if found[0] == "%%" else f"${next(places)}", sql).encode()
