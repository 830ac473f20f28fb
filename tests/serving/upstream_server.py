"""A small OpenAI-compatible server, started for real on this machine, that can misbehave in every way asked for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


def completion(*texts: str | None, **fields: Any) -> dict[str, Any]:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 3 * len(texts), "total_tokens": 7 + 3 * len(texts)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny-1",
        "choices": choices,
        "usage": usage,
    } | fields


def plain(status: int, body: Any, **headers: str) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}, content


@dataclass
class UpstreamServer:
    """`answer(body, number)` decides; by default it does `n`, with texts that are numbered."""

    port: int = 0
    answer: Callable[[dict[str, Any], int], Answer] = lambda body, number: plain(
        200, completion(*(f"answer {number}.{index}" for index in range(body.get("n", 1))))
    )
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def ignoring_n(body: dict[str, Any], number: int) -> Answer:
    return plain(200, completion(f"answer {number}"))


def refusing_n(body: dict[str, Any], number: int) -> Answer:
    if "n" in body:
        return plain(400, {"error": {"message": "n is not supported", "type": "invalid_request_error"}})
    return plain(200, completion(f"answer {number}"))


def slow(seconds: float) -> Callable[[dict[str, Any], int], Answer]:
    def answer(body: dict[str, Any], number: int) -> Answer:
        time.sleep(seconds)
        return plain(200, completion("late"))

    return answer


@contextmanager
def running() -> Iterator[UpstreamServer]:
    upstream = UpstreamServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with upstream.lock:
                number = len(upstream.bodies)
                upstream.bodies.append(body)
                upstream.headers.append({name.lower(): value for name, value in self.headers.items()})
                upstream.paths.append(self.path)
            status, headers, content = upstream.answer(body, number)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content)
            except OSError:
                return  # the caller hung up, which is what some tests are about

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # five, the default, are too few for many completions at once

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    upstream.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield upstream
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
