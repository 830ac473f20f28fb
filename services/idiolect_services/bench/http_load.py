"""One window of load, from a process of its own: fixed requests over a few keep-alive connections, as fast as it goes.

    python -m idiolect_services.bench.http_load PORT SECONDS < requests

Reads a JSON list with the request of each connection, and writes one JSON object. An answer counts only if its status
is 200 and its body holds PROOF. One that says UNCONFIRMED, which a server may give that is too busy to confirm a person
in time, is counted apart. The first connection that sees any other one ends the window. Only the standard library, and
no HTTP client: on two cores the generator must cost less than what it measures.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

PROOF = b'"applied":true'
UNCONFIRMED = b'"reason":"unconfirmed"'
OK = b"HTTP/1.1 200 "
MAX_ANSWERS = 1_000_000
GRACE_SECONDS = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Window:
    """`finished` gets the first thing that went wrong, or None at the end of the time."""

    ends: float
    finished: asyncio.Future[str | None]
    open: int = 0
    latencies: list[float] = field(default_factory=list)
    unconfirmed: int = 0

    def fail(self, why: str) -> None:
        if not self.finished.done():
            self.finished.set_result(why)

    def answered(self, latency: float | None) -> bool:
        """Whether to send the next request. `latency`: None if the answer does not count."""
        if latency is None:
            self.unconfirmed += 1
        else:
            self.latencies.append(latency)
        return time.perf_counter() < self.ends and len(self.latencies) < MAX_ANSWERS and not self.finished.done()

    def left(self) -> None:
        self.open -= 1
        if self.open == 0 and not self.finished.done():
            self.finished.set_result(None)


class Connection(asyncio.Protocol):
    """Sends its request again and again, one at a time."""

    def __init__(self, window: Window, request: bytes) -> None:
        self._window = window
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._window.open += 1
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._window.fail(f"the server closed a connection: {exc}")

    def data_received(self, data: bytes) -> None:
        self._received += data
        size = answer_size(self._received)
        if size is None or len(self._received) < size:
            return
        answer, self._received = self._received, b""
        counts = PROOF in answer
        if len(answer) > size or not answer.startswith(OK) or not (counts or UNCONFIRMED in answer):
            self._window.fail(f"an answer is not the expected one: {answer[:300]!r}")
        elif self._window.answered(time.perf_counter() - self._sent if counts else None):
            self._send()
        else:
            self._window.left()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        self._transport.write(self._request)


def answer_size(received: bytes) -> int | None:
    """Of head and body together; None until the head is complete."""
    head = received.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = _LENGTH.search(received, 0, head + 2)
    return head + 4 + (int(length.group(1)) if length else 0)


async def run_window(port: int, seconds: float, requests: Sequence[bytes]) -> dict[str, object]:
    """One connection for each of the requests."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    window = Window(began + seconds, loop.create_future())
    transports = [
        (await loop.create_connection(partial(Connection, window, request), "127.0.0.1", port))[0]
        for request in requests
    ]
    try:
        problem = await asyncio.wait_for(window.finished, seconds + GRACE_SECONDS)
    except TimeoutError:
        problem = f"no answer came for {GRACE_SECONDS:.0f} s"
    took = time.perf_counter() - began
    for transport in transports:
        transport.abort()
    latencies = sorted(window.latencies)
    return {"problem": problem, "seconds": took, "latencies": latencies, "unconfirmed": window.unconfirmed}


if __name__ == "__main__":
    requests = [request.encode() for request in json.load(sys.stdin)]
    outcome = asyncio.run(run_window(int(sys.argv[1]), float(sys.argv[2]), requests))
    json.dump(outcome, sys.stdout)
