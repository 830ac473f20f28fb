"""The load of the load benchmark. Run by locust's own Python, so it imports nothing of Idiolect.

    python peer_locust.py < plan.json > outcome.json

The plan: {port, server, secret, domain, users: [str], callers, phases: [[rate, seconds], ...]}. Calls are due at random
moments, `rate` of them a second (Poisson), whatever became of those before: whoever of the `callers` is free makes the
next one. Where `rate` is null, every caller makes one after the other without a pause. Each has a connection of its
own, to loopback and nothing else.

The outcome: {"calls": [[due, sent, came, kind, status, clear, right, said], ...], "cores": [[ours, theirs], ...]}. The
three times are seconds since the first phase began; status 0: no answer came; `clear`: a refusal has a Retry-After;
`right`: what came is an answer to what was asked; `said`: what it says of personalization. `cores`: processor time for
each second of each phase, of this process and of the one with the id `server`.

The client is as thin as it may be, because on two cores the generator must cost less than what it measures.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Importing it makes sockets and sleeps of this process cooperative.
from locust import User, task  # type: ignore[import-not-found,unused-ignore]
from locust.env import Environment  # type: ignore[import-not-found,unused-ignore]
from locust.exception import StopUser  # type: ignore[import-not-found,unused-ignore]

QUERIES = 20
WARM_DOCUMENTS, NEW_DOCUMENTS = 10, 3
MAX_CALLS = 2_000_000
TIMEOUT_S = 60.0
MOST_SHOWN = 1000
KNOWN_TEXTS = [f"Answer {n}: write to us within {n} days." for n in range(WARM_DOCUMENTS)]
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n")


@dataclass(frozen=True)
class Reply:
    """`head` is in lower case."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def clear(self) -> bool:
        return b"\r\nretry-after:" in self.head


class Connection:
    """One request at a time; opened when it is needed, and anew where the server has closed it after an answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> Reply:
        """Raises OSError or ValueError if no whole answer comes: nothing is tried twice."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request)
            reply = self._reply(self._socket)
        except BaseException:
            self.close()
            raise
        if b"\r\nconnection: close" in reply.head:
            self.close()
        return reply

    def _reply(self, connected: socket.socket) -> Reply:
        received, size = b"", None
        while size is None or len(received) < size:
            more = connected.recv(65536)
            if not more:
                raise ConnectionError("the server closed the connection instead of answering")
            received += more
            end = received.find(b"\r\n\r\n") + 4
            if size is None and end >= 4:
                head = received[:end].lower()
                length = _LENGTH.search(head)
                if not head.startswith(b"http/1.1 ") or length is None:
                    raise ValueError("an answer that can't be read")
                size = end + int(length.group(1))
        if len(received) > size:
            raise ValueError("more than an answer")
        return Reply(head, received[end:])

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass
class Run:
    """What all callers of one run share."""

    plan: dict[str, Any]
    # So that texts which are meant to be new differ from those of earlier runs.
    name: str = field(default_factory=lambda: str(time.time_ns()))
    calls: list[list[Any]] = field(default_factory=list)
    cores: list[list[float]] = field(default_factory=list)
    shown: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MOST_SHOWN))  # (user, inference)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.random = random.Random(self.name)  # noqa: S311
        self.dues = due_times(self.plan["phases"], self.random, self.clock)
        self.began = time.monotonic()

    def clock(self) -> float:
        return time.monotonic() - self.began

    def made(self, call: list[Any]) -> None:
        if len(self.calls) < MAX_CALLS:
            self.calls.append(call)


def due_times(phases: Sequence[Any], chance: random.Random, clock: Any) -> Iterator[float]:
    """When each call is due, one after the other; where there is no rate, whenever somebody asks."""
    ends = 0.0
    for rate, seconds in phases:
        due, ends = ends, ends + seconds
        while True:
            due = clock() if rate is None else due + chance.expovariate(rate)
            if due >= ends:
                break
            yield due


class Caller(User):  # type: ignore[misc]
    """What is called, and how often: the weights of the tasks."""

    abstract = True
    planned: Run  # of its subclass

    def on_start(self) -> None:
        self.connection = Connection(self.planned.plan["port"])
        time.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Until the next call that nobody else has taken. One that is late is made at once."""
        self.due = next(self.planned.dues, None)
        return 0.0 if self.due is None else max(0.0, self.due - self.planned.clock())

    def on_stop(self) -> None:
        self.connection.close()

    def call(self, kind: str, method: str, path: str, body: Any = None, *, scores: str = "", count: int = 0) -> Any:
        """The answer if it is good: one with `count` entries under `scores`."""
        if self.due is None:
            raise StopUser
        request = self.encoded(method, path, body)
        due, sent = self.due, self.planned.clock()
        status, clear, answer, right = 0, False, None, True
        try:
            reply = self.connection.ask(request)
            status, clear = reply.status, reply.clear
            if 200 <= status < 300:
                answer = read(reply.body, scores, count)
                right = answer is not None
        except (OSError, ValueError):
            pass
        finally:  # also if it is cut off
            times = [round(moment, 4) for moment in (due, sent, self.planned.clock())]
            said = answer["personalization"]["reason"] if scores and answer else ""
            self.planned.made([*times, kind, status, clear, right, said])
        return answer

    def encoded(self, method: str, path: str, body: Any) -> bytes:
        data = b"" if body is None else json.dumps(body).encode()
        length = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
        key = f"Host: 127.0.0.1\r\nAuthorization: Bearer {self.planned.plan['secret']}\r\n"
        return f"{method} {path} HTTP/1.1\r\n{key}{length}\r\n".encode() + data

    def anybody(self) -> str:
        return str(self.planned.random.choice(self.planned.plan["users"]))

    def rank(self, kind: str, documents: list[str]) -> None:
        user = self.anybody()
        query = f"How do I get order {self.planned.random.randrange(QUERIES)} replaced?"
        body = {"query": query, "documents": documents, "user": user, "domain": self.planned.plan["domain"]}
        answer = self.call(kind, "POST", "/v1/rerank", body, scores="results", count=len(documents))
        if answer and answer["id"]:
            self.planned.shown.append((user, answer["id"]))

    @task(60)  # type: ignore[untyped-decorator,unused-ignore]
    def rerank_known_texts(self) -> None:
        self.rank("rerank_known", KNOWN_TEXTS)

    @task(15)  # type: ignore[untyped-decorator,unused-ignore]
    def rerank_new_texts(self) -> None:
        number = f"{self.planned.name}-{next(self.planned.numbers)}"
        self.rank("rerank_new", [f"Offer {n} of {number}: we send it again." for n in range(NEW_DOCUMENTS)])

    @task(12)  # type: ignore[untyped-decorator,unused-ignore]
    def feedback(self) -> None:
        """On what somebody was shown last."""
        if not self.planned.shown:
            self.rank("rerank_known", KNOWN_TEXTS)
            return
        user, inference = self.planned.shown.pop()
        value = self.planned.random.randrange(NEW_DOCUMENTS)
        signal = {"inference_id": inference, "user": user, "kind": "choice", "value": value}
        self.call("feedback", "POST", "/v1/feedback", signal)

    @task(6)  # type: ignore[untyped-decorator,unused-ignore]
    def read_consent(self) -> None:
        self.call("consent", "GET", f"/v1/users/{self.anybody()}/personalization")

    @task(5)  # type: ignore[untyped-decorator,unused-ignore]
    def score(self) -> None:
        body = {"query": "How do I get order 0 replaced?", "documents": KNOWN_TEXTS}
        self.call("score", "POST", "/v1/score", body, scores="data", count=len(KNOWN_TEXTS))

    @task(2)  # type: ignore[untyped-decorator,unused-ignore]
    def reset(self) -> None:
        path = f"/v1/users/{self.anybody()}/personalization/reset"
        self.call("reset", "POST", path, {"scope": "adapter"})


def read(body: bytes, scores: str, count: int) -> dict[str, Any] | None:
    """A good answer, or None if it is not one to what was asked: an object, in which each of the `count` texts has its
    score under `scores`, if there is such a name."""
    with suppress(ValueError, KeyError, TypeError):
        answer = json.loads(body)
        entries = answer[scores] if scores else ()
        whole = {entry["index"] for entry in entries} == set(range(count)) and len(entries) == count
        finite = all(-1e30 < entry["score"] < 1e30 for entry in entries)
        if isinstance(answer, dict) and whole and finite and (not scores or answer["personalization"]["reason"]):
            return answer
    return None


def watch(planned: Run) -> None:
    """How busy the cores are, phase by phase."""
    processes, ends = (os.getpid(), planned.plan["server"]), 0.0
    for _, seconds in planned.plan["phases"]:
        before, ends = [used(process) for process in processes], ends + seconds
        time.sleep(max(0.0, ends - planned.clock()))
        after = [used(process) for process in processes]
        planned.cores.append([round((b - a) / seconds, 3) for a, b in zip(before, after, strict=True)])


def used(process: int) -> float:
    """Seconds of processor time so far, of all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def callers_of(run: Run) -> type[Caller]:
    return type("PlannedCaller", (Caller,), {"planned": run})


def run(plan: dict[str, Any]) -> dict[str, Any]:
    planned = Run(plan)
    runner = Environment(user_classes=[callers_of(planned)]).create_local_runner()
    planned.began = time.monotonic()
    runner.start(plan["callers"], spawn_rate=plan["callers"])
    watch(planned)
    runner.spawning_greenlet.join()
    runner.user_greenlets.join(timeout=TIMEOUT_S)  # who still waits for an answer
    runner.stop()
    return {"calls": planned.calls, "cores": planned.cores}


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # a task that fails says so
    json.dump(run(json.load(sys.stdin)), sys.stdout)
