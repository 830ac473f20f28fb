"""A Postgres of one's own for a benchmark: from the `pgserver` wheel, else the system's; as root or not.

It runs in a temporary folder, listens on a socket in it, and is gone after `stop`. Only the wheel's binaries are used:
its own launcher makes a system user and opens the permissions of every folder on the way.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from idiolect.errors import ConfigurationError

# As a careful operator runs it: what was answered is on the disk.
DURABLE = ("shared_buffers=256MB", "max_wal_size=4GB", "listen_addresses=")
_START_S = 60
_OWNER = "idiolect"


class BenchPostgres:
    def __init__(self, settings: tuple[str, ...] = DURABLE) -> None:
        """Raises ConfigurationError if no Postgres starts here."""
        self._home = Path(tempfile.mkdtemp(prefix="idio-pg-"))  # short: a socket path has at most 107 characters
        self._as_user = _unprivileged() if os.geteuid() == 0 else {}
        self._home.chmod(0o755)
        try:
            self._binaries, self._process = self._start(settings)
            self.execute(f"CREATE ROLE {_OWNER} LOGIN")
        except BaseException:
            shutil.rmtree(self._home, ignore_errors=True)
            raise

    def create_database(self, name: str) -> str:
        """Its URL, as an ordinary user who owns it: a superuser is not bound by row-level security."""
        self._run(self._binaries / "createdb", "-h", self._home / "run", "-U", "postgres", "-O", _OWNER, name)
        return f"postgresql://{_OWNER}@/{name}?host={self._home / 'run'}"

    def execute(self, statement: str) -> None:
        """As the superuser, outside any database that was created. Raises subprocess.SubprocessError."""
        self.ask(statement)

    def ask(self, query: str, database: str = "postgres") -> list[str]:
        """Its rows. As `execute`."""
        where = ("-h", self._home / "run", "-U", "postgres")
        return self._run(self._binaries / "psql", *where, "-At", "-c", query, database).splitlines()

    def data_bytes(self) -> int:
        """Of all databases, without the write-ahead log."""
        return sum(file.stat().st_size for file in (self._home / "data" / "base").rglob("*") if file.is_file())

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # "immediate": nothing of it is kept
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _start(self, settings: tuple[str, ...]) -> tuple[Path, subprocess.Popen[bytes]]:
        failures = []
        for found in _installations():
            try:
                binaries = self._reachable(found)
                return binaries, self._start_from(binaries, settings)
            except (OSError, subprocess.SubprocessError, TimeoutError) as error:
                failures.append(f"{found}: {error}")
        raise ConfigurationError(
            f"no Postgres starts here ({'; '.join(failures) or 'none was found'}).", mend="Run: pip install pgserver."
        )

    def _reachable(self, binaries: Path) -> Path:
        """A copy of the wheel, if it lies where the unprivileged user can't go (such as under /root)."""
        package, copy = binaries.parents[1], self._home / "copy"
        try:
            self._run(binaries / "initdb", "--version")
        except (OSError, subprocess.SubprocessError):
            if package.name != "pgserver":
                raise
            for folder in (package, package.with_name(f"{package.name}.libs")):  # a wheel keeps its libraries beside it
                if folder.exists():
                    shutil.copytree(folder, copy / folder.name)
            return copy / package.name / binaries.relative_to(package)
        return binaries

    def _start_from(self, binaries: Path, settings: tuple[str, ...]) -> subprocess.Popen[bytes]:
        data, run = self._home / "data", self._home / "run"
        for folder in (data, run):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            if self._as_user:
                os.chown(folder, self._as_user["user"], self._as_user["group"])
        initdb = (binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self._run(*initdb, cwd=run)
        told = [part for setting in settings for part in ("-c", setting)]
        command = [str(part) for part in (binaries / "postgres", "-D", data, "-k", run, *told)]
        with (self._home / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=run, **self._as_user)  # noqa: S603  fixed
        self._wait(process, data / "postmaster.pid")
        return process

    def _wait(self, process: subprocess.Popen[bytes], status: Path) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and process.poll() is None:
            if status.exists() and "ready" in status.read_text():
                return
            time.sleep(0.05)
        process.kill()
        process.wait()
        raise TimeoutError((self._home / "log").read_text()[-500:])

    def _run(self, *command: object, cwd: Path | None = None) -> str:
        words = [str(word) for word in command]
        options: Mapping[str, Any] = {"timeout": _START_S, "cwd": cwd, **self._as_user}
        done = subprocess.run(words, check=True, capture_output=True, **options)  # noqa: S603  fixed
        return str(done.stdout, "utf-8", "replace")


def _unprivileged() -> Mapping[str, Any]:
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _installations() -> Iterator[Path]:
    wheel = importlib.util.find_spec("pgserver")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(folder) / "pginstall" / "bin"
    if system := shutil.which("postgres"):
        yield Path(system).resolve().parent
