"""A real server under fire: rankings and resets at the same time, and clients that misbehave on the wire."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from serving_world import DOCUMENTS, World, some_weights
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idiolect_services.serving import server_for

PEOPLE = ("ann", "bob")
BODY = {"query": "q", "documents": DOCUMENTS}


class Recorder:
    """Outside the app: the bodies that left, in the order in which they were handed to the server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.left = app, list[tuple[str, bytes]]()

    def resets(self) -> int:
        return sum(path.endswith("/reset") for path, _ in list(self.left))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.body":
                self.left.append((scope["path"], message["body"]))
            await send(message)

        await self.app(scope, receive, recorded if scope["type"] == "http" else send)


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """The port of a real server on `app`."""
    server = server_for(app)
    server.config.lifespan = "off"
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def violations(left: list[tuple[str, bytes]], user_of: dict[str, str]) -> int:
    """Rankings that left after a reset's answer under an older generation. Knows nothing of how that is prevented.

    `user_of`: from pseudonym to user id.
    """
    fence = dict.fromkeys(user_of.values(), 0)
    found = 0
    for path, content in left:
        body = json.loads(content)
        if path.endswith("/reset"):
            user = user_of[body["subject"]]
            fence[user] = max(fence[user], body["generation"])
        elif path == "/v1/rerank" and "personalization" in body:
            user = body["results"][0]["id"]
            generation = body["personalization"]["generation"]
            found += generation is not None and generation < fence[user]
    return found


def storm(world: World, port: int, key: str, resets: int) -> list[dict[str, Any]]:
    """Reset each person again and again, with a new adapter every time, while six threads rank for them."""
    stop, answers = threading.Event(), []
    base, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}

    def rank(number: int) -> None:
        user = PEOPLE[number % len(PEOPLE)]
        documents = [{"text": text, "id": user} for text in DOCUMENTS]
        with httpx.Client(base_url=base, headers=headers, timeout=30) as client:
            while not stop.is_set():
                response = client.post("/v1/rerank", json={"query": "q", "documents": documents, "user": user})
                assert response.status_code == 200, response.text
                answers.append(response.json())

    def reset_again_and_again(user: str) -> None:
        with httpx.Client(base_url=base, headers=headers, timeout=30) as client:
            for round_ in range(resets):
                world.publish_user(user, some_weights(f"{user} {round_}", world.model.user_rank))
                time.sleep(0.02)
                reset = client.post(f"/v1/users/{user}/personalization/reset", json={"scope": "adapter"})
                assert reset.json()["generation"] == round_ + 1

    with ThreadPoolExecutor(8) as pool:
        ranking = [pool.submit(rank, number) for number in range(6)]
        try:
            for future in [pool.submit(reset_again_and_again, user) for user in PEOPLE]:
                future.result(120)
        finally:
            stop.set()
        for future in ranking:
            future.result(30)
    return answers


def run_storm(world: World, recorder: Recorder, resets: int = 15) -> tuple[int, list[dict[str, Any]]]:
    key = world.key()
    for user in PEOPLE:
        world.opt_in(user)
    with serving(recorder) as port:
        answers = storm(world, port, key, resets)
    assert recorder.resets() == resets * len(PEOPLE)
    return violations(recorder.left, {world.pseudonym("acme", user): user for user in PEOPLE}), answers


def test_no_ranking_leaves_under_an_older_generation_than_an_answered_reset(world: World) -> None:
    found, answers = run_storm(world, Recorder(world.app))
    assert found == 0
    assert any(answer["personalization"]["applied"] for answer in answers)
    assert any(not answer["personalization"]["applied"] for answer in answers)
    # Every answer is whole: that of one version, or exactly that of no adapter at all.
    bare = {r["index"]: r["score"] for r in world.api(world.key()).rerank()["results"]}
    by_adapter: dict[str, dict[int, float]] = {}
    for answer in answers:
        scores = {r["index"]: r["score"] for r in answer["results"]}
        adapter = answer["personalization"]["adapter"]
        assert scores == (bare if adapter is None else by_adapter.setdefault(adapter, scores))
    world.bank.check_integrity()
    world.features.check_integrity()


def test_the_checker_sees_a_gate_that_is_left_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the gate, and with rankings that dawdle after their confirmation, until a reset is answered, old
    generations do leave."""
    recorder, real = Recorder(world.app), world.store.record_inferences

    def dawdle(*args: Any) -> Any:
        outcomes, before, patience = real(*args), recorder.resets(), time.monotonic() + 1.0
        while recorder.resets() == before and time.monotonic() < patience:
            time.sleep(0.002)
        return outcomes

    monkeypatch.setattr(world.store, "record_inferences", dawdle)
    monkeypatch.setattr(world.store, "record_at_once", lambda _shown: None)  # nothing can come in between there
    monkeypatch.setattr(type(world.app.state.gateway.gate), "admits", lambda *_: True)
    monkeypatch.setattr("idiolect_services.gateway.fencing.may_leave", lambda *_: True)
    found, _ = run_storm(world, recorder, resets=8)
    assert found > 0


def until_cut_off(port: int, send: Callable[[socket.socket], None]) -> None:
    """Returns once the server has closed the connection; `send` must not end by itself."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            send(connection)
        with suppress(ConnectionResetError):
            while connection.recv(65536):
                pass


@pytest.mark.parametrize("authorised", [True, False])
def test_a_body_that_never_ends_is_cut_off(world: World, authorised: bool) -> None:
    key = world.key() if authorised else "idio_wrong"
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(head)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            sent += connection.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
        raise AssertionError("the server kept reading")

    with serving(world.app) as port:
        until_cut_off(port, endless)
        assert sent < 40 << 20
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_a_client_that_goes_away_in_the_middle_of_its_body_leaves_nothing(world: World) -> None:
    key = world.key()
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"query": "q"'
    ).encode()
    with serving(world.app) as port:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(head)
        good = httpx.post(
            f"http://127.0.0.1:{port}/v1/rerank", json=BODY, headers={"Authorization": f"Bearer {key}"}, timeout=10
        )
        assert good.status_code == 200
        assert len(world.model.calls) == 1
