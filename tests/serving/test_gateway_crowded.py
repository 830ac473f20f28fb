"""A real server whose model is busy: fairness, refusals, deadlines, and clients that go away."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving_world import HashModel, World, assert_problem, world_at
from test_gateway_storm import serving


@pytest.fixture
def crowded(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, tenant_queue_texts=1500, queue_texts=4000, feature_cache_bytes=1 << 20) as made:
        yield made


def documents(name: str, count: int) -> list[str]:
    return [f"{name} {index}" for index in range(count)]


def client(port: int, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60)


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)
    return holds()


def slowed(world: World, monkeypatch: pytest.MonkeyPatch, texts_per_second: float) -> list[int]:
    """[how many texts were computed so far]"""
    computed = [0]

    def project(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        time.sleep(len(pairs) / texts_per_second)
        computed[0] += len(pairs)
        return np.array([HashModel.row(*pair) for pair in pairs])

    monkeypatch.setattr(world.model, "project", project)
    return computed


def held(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event, list[str]]:
    """(set when a forward begins, set it to let them go on, the texts that were computed)."""
    entered, release = threading.Event(), threading.Event()
    computed: list[str] = []

    def project(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        entered.set()
        assert release.wait(20)
        computed.extend(text for _, text in pairs)
        return np.array([HashModel.row(*pair) for pair in pairs])

    monkeypatch.setattr(world.model, "project", project)
    return entered, release, computed


def test_a_flooding_tenant_does_not_starve_a_small_one(crowded: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait is counted in texts that were computed meanwhile. 1,200 of the flood always wait: first come, first
    served would compute them all."""
    computed = slowed(crowded, monkeypatch, 400)
    flooder, small = crowded.key("acme"), crowded.key("other")
    stop = threading.Event()
    statuses: list[int] = []

    def flood(number: int) -> None:
        with client(port, flooder) as http:
            round_ = 0
            while not stop.is_set():
                body = {"query": "q", "documents": documents(f"f {number} {round_}", 100)}
                answer = http.post("/v1/rerank", json=body, headers={"Idiolect-Timeout-Ms": "30000"})
                statuses.append(answer.status_code)
                round_ += 1

    with serving(crowded.app) as port, ThreadPoolExecutor(12) as pool:
        floods = [pool.submit(flood, number) for number in range(12)]
        waits = []
        try:
            time.sleep(0.5)
            with client(port, small) as http:
                for number in range(10):
                    before = computed[0]
                    answer = http.post("/v1/rerank", json={"query": "q", "documents": documents(f"s {number}", 3)})
                    waits.append(computed[0] - before)
                    assert answer.status_code == 200
        finally:
            stop.set()
        for future in floods:
            future.result(60)
    assert set(statuses) == {200}
    assert max(waits) < 600, waits  # a forward takes some 40 texts, and its own turn comes with the next one


def test_over_its_share_a_tenant_gets_a_429_and_the_time_to_come_back(
    crowded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release, _ = held(crowded, monkeypatch)
    key, other = crowded.key(), crowded.key("other")
    with serving(crowded.app) as port, ThreadPoolExecutor(3) as pool, client(port, key) as http:
        first = pool.submit(http.post, "/v1/rerank", json={"query": "q", "documents": ["first"]})
        assert entered.wait(10)
        waits = pool.submit(http.post, "/v1/rerank", json={"query": "q", "documents": documents("a", 1000)})
        assert eventually(lambda: crowded.app.state.gateway.batcher.stats().waiting == 1000)
        refused = http.post("/v1/rerank", json={"query": "q", "documents": documents("b", 501)})
        assert_problem(refused, 429, "share_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        with client(port, other) as second:
            late = second.post(
                "/v1/rerank", json={"query": "q", "documents": ["c"]}, headers={"Idiolect-Timeout-Ms": "50"}
            )
        assert_problem(late, 503, "deadline_exceeded")
        assert int(late.headers["retry-after"]) >= 1
        release.set()
        assert first.result(30).status_code == waits.result(30).status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "9999999999", "１"])
def test_a_time_that_is_none_is_named(world: World, value: str) -> None:
    body = {"query": "q", "documents": ["a"]}
    headers = {"Idiolect-Timeout-Ms": value.encode()}
    problem = assert_problem(world.api(world.key()).post("/v1/rerank", body, headers=headers), 422, "invalid_input")
    assert "Idiolect-Timeout-Ms" in problem["detail"]


def test_nothing_is_computed_for_a_client_that_went_away(crowded: World, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release, computed = held(crowded, monkeypatch)
    key = crowded.key()
    body = b'{"query": "q", "documents": ["for nobody"]}'
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    stats = crowded.app.state.gateway.batcher.stats
    with serving(crowded.app) as port, ThreadPoolExecutor(2) as pool, client(port, key) as http:
        first = pool.submit(http.post, "/v1/rerank", json={"query": "q", "documents": ["first"]})
        assert entered.wait(10)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as gone:
            gone.sendall(head + body)
            assert eventually(lambda: stats().waiting == 1)
        assert eventually(lambda: stats().waiting == 0)
        release.set()
        assert first.result(30).status_code == 200
        assert http.post("/v1/rerank", json={"query": "q", "documents": ["next"]}).status_code == 200
    assert computed == ["first", "next"]
    assert stats().left == 1


def test_sharing_forwards_changes_no_bit(crowded: World) -> None:
    key = crowded.key()
    alone: dict[int, Any] = {}
    for number in range(6):
        body = {"query": "q", "documents": documents(f"x {number}", 5)}
        alone[number] = crowded.api(key).post("/v1/rerank", body).json()["results"]
    crowded.features.purge("acme")
    with serving(crowded.app) as port, ThreadPoolExecutor(6) as pool, client(port, key) as http:
        bodies = [{"query": "q", "documents": documents(f"x {number}", 5)} for number in range(6)]
        together = list(pool.map(lambda body: http.post("/v1/rerank", json=body).json()["results"], bodies))
    assert together == [alone[number] for number in range(6)]
