"""The clients of the reset benchmark: one event loop that asks, and writes down in exactly which order it was answered.

An acknowledgement counts only after every answer that had arrived when it did was written down. So an answer that
stands behind it was sent after the client knew of the reset, and no tolerance is needed anywhere.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from idiolect_services.bench.http_load import answer_size
from idiolect_services.bench.reset_checker import Acknowledged, Answered, Event, Published
from idiolect_services.bench.reset_home import DOCUMENTS, DOMAIN, QUERY

HANG_SECONDS = 3.0  # longer than any pause, so that what a paused server still answers is seen
RESET_PATIENCE_SECONDS = 0.4  # then another server is asked as well
RETRY_SECONDS = 0.02

OnAnswer = Callable[[int, bytes], None]  # (status, or 0 if none came; body)


class Line(asyncio.Protocol):
    """A connection to one server, with at most one request under way. Opens itself again when it was lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._on_answer: OnAnswer | None = None
        self._sent_at = 0.0

    @property
    def free(self) -> bool:
        return self._transport is not None and self._on_answer is None

    def hangs(self, now: float) -> bool:
        return self._on_answer is not None and now - self._sent_at > HANG_SECONDS

    async def open(self) -> None:
        if self._transport is None:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: self, "127.0.0.1", self._port)

    def ask(self, request: bytes, on_answer: OnAnswer) -> None:
        assert self.free
        assert self._transport is not None
        self._on_answer, self._sent_at = on_answer, time.monotonic()
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._received = transport, b""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  named by asyncio
        self._transport = None
        self._answer(0, b"")

    def data_received(self, data: bytes) -> None:
        self._received += data
        size = answer_size(self._received)
        if size is not None and len(self._received) >= size:
            answer, self._received = self._received[:size], self._received[size:]
            head, _, body = answer.partition(b"\r\n\r\n")
            self._answer(int(head.split(b" ", 2)[1]), body)

    def _answer(self, status: int, body: bytes) -> None:
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(status, body)


@dataclass
class Journal:
    """What was seen, in order; `acknowledged` are the milliseconds from a reset's first request to its answer."""

    events: list[Event] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    unsent: int = 0  # all connections to the server were busy

    @property
    def answers(self) -> int:
        return sum(isinstance(event, Answered) for event in self.events)


class Clients:
    """Ranks for everybody at `rate` a second, and resets when told to."""

    def __init__(self, ports: Sequence[int], per_server: int, secret: str, users: Sequence[str], seed: int) -> None:
        self.journal = Journal()
        self._users = users
        self._secret = secret
        self._random = random.Random(seed)  # noqa: S311  not a secret: a schedule
        self._lines = [[Line(port) for _ in range(per_server)] for port in ports]
        # Of their own, so that what is measured is not how long a reset waits for a ranking's connection.
        self._reset_lines = [[Line(port) for _ in range(max(2, per_server // 2))] for port in ports]
        self._ranking = {user: self._ranking_of(user) for user in users}

    async def rank(self, rate: float, stop: asyncio.Event) -> None:
        """Open loop: what is late is not made up for by waiting."""
        due = time.monotonic()
        while not stop.is_set():
            due = max(due + 1.0 / rate, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._rank_once(self._random.choice(self._users))

    def _rank_once(self, user: str) -> None:
        line = _free(self._random.choice(self._lines))
        if line is None:
            self.journal.unsent += 1
            return
        line.ask(self._ranking[user], lambda status, body: self._ranked(user, status, body))

    def _ranked(self, user: str, status: int, body: bytes) -> None:
        self.journal.statuses[status] += 1
        if status == 200:
            answer = json.loads(body)
            said = answer["personalization"]
            self.journal.reasons[said["reason"]] += 1
            scores = tuple(one["score"] for one in sorted(answer["results"], key=lambda one: one["index"]))
            self.journal.events.append(Answered(user, said["generation"], said["adapter"], scores))

    async def reset(self, user: str, key: str) -> int:
        """Until it is acknowledged, by whichever server; the generation from which on this person begins anew."""
        began = time.monotonic()
        acknowledged: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def answered(status: int, body: bytes) -> None:
            self.journal.statuses[status] += 1
            if status == 200 and not acknowledged.done():
                generation = int(json.loads(body)["generation"])
                self.journal.acknowledged.append((time.monotonic() - began) * 1000)
                acknowledged.set_result(generation)
                self._after_this_moment(lambda: self.journal.events.append(Acknowledged(user, generation)))

        request = self._request("POST", f"/v1/users/{user}/personalization/reset", {"scope": "adapter"}, key)
        while not acknowledged.done():
            line = _free(self._random.choice(self._reset_lines))
            if line is not None:
                line.ask(request, answered)
                await asyncio.wait([acknowledged], timeout=RESET_PATIENCE_SECONDS)
            if not acknowledged.done():
                await asyncio.sleep(RETRY_SECONDS)
        return acknowledged.result()

    def published(self, user: str, adapter: str, generation: int) -> None:
        self.journal.events.append(Published(user, adapter, generation))

    @staticmethod
    def _after_this_moment(call: Callable[[], None]) -> None:
        """One look at all sockets later: the loop handles what it finds there before what was asked for in between."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, call)

    async def connect(self, stop: asyncio.Event) -> None:
        """Keep all connections open until told to stop."""
        while not stop.is_set():
            for line in self._all_lines():
                if line.hangs(time.monotonic()):
                    line.close()
                await line.open()
            await asyncio.sleep(0.05)
        for line in self._all_lines():
            line.close()

    def _all_lines(self) -> list[Line]:
        return [line for lines in (*self._lines, *self._reset_lines) for line in lines]

    def _ranking_of(self, user: str) -> bytes:
        body = {"query": QUERY, "documents": DOCUMENTS, "user": user, "domain": DOMAIN}
        return self._request("POST", "/v1/rerank", body)

    def _request(self, method: str, path: str, body: dict[str, Any], key: str | None = None) -> bytes:
        content = json.dumps(body).encode()
        headers = {
            "Host": "127.0.0.1",
            "Authorization": f"Bearer {self._secret}",
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
        } | ({} if key is None else {"Idempotency-Key": key})
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def _free(lines: Sequence[Line]) -> Line | None:
    return next((line for line in lines if line.free), None)
