"""What compose.yaml starts, started by hand: a Postgres, a Redis, an object store, the migration and two servers, with
the same environment and the same secrets. Only the addresses differ."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from moto.server import ThreadedMotoServer
from test_compose import SERVICES, make_secrets

from idiolect.settings import load_settings
from idiolect_adapters.evaluation.random_model import random_model
from idiolect_services.bench.reset_fleet import stores
from idiolect_services.bench.reset_home import keys_url_of
from idiolect_services.wiring import open_installation

PATIENCE = 300.0  # far more than anything here takes, also on a busy machine
DOCUMENTS = [f"Answer {number}: write to us within {number} days." for number in range(5)]
CODE = [str(Path(__file__).parents[2] / folder) for folder in ("platform", "adapters", "services")]


@dataclass
class Installed:
    """`secrets` is the mounted folder; every process has a home of its own, as every container has a volume."""

    root: Path
    secrets: Path
    s3_url: str
    ports: dict[str, int] = field(default_factory=dict)

    def environment(self, service: str) -> dict[str, str]:
        """That of compose.yaml, with our addresses."""
        said = dict(SERVICES[service]["environment"])
        for variable, here in {
            "IDIOLECT_HOME": str(self.root / service),
            "IDIOLECT_SECRETS_DIR": str(self.secrets),
            "AWS_ENDPOINT_URL": self.s3_url,
            "IDIOLECT_HOST": "127.0.0.1",
        }.items():
            assert variable in said
            said[variable] = here
        (self.root / "tmp").mkdir(exist_ok=True)
        writable = f"{self.root / service}:{self.root / 'tmp'}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IDIOLECT_", "AWS_"))}
        path = os.pathsep.join([str(self.root / "read-only"), *CODE])
        ours = {"PYTHONPATH": path, "ONLY_WRITABLE": writable, "TMPDIR": str(self.root / "tmp"), "HOME": "/nowhere"}
        return kept | said | ours | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    def run(self, service: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "idiolect_services", *arguments]
        environment = self.environment(service) | changes
        return subprocess.run(
            command, env=environment, cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    @contextmanager
    def server(self, service: str) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.ports[service] = free.getsockname()[1]
        environment = self.environment(service) | {"IDIOLECT_PORT": str(self.ports[service])}
        command = [sys.executable, "-m", "idiolect_services", *(SERVICES[service].get("command") or ["serve"])]
        with (self.root / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd="/", stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)
            said = (self.root / f"{service}.log").read_text()
            assert "Traceback" not in said, said

    def send(self, service: str, key: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[service]}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def status(self, service: str, key: str, path: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[service]}{path}", headers={"Authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def eventually(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """All that the servers depend on; the migration ran, and a global model is live that only the administrator's
    machine has on its disk."""
    root = tmp_path_factory.mktemp("installed")
    (root / "read-only").mkdir()
    shutil.copy(Path(__file__).with_name("only_home_is_writable.py"), root / "read-only" / "sitecustomize.py")
    secrets = root / "secrets"
    make_secrets(secrets)
    with ExitStack() as running, pytest.MonkeyPatch.context() as patch:
        _postgres, database_url, redis = running.enter_context(stores())
        s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        s3.start()
        running.callback(s3.stop)
        host, port = s3.get_host_and_port()
        addresses = {"database": database_url, "keys": keys_url_of(database_url), "redis": redis.url}
        for name, address in ((f"idiolect_{store}_url", address) for store, address in addresses.items()):
            (secrets / name).chmod(0o644)
            (secrets / name).write_text(address)
        installed = Installed(root, secrets, f"http://{host}:{port}")
        httpx.put(f"{installed.s3_url}/idiolect", timeout=PATIENCE).raise_for_status()
        for name, value in installed.environment("admin").items():
            if name.startswith(("IDIOLECT_", "AWS_")):
                patch.setenv(name, value)
        settings = load_settings()
        with open_installation(settings) as installation:
            model = random_model(installation.models)
            now = installation.clock.now()
            installation.store.set_global(model.digest, now, reason="test", actor="test")
        migrated = installed.run("admin", "migrate")  # also sends the model to the object store
        assert migrated.returncode == 0, migrated.stderr
        yield installed


@pytest.fixture(scope="module")
def servers(prepared: Installed) -> Iterator[Installed]:
    names = ("replica-1", "replica-2")
    with ExitStack() as running:
        for name in names:
            running.enter_context(prepared.server(name))
        for name in names:
            up = eventually(lambda name=name: prepared.status(name, "", "/readyz") == 200)  # type: ignore[misc]
            assert up, (prepared.root / f"{name}.log").read_text()
        yield prepared


@pytest.fixture(scope="module")
def key(servers: Installed) -> tuple[str, str]:
    """(id, secret) of a key that was made as an operator makes one."""
    scopes = [part for scope in ("infer", "feedback", "controls") for part in ("--scope", scope)]
    made = servers.run("admin", "keys", "create", "acme", *scopes)
    assert made.returncode == 0, made.stderr
    words = made.stdout.split()
    return words[2].rstrip(","), words[-1]


def test_a_person_opts_in_at_one_server_learns_at_both_and_is_forgotten_by_both(
    servers: Installed, key: tuple[str, str]
) -> None:
    one, two, secret = "replica-1", "replica-2", key[1]
    ask = {"query": "Where is my order?", "documents": DOCUMENTS, "user": "ann"}
    servers.send(one, secret, "PUT", "/v1/users/ann/personalization", {"opted_in": True})
    ranked = servers.send(two, secret, "POST", "/v1/rerank", ask)
    assert (ranked["personalization"]["applied"], ranked["personalization"]["generation"]) == (False, 0)
    before = {result["index"]: result["score"] for result in ranked["results"]}
    liked = {"inference_id": ranked["id"], "user": "ann", "kind": "choice", "value": 3}
    assert servers.send(one, secret, "POST", "/v1/feedback", liked)["status"] == "accepted"
    for name in (one, two):
        assert eventually(
            lambda name=name: servers.send(name, secret, "POST", "/v1/rerank", ask)["personalization"]["applied"]  # type: ignore[misc]
        )
    receipt = servers.send(two, secret, "POST", "/v1/users/ann/personalization/reset", {"scope": "all"})
    assert (receipt["generation"], receipt["served"]) == (1, "confirmed")
    again = servers.send(one, secret, "POST", "/v1/rerank", ask)
    assert (again["personalization"]["applied"], again["personalization"]["adapter"]) == (False, None)
    assert {result["index"]: result["score"] for result in again["results"]} == before


def test_both_servers_have_the_global_model_from_the_object_store(servers: Installed) -> None:
    models = [sorted(path.name for path in (servers.root / name / "models").iterdir()) for name in servers.ports]
    assert models[0] == models[1] == sorted(path.name for path in (servers.root / "admin" / "models").iterdir())


def test_metrics_open_with_the_token_that_is_mounted_and_with_no_other(
    servers: Installed, key: tuple[str, str]
) -> None:
    token = (servers.secrets / "idiolect_metrics_token").read_text()
    for name in servers.ports:
        assert servers.status(name, token, "/metrics") == 200
        assert servers.status(name, key[1], "/metrics") == 404


def test_a_key_that_is_revoked_is_refused_by_both_servers(servers: Installed, key: tuple[str, str]) -> None:
    """That each looks again after half a second is in the tests of the gateway; here, that both do."""
    path = "/v1/users/ann/personalization"
    assert {servers.status(name, key[1], path) for name in servers.ports} == {200}
    assert servers.run("admin", "keys", "revoke", key[0]).returncode == 0
    for name in servers.ports:
        assert eventually(lambda name=name: servers.status(name, key[1], path) == 401)  # type: ignore[misc]


def test_nothing_is_kept_in_the_homes_that_is_secret(servers: Installed) -> None:
    for name in (*servers.ports, "admin"):
        assert not (servers.root / name / "secrets").exists()


def test_a_server_with_a_master_key_of_its_own_does_not_start_and_says_why(prepared: Installed, tmp_path: Path) -> None:
    other = tmp_path / "secrets"
    shutil.copytree(prepared.secrets, other)
    (other / "master.key").chmod(0o644)
    (other / "master.key").write_bytes(b"\x09" * 32)
    done = prepared.run("replica-1", "migrate", IDIOLECT_SECRETS_DIR=str(other))
    assert done.returncode == 1
    assert "the master key is not the one that this database was made with" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_guard_of_this_test_refuses_writes_elsewhere(prepared: Installed, tmp_path: Path) -> None:
    code = f"from pathlib import Path; Path({str(tmp_path / 'x')!r}).write_text('x')"
    environment = prepared.environment("replica-1")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "Read-only file system" in done.stderr
    assert not (tmp_path / "x").exists()
