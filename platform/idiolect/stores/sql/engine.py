"""Transactions: one way to read, one way to write, the same on SQLite and Postgres.

SQLite: WAL, so that readers never wait; BEGIN IMMEDIATE, so that writers are serialised from their first statement;
synchronous=FULL, so that a reset that was answered survives a power cut (what may be lost in one says so: see
`write`); secure_delete, so that erased data does not
stay in free pages.

Postgres: writers run at READ COMMITTED under the locks of `hold`, in memory and fair, and start again on a deadlock or
lost race. Readers see one snapshot (REPEATABLE READ). Erased rows are overwritten by (auto)vacuum, not at once.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Engine,
    ExceptionContext,
    RootTransaction,
    Row,
    Table,
    and_,
    event,
    literal,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.stores.blobs.port import BlobStore
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.stores.sql.failures import DRIVER_ERRORS, is_locked, is_transient, translated
from idiolect.stores.sql.logged_changes import changes_of_a_transaction
from idiolect.stores.sql.paths import SqlitePaths, postgres_paths
from idiolect.stores.sql.prepared import PreparedConnection, Transaction
from idiolect.stores.sql.tenant_wall import Behind, stand_behind

if TYPE_CHECKING:
    from idiolect.stores.key_ports import SubjectKeys

ATTEMPTS = 8
# A process that stands still in the middle of a write, frozen or cut off, keeps its locks, and Postgres has
# everybody else wait for them for as long as the connection stands: hours, where nobody answers at its other end. So
# Postgres ends what asked nothing for so long. What a process computes between two statements takes less, and so does
# what it asks of the key store in between; for where it may not, see `take_time`.
STANDSTILL_SECONDS = 15.0
_LOG_BYTES = 64 << 20  # what stays of the write-ahead log after a large import
CHUNK = 5_000  # rows per statement: far below the bounds of 32,766 (SQLite) and 65,535 (Postgres) parameters

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_LOCK_SHARED = text("SELECT pg_advisory_xact_lock_shared(:key)")

T = TypeVar("T")
AnyRow: TypeAlias = Row[*tuple[Any, ...]]


class Hold(Enum):
    """What a writer of a tenant keeps others from doing until it ends. On SQLite every writer excludes every other."""

    NOTHING_ERASED = "nothing erased"  # hot path: many at once, but not while someone erases
    ONE_RUN = "one run"  # imports, reservations, publishes: one at a time, beside the hot path
    ERASE = "erase"  # resets: alone


class Database:
    """A pool of connections and the rules of using them."""

    def __init__(self, engine: Engine, where: str, lock_timeout_s: float) -> None:
        self.engine = engine
        self.lock_timeout_s = lock_timeout_s
        # SQLite's writers wait for each other by sleeping, ever longer; those of one process can simply queue.
        self._turn = threading.Lock()
        self.where = where  # for messages: the URL without its password
        self.recovery_log: RecoveryLog | None = None
        self.blobs: BlobStore | None = None
        self.key_store: SubjectKeys | None = None
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._reader = engine if self.is_sqlite else _snapshot_reader(engine)
        self._writer = engine.execution_options(idiolect_write=True)
        self._hasty_writer = engine.execution_options(idiolect_write=True, idiolect_hasty=True)
        self._paths = SqlitePaths(engine) if self.is_sqlite else postgres_paths(engine)

    @contextmanager
    def reading(self, whom: Behind) -> Iterator[Connection]:
        """One consistent snapshot, of the rows of `whom` (see `tenant_wall`)."""
        try:
            with _transaction(self._reader, whom) as connection:
                yield connection
        except DRIVER_ERRORS as error:
            raise translated(error, self.where) from error

    def point_reading(self, whom: Behind, *, single: bool = False) -> AbstractContextManager[Connection]:
        """One snapshot, for constant statements that find a few rows, at a fraction of the cost of `reading`.

        `single`: for one statement, which is its own snapshot.
        """
        # What it gives has what point reads use of a connection.
        return cast("AbstractContextManager[Connection]", _PointReading(self._paths.read(whom, single), self.where))

    def small_write(self, whom: Behind, work: Callable[[Connection], T]) -> T:
        """As `write` without `lasting`, for constant statements."""
        return self._written(lambda: self._paths.write(whom, lasting=False), work)

    def lasting_write(self, whom: Behind, work: Callable[[Connection], T]) -> T:
        """As `write`, for constant statements: most of what is left is the disk's."""
        return self._written(lambda: self._paths.write(whom, lasting=True), work)

    def lasting_statements(self, whom: Behind, work: Callable[[Connection], T]) -> T:
        """As `lasting_write`, where each statement is a transaction of its own: so it saves the journeys of one. Only
        for what may be done again without harm, since a statement whose connection was lost is sent again."""
        return self._written(lambda: self._paths.lasting_statements(whom), work)

    def write_at_once(self, work: Callable[[Connection], T]) -> T | None:
        """As `small_write`, but None, and nothing done, if that would have to wait: for another writer, or a server.

        A log that only grows by such writes is never moved into the file: let a `small_write` come between.
        """
        if not isinstance(self._paths, SqlitePaths) or not self._turn.acquire(blocking=False):
            return None
        try:
            with self._paths.impatient() as prepared:
                return work(cast(Connection, prepared))
        except DRIVER_ERRORS as error:
            if is_locked(error):
                return None
            raise translated(error, self.where) from error
        finally:
            self._turn.release()

    def keys(self) -> SubjectKeys:
        """Those that seal what is stored of people."""
        if self.key_store is None:
            raise ConfigurationError(
                f"the database {self.where} was opened without the keys of people.", mend="Open it with its key store."
            )
        return self.key_store

    def rest(self) -> None:
        """After it was opened: what that took is seldom needed again, and each connection is a process of Postgres."""
        if not self.is_sqlite:
            self.engine.dispose()

    def close(self) -> None:
        if self.key_store is not None:
            self.key_store.close()
        self._paths.close()
        self.engine.dispose()

    def write(self, whom: Behind, work: Callable[[Connection], T], *, lasting: bool = True) -> T:
        """Run `work` in one transaction; it may run more than once, so all that it changes must be in the database.

        Without `lasting` it answers before the disk has it: a crash of the process loses nothing, but a power cut may
        lose the last moments, whole transactions at a time. The disk's answer takes twenty times as long as the rest.
        """
        engine = self._writer if lasting else self._hasty_writer
        return self._written(lambda: _transaction(engine, whom), work)

    def _written(self, begun: Callable[[], AbstractContextManager[Any]], work: Callable[[Connection], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                with (
                    self._my_turn(),
                    changes_of_a_transaction(self.recovery_log) as changes,
                    begun() as connection,
                ):
                    changes.collect(connection)
                    done = work(connection)
                    changes.write()
                    return done
            except DRIVER_ERRORS as error:
                if attempt + 1 == ATTEMPTS or not is_transient(error, attempt):
                    raise translated(error, self.where) from error
                time.sleep(random.uniform(0.0, 0.02 * 2**attempt))  # noqa: S311  not a secret: spreads retries
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=self.lock_timeout_s):
            raise UnavailableError(f"the database {self.where} is kept busy by another writer.", mend="Try again.")
        try:
            yield
        finally:
            self._turn.release()

    def scrub(self) -> None:
        """After erasing on SQLite: move the write-ahead log, which holds old pages, into the file and empty it.

        Best effort, since the erasure itself is committed: with readers at work the log stays until a later checkpoint.
        """
        if self.key_store is not None:
            self.key_store.scrub()
        if not self.is_sqlite:
            return
        with suppress(*DRIVER_ERRORS), self.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            before = raw.execute("PRAGMA busy_timeout").fetchone()[0]
            raw.execute("PRAGMA busy_timeout=500")
            try:
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                raw.execute(f"PRAGMA busy_timeout={int(before)}")

    def learn_sizes(self) -> None:
        """After a large import on Postgres: its planner guesses from old sizes, and a wrong guess is 60 times slower.

        Best effort: the server does the same by itself, minutes later. SQLite's plans follow the indices alone.
        """
        if self.is_sqlite:
            return
        with suppress(*DRIVER_ERRORS), self.engine.begin() as connection:
            connection.execute(text("ANALYZE"))


class _PointReading:
    """A transaction whose errors are ours."""

    __slots__ = ("_transaction", "_where")

    def __init__(self, transaction: Transaction, where: str) -> None:
        self._transaction = transaction
        self._where = where

    def __enter__(self) -> PreparedConnection:
        try:
            return self._transaction.__enter__()
        except DRIVER_ERRORS as error:
            raise translated(error, self._where) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self._transaction.__exit__(kind, error, trace)
        except DRIVER_ERRORS as failed:
            raise translated(failed, self._where) from failed
        if isinstance(error, DRIVER_ERRORS):
            raise translated(error, self._where) from error


@contextmanager
def _transaction(engine: Engine, whom: Behind) -> Iterator[Connection]:
    connection, transaction = _begun(engine, whom)
    with connection, transaction:  # rolls back too what fails in its commit
        yield connection


def _begun(engine: Engine, whom: Behind) -> tuple[Connection, RootTransaction]:
    """Its first words tell whether the connection still stands, and another is taken if it doesn't. So the pool need
    not ask before every use, which is a journey to the server each time."""
    for attempt in range(2):
        connection = engine.connect()
        try:
            transaction = connection.begin()
            stand_behind(connection, whom)
        except DBAPIError as error:
            connection.close()
            if attempt or not error.connection_invalidated:
                raise
        except BaseException:
            connection.close()
            raise
        else:
            return connection, transaction
    raise AssertionError("the last attempt returns or raises")


def _snapshot_reader(engine: Engine) -> Engine:
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def prepare_sqlite(engine: Engine, busy_timeout_s: float) -> None:
    @event.listens_for(engine, "connect")
    def _connect(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # transactions are begun below, not guessed by the driver
        raw.execute(f"PRAGMA busy_timeout={int(busy_timeout_s * 1000)}")
        raw.execute("PRAGMA foreign_keys=ON")
        raw.execute("PRAGMA synchronous=FULL")
        raw.execute("PRAGMA secure_delete=ON").fetchall()
        raw.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}").fetchall()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("idiolect_write", False):
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if options.get('idiolect_hasty') else 'FULL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def prepare_postgres(engine: Engine, lock_timeout_s: float) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("idiolect_write"):  # what reads keeps nobody waiting, and may compute for long
            milliseconds = int(STANDSTILL_SECONDS * 1000)
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
        if options.get("idiolect_hasty"):
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")

    @event.listens_for(engine, "connect")
    def _connect(raw: Any, _record: Any) -> None:
        raw.execute(f"SET lock_timeout = {int(lock_timeout_s * 1000)}")
        raw.commit()

    @event.listens_for(engine, "handle_error")
    def _failed(context: ExceptionContext) -> None:
        """A connection that broke in the middle of many rows is stuck there: it is thrown away, not rolled back."""
        raw = context.connection.connection.dbapi_connection if context.connection is not None else None
        if raw is not None and raw.info.pipeline_status:  # 0: it is in no pipeline
            context.is_disconnect = True


def take_time(connection: Connection) -> None:
    """For a transaction between whose statements there may be any amount of work: of a command, not of a server."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")


def hold(connection: Connection, tenant: str, what: Hold) -> None:
    """Until the transaction ends. Take it first, before any row is locked."""
    if connection.dialect.name == "sqlite":
        return
    if what is not Hold.NOTHING_ERASED:
        _advisory_lock(connection, "run:" + tenant, shared=False)
    if what is not Hold.ONE_RUN:
        _advisory_lock(connection, "erase:" + tenant, shared=what is Hold.NOTHING_ERASED)


def queue_up(connection: Connection, name: str) -> None:
    """Let the writers that call this commit one after the other, of all tenants: each sees what those before it wrote.

    Take it late, and before the audit log is appended to: whoever waits here may hold locks of `hold`.
    """
    if connection.dialect.name != "sqlite":
        _advisory_lock(connection, "queue:" + name, shared=False)


def _advisory_lock(connection: Connection, name: str, *, shared: bool) -> None:
    key = int.from_bytes(hashlib.sha256(b"idiolect:" + name.encode()).digest()[:8], signed=True)
    connection.execute(_LOCK_SHARED if shared else _LOCK, {"key": key})


def insert(connection: Connection, table: Table) -> Insert:
    """An INSERT with ON CONFLICT, which SQLite and Postgres spell alike but SQLAlchemy types apart."""
    if connection.dialect.name == "sqlite":
        return cast(Insert, sqlite.insert(table))
    return postgresql.insert(table)


def chunks(rows: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class _OneOf(FunctionElement[bool]):
    """Whether a text is one of a JSON list."""

    type = Boolean()
    inherit_cache = True


@compiles(_OneOf, "sqlite")
def _one_of_on_sqlite(element: _OneOf, compiler: SQLCompiler, **options: Any) -> str:
    text, texts = (compiler.process(part, **options) for part in element.clauses)
    return f"{text} IN (SELECT value FROM json_each({texts}))"  # noqa: S608  both are compiled


@compiles(_OneOf, "postgresql")
def _one_of_on_postgres(element: _OneOf, compiler: SQLCompiler, **options: Any) -> str:
    """IS TRUE keeps it from being joined, which without statistics is done row by row; so it is hashed."""
    text, texts = (compiler.process(part, **options) for part in element.clauses)
    return f"({text} IN (SELECT json_array_elements_text(CAST({texts} AS JSON)))) IS TRUE"


def among(subject: ColumnElement[str], subjects: Collection[str]) -> ColumnElement[bool]:
    """Whether `subject` is one of `subjects`, their ends given as a range to read an index on (tenant, subject) in.

    Without a range Postgres, while it has no statistics, reads all people of a tenant for every chunk of them, so that
    importing a million takes their square. And a list of parameters it would go through for every row that it reads.
    Pseudonyms are lower-case hex, which every collation orders alike.
    """
    between = subject.between(min(subjects, default=""), max(subjects, default=""))
    return and_(between, _OneOf(subject, literal(json.dumps(list(subjects)))))
