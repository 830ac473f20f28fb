"""The server processes of the reset benchmark: forked from one that has everything imported, so that one that was
killed is back at once.

    python -m idiolect_services.bench.reset_servers HOME DATABASE_URL REDIS_URL FD...

Each line `INDEX KIND` on its input starts a server on the INDEX-th of the listening sockets; it answers with the
server's process id. `planted` servers are wrong on purpose. All end with the input.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from idiolect.stores.ports import RecordOutcome, ShownInference
from idiolect_services.bench.reset_home import replica_name, replica_settings
from idiolect_services.serving import create_server_app, server_for
from idiolect_services.wiring import open_installation

STALE_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


def main(home: str, database_url: str, redis_url: str, descriptors: Sequence[str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that were killed
    listeners = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors]
    for line in sys.stdin:
        index, kind = line.split()
        started = os.fork()
        if started == 0:
            try:
                named = f"{database_url}&application_name={replica_name(int(index))}"
                _serve(Path(home), named, redis_url, listeners[int(index)], planted=kind == "planted")
            finally:
                os._exit(1)
        print(started, flush=True)


def _serve(home: Path, database_url: str, redis_url: str, listener: socket.socket, *, planted: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    logging.getLogger("idiolect").setLevel(logging.ERROR)  # that stores are out of reach is what is wanted here
    # Those that are wrong do without Redis, where what they would remember is deleted before most are asked again.
    settings = replica_settings(home, database_url, None if planted else redis_url)
    with open_installation(settings) as installation:
        if planted:
            believe_the_cache(installation.store)
        server_for(create_server_app(installation)).run(sockets=[listener])


def believe_the_cache(store: Any) -> None:
    """The planted fault: what was read of a person is believed for a while, as a server with a cache would."""

    def recorded(shown: Sequence[ShownInference]) -> Sequence[RecordOutcome]:
        return ["recorded"] * len(shown)

    resolve, subject = _stale(store.resolve), _stale(store.subject)
    store.resolve, store.subject, store.record_inferences = resolve, subject, recorded
    store.resolve_each = lambda asked: [resolve(*one) for one in asked]
    store.subject_each = lambda asked: [subject(*one) for one in asked]


def _stale(read: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[tuple[Any, ...], tuple[float, Any]] = {}

    def cached(*key: Any) -> Any:
        now = time.monotonic()
        if key not in known or now - known[key][0] > STALE_SECONDS:
            known[key] = (now, read(*key))
        return known[key][1]

    return cached


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
