"""The demo's server in a thread of this process, and its key."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from idiolect.errors import UnavailableError
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_services.demo.prepare import TENANT
from idiolect_services.serving import server_for
from idiolect_services.wiring import Installation

START_SECONDS = 30.0
KEY_FILE = "demo-api-key"


@contextmanager
def running(app: FastAPI, listener: socket.socket) -> Iterator[threading.Thread]:
    """Serve until the block is left; the thread ends early only if the server fails."""
    server = server_for(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise UnavailableError("the server did not start.", mend="See the lines above, or run: idiolect doctor.")
        time.sleep(0.02)
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join()


def demo_key(installation: Installation) -> str:
    """A key with all scopes but admin, kept in a file only its owner can read, so that every start prints the same
    lines.
    """
    path = installation.root / "secrets" / KEY_FILE
    if path.exists() and installation.store.authenticate(hash_secret(secret := path.read_text().strip())):
        return secret
    secret = new_secret()
    now = installation.clock.now()
    installation.store.create_tenant(TENANT, now)
    scopes = [Scope.INFER, Scope.FEEDBACK, Scope.CONTROLS, Scope.REGISTRY]
    installation.store.create_key(TENANT, scopes, hash_secret(secret), now)
    staging = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secret)
    staging.replace(path)
    return secret
