"""The http benchmark: how many warm, personal reranks of 10 cached candidates one process serves in a second.

Two real servers and a load generator, three processes on loopback. Windows of load alternate between the two servers,
so that whatever else the machine does hits both; each round of windows gives one ratio, and their median is reported.
Ours is asked for one person on all connections, which favours it, since requests that come together share the looks at
their person; and for another person on each connection.
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
from idiolect_services.bench.http_home import DOCUMENTS, DOMAIN, QUERY, USERS, make_home
from idiolect_services.training_runs import Stages

RATE, RATIO, P50, P99 = "rerank_requests_per_second", "rerank_ratio", "rerank_p50", "rerank_p99"
PEOPLE_RATE, PEOPLE_RATIO = "rerank_people_requests_per_second", "rerank_people_ratio"  # a person for each connection
UNCONFIRMED = "rerank_unconfirmed_share"  # of our answers: not personal, because the server was too busy to confirm
METRICS = (RATE, RATIO, P50, P99, PEOPLE_RATE, PEOPLE_RATIO, UNCONFIRMED)
PEER = "empty FastAPI route"
START_SECONDS, STOP_SECONDS = 180.0, 10.0


@dataclass(frozen=True, slots=True)
class Windows:
    """`rounds` of windows of `seconds`, after one of `warm_up` that does not count."""

    rounds: int = 7
    seconds: float = 3.0
    warm_up: float = 1.0
    connections: int = 8  # at most one for each of the people


@dataclass(frozen=True, slots=True)
class Window:
    rate: float  # requests per second
    p50_ms: float
    p99_ms: float
    unconfirmed: float = 0.0  # share of all answers; the figures above are of the others


@dataclass(frozen=True, slots=True)
class Round:
    """The peer's window lies between ours: with one person on all connections, and with one on each."""

    one: Window
    peer: Window
    people: Window


@dataclass(frozen=True, slots=True)
class _Load:
    requests: Sequence[bytes]  # one for each connection

    def window(self, port: int, seconds: float) -> Window:
        command = [sys.executable, "-m", "idiolect_services.bench.http_load", str(port), str(seconds)]
        requests = json.dumps([request.decode() for request in self.requests]).encode()
        done = subprocess.run(command, input=requests, stdout=subprocess.PIPE, check=True)  # noqa: S603
        return window_of(json.loads(done.stdout))


def measure(root: Path, windows: Windows, stages: Stages) -> list[Measured]:
    """The served home is a folder of its own under `root`, so that it lies on the disk that real ones lie on.

    Raises UnavailableError if a server does not come up, or ever gives another answer than a personal one.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-http-", dir=root) as folder, ExitStack() as running:
        home = make_home(Path(folder) / "home")
        bodies = [_body(user) for user in USERS[: windows.connections]]
        ours = running.enter_context(_server("ours", str(home.settings.home)))
        answer, *_ = [_first_answer(ours, body, home.secret) for body in bodies]
        answer_file = Path(folder) / "answer.json"
        answer_file.write_text(json.dumps(answer), encoding="utf-8")
        peer = running.enter_context(_server("peer", str(answer_file)))
        _first_answer(peer, bodies[0], home.secret)
        requests = [encoded(body, home.secret) for body in bodies]
        one, people = _Load(requests[:1] * len(requests)), _Load(requests)
        return summary(_alternate(ours, peer, one, people, windows, stages))


def summary(rounds: Sequence[Round]) -> list[Measured]:
    """Medians, with the smallest and largest as the spread."""
    one, peer, people = ([getattr(each, which) for each in rounds] for which in ("one", "peer", "people"))
    shares = [window.unconfirmed for window in (*one, *people)]
    return [
        _beside(RATE, "requests/s", "rate", one, peer),
        _ratio(RATIO, one, peer),
        _beside(P50, "ms", "p50_ms", one, peer),
        _beside(P99, "ms", "p99_ms", one, peer),
        _beside(PEOPLE_RATE, "requests/s", "rate", people, peer),
        _ratio(PEOPLE_RATIO, people, peer),
        Measured(UNCONFIRMED, "share", median(shares), min(shares), max(shares)),
    ]


def _beside(metric: str, unit: str, field: str, ours: Sequence[Window], peer: Sequence[Window]) -> Measured:
    mine, theirs = ([getattr(window, field) for window in windows] for windows in (ours, peer))
    paired = median(a / b for a, b in zip(mine, theirs, strict=True))
    return Measured(metric, unit, median(mine), min(mine), max(mine), PEER, median(theirs), paired)


def _ratio(metric: str, ours: Sequence[Window], peer: Sequence[Window]) -> Measured:
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(ours, peer, strict=True)]
    return Measured(metric, "x peer", median(ratios), min(ratios), max(ratios), PEER)


def _alternate(ours: int, peer: int, one: _Load, people: _Load, windows: Windows, stages: Stages) -> list[Round]:
    progress = stages.stage("windows of load")
    turns = ((one, ours), (one, peer), (people, ours))
    for load, port in turns:
        load.window(port, windows.warm_up)
    rounds = []
    for done in range(windows.rounds):
        rounds.append(Round(*(load.window(port, windows.seconds) for load, port in turns)))
        progress(done + 1, windows.rounds)
    return rounds


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


def _body(user: str) -> bytes:
    return json.dumps({"query": QUERY, "documents": DOCUMENTS, "user": user, "domain": DOMAIN}).encode()


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


def window_of(outcome: dict[str, Any]) -> Window:
    if outcome["problem"] or not outcome["latencies"]:
        raise UnavailableError(f"a window of load failed: {outcome['problem'] or 'no answer at all'}.")
    latencies, seconds, unconfirmed = outcome["latencies"], outcome["seconds"], outcome["unconfirmed"]
    p50_ms, p99_ms = (1000.0 * _quantile(latencies, share) for share in (0.5, 0.99))
    return Window(len(latencies) / seconds, p50_ms, p99_ms, unconfirmed / (unconfirmed + len(latencies)))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
