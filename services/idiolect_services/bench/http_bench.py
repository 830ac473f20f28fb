"""The http benchmark: how many warm, personal reranks of 10 cached candidates one process serves in a second.

Two real servers and a load generator, three processes on loopback. Windows of load alternate between the two servers,
so that whatever else the machine does hits both; each pair of windows gives one ratio, and their median is reported.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from idiolect.errors import UnavailableError
from idiolect_services.bench.form import Measured
from idiolect_services.bench.http_home import DOCUMENTS, DOMAIN, QUERY, USER, make_home
from idiolect_services.training_runs import Stages

RATE, RATIO, P50, P99 = "rerank_requests_per_second", "rerank_ratio", "rerank_p50", "rerank_p99"
UNCONFIRMED = "rerank_unconfirmed_share"  # of our answers: not personal, because the server was too busy to confirm
METRICS = (RATE, RATIO, P50, P99, UNCONFIRMED)
PEER = "empty FastAPI route"
START_SECONDS, STOP_SECONDS = 180.0, 10.0


@dataclass(frozen=True, slots=True)
class Windows:
    """`rounds` windows of `seconds` on each server, after one of `warm_up` that does not count."""

    rounds: int = 7
    seconds: float = 3.0
    warm_up: float = 1.0
    connections: int = 8


@dataclass(frozen=True, slots=True)
class Window:
    rate: float  # requests per second
    p50_ms: float
    p99_ms: float
    unconfirmed: float = 0.0  # share of all answers; the figures above are of the others


def measure(root: Path, windows: Windows, stages: Stages) -> list[Measured]:
    """The served home is a folder of its own under `root`, so that it lies on the disk that real ones lie on.

    Raises UnavailableError if a server does not come up, or ever gives another answer than a personal one.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-http-", dir=root) as folder, ExitStack() as running:
        home = make_home(Path(folder) / "home")
        body = json.dumps({"query": QUERY, "documents": DOCUMENTS, "user": USER, "domain": DOMAIN}).encode()
        ours = running.enter_context(_server("ours", str(home.settings.home)))
        answer = _first_answer(ours, body, home.secret)
        answer_file = Path(folder) / "answer.json"
        answer_file.write_text(json.dumps(answer), encoding="utf-8")
        peer = running.enter_context(_server("peer", str(answer_file)))
        _first_answer(peer, body, home.secret)
        return _alternate(ours, peer, body, home.secret, windows, stages)


def summary(pairs: Sequence[tuple[Window, Window]]) -> list[Measured]:
    """From (ours, peer) windows: medians, with the smallest and largest as the spread."""
    ratios = [ours.rate / peer.rate for ours, peer in pairs]
    measured = [Measured(RATIO, "x peer", median(ratios), min(ratios), max(ratios), PEER)]
    for metric, unit, field in ((RATE, "requests/s", "rate"), (P50, "ms", "p50_ms"), (P99, "ms", "p99_ms")):
        mine, theirs = ([getattr(pair[side], field) for pair in pairs] for side in (0, 1))
        paired = median(a / b for a, b in zip(mine, theirs, strict=True))
        measured.append(Measured(metric, unit, median(mine), min(mine), max(mine), PEER, median(theirs), paired))
    shares = [ours.unconfirmed for ours, _ in pairs]
    measured.append(Measured(UNCONFIRMED, "share", median(shares), min(shares), max(shares)))
    return sorted(measured, key=lambda one: METRICS.index(one.metric))


def _alternate(ours: int, peer: int, body: bytes, secret: str, windows: Windows, stages: Stages) -> list[Measured]:
    progress = stages.stage("windows of load")
    for port in (ours, peer):
        _window(port, body, secret, windows.warm_up, windows.connections)
    pairs = []
    for done in range(windows.rounds):
        mine, theirs = (_window(port, body, secret, windows.seconds, windows.connections) for port in (ours, peer))
        pairs.append((mine, theirs))
        progress(done + 1, windows.rounds)
    return summary(pairs)


@contextmanager
def _server(kind: str, argument: str) -> Iterator[int]:
    """A server process; yields its port."""
    with server_process(kind, argument) as (port, _pid):
        yield port


@contextmanager
def server_process(kind: str, argument: str, environment: Mapping[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """Yields its port and process id. The socket is open before the process starts, so no port can be lost."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port: int = listener.getsockname()[1]
        module = "idiolect_services.bench.http_servers"
        command = [sys.executable, "-m", module, kind, str(listener.fileno()), argument]
        # Its standard input never says anything; that it ends tells the server that we are gone, however we went.
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], env=os.environ | dict(environment or {})
        )
    try:
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()


def _first_answer(port: int, body: bytes, secret: str) -> dict[str, Any]:
    """Wait until the server answers; it must do so personally."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/rerank", body, _headers(secret), method="POST")
    try:
        # The socket listens already: the kernel holds the connection until the server takes it.
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:  # noqa: S310  http, on loopback
            answer: dict[str, Any] = json.load(response)
    except (urllib.error.URLError, OSError) as error:
        raise UnavailableError(
            f"the benchmark's server did not answer: {error}.", mend="See its output above."
        ) from error
    if len(answer["results"]) != len(DOCUMENTS) or not answer["personalization"]["applied"]:
        raise UnavailableError(f"the benchmark's server does not personalise: {answer['personalization']}.")
    return answer


def _headers(secret: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}


def encoded(body: bytes, secret: str) -> bytes:
    """The request as bytes on the wire."""
    headers = {"Host": "127.0.0.1", **_headers(secret), "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /v1/rerank HTTP/1.1\r\n{head}\r\n".encode() + body


def _window(port: int, body: bytes, secret: str, seconds: float, connections: int) -> Window:
    command = [sys.executable, "-m", "idiolect_services.bench.http_load", str(port), str(seconds), str(connections)]
    done = subprocess.run(command, input=encoded(body, secret), stdout=subprocess.PIPE, check=True)  # noqa: S603
    return window_of(json.loads(done.stdout))


def window_of(outcome: dict[str, Any]) -> Window:
    if outcome["problem"] or not outcome["latencies"]:
        raise UnavailableError(f"a window of load failed: {outcome['problem'] or 'no answer at all'}.")
    latencies, seconds, unconfirmed = outcome["latencies"], outcome["seconds"], outcome["unconfirmed"]
    p50_ms, p99_ms = (1000.0 * _quantile(latencies, share) for share in (0.5, 0.99))
    return Window(len(latencies) / seconds, p50_ms, p99_ms, unconfirmed / (unconfirmed + len(latencies)))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
