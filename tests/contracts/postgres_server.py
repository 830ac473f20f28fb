"""A real Postgres for tests: from the `pgserver` wheel, else the system's, as root or not.

Only the wheel's binaries are used. Its own launcher makes a system user and opens the permissions of every folder on
the way; here a root run starts the server as `nobody` in a temporary folder instead.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

_SETTINGS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB", "listen_addresses=")

_OWNER = "app"


class PostgresServer:
    """Listens on a socket in its own folder; nothing outlives `stop`."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="idio-pg-"))  # short: a socket path has at most 107 characters
        self._as_user = _unprivileged() if os.geteuid() == 0 else {}
        self._home.chmod(0o755)
        try:
            self._process = self._start()
        except BaseException:
            shutil.rmtree(self._home)
            raise

    def url(self, database: str) -> str:
        """As the user that owns the databases: an ordinary one, whom row-level security binds."""
        return f"postgresql://{_OWNER}@/{database}?host={self._home / 'run'}"

    def run(self, *command: str, **environment: str) -> None:
        """A program that finds psql, and this server under its defaults. Raises subprocess.SubprocessError."""
        paths = {"PATH": f"{self._binaries}:{os.environ['PATH']}", "PGHOST": str(self._home / "run")}
        subprocess.run(command, check=True, capture_output=True, timeout=60, env=os.environ | paths | environment)

    def admin_url(self, database: str = "postgres") -> str:
        """As the superuser."""
        return f"postgresql://postgres@/{database}?host={self._home / 'run'}"

    def create_database(self, name: str) -> str:
        with psycopg.connect(self.admin_url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER {_OWNER}".encode())
        return self.url(name)

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.admin_url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # "immediate": nothing of it is kept
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._home)

    def _start(self) -> subprocess.Popen[bytes]:
        failures = []
        for found in _installations():
            try:
                self._binaries = self._reachable(found)
                return self._start_from(self._binaries)
            except (OSError, subprocess.SubprocessError, TimeoutError) as error:
                output = getattr(error, "stderr", b"") or b""
                failures.append(f"{found}: {error} {output.decode(errors='replace')[-500:]}")
        raise RuntimeError("no Postgres starts here; install the wheel `pgserver`.\n" + "\n".join(failures))

    def _reachable(self, binaries: Path) -> Path:
        """A copy of the wheel, if it lies where the unprivileged user can't go (such as under /root)."""
        package, copy = binaries.parents[1], self._home / "copy"
        try:
            subprocess.run([binaries / "initdb", "--version"], check=True, capture_output=True, **self._as_user)
        except (OSError, subprocess.SubprocessError):
            if package.name != "pgserver":
                raise
            for folder in (package, package.with_name(f"{package.name}.libs")):  # a wheel keeps its libraries beside it
                if folder.exists():
                    shutil.copytree(folder, copy / folder.name)
            return copy / package.name / binaries.relative_to(package)
        return binaries

    def _start_from(self, binaries: Path) -> subprocess.Popen[bytes]:
        for name in ("data", "run"):
            shutil.rmtree(self._home / name, ignore_errors=True)
            (self._home / name).mkdir(mode=0o700)
            if self._as_user:
                os.chown(self._home / name, self._as_user["user"], self._as_user["group"])
        data, run = self._home / "data", self._home / "run"
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=run, timeout=60, **self._as_user)
        settings = [part for setting in _SETTINGS for part in ("-c", setting)]
        with (self._home / "log").open("wb") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", run, *settings],
                stdout=log,
                stderr=log,
                cwd=run,
                **self._as_user,
            )
        self._wait(process)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            try:
                self._create_owner()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        process.kill()
        process.wait()
        raise TimeoutError((self._home / "log").read_text()[-500:])

    def _create_owner(self) -> None:
        with psycopg.connect(self.admin_url(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {_OWNER} LOGIN".encode())


def _unprivileged() -> dict[str, Any]:
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _installations() -> Iterator[Path]:
    wheel = importlib.util.find_spec("pgserver")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(folder) / "pginstall" / "bin"
    if system := shutil.which("postgres"):
        yield Path(system).resolve().parent
