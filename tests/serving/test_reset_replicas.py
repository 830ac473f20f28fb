"""Two real server processes over a real Postgres and a real Redis."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from idiolect_services.bench.reset_bench import _fleet
from idiolect_services.bench.reset_fleet import Fleet, RedisServer, stores
from idiolect_services.bench.reset_home import DOCUMENTS, DOMAIN, QUERY, People, replica_settings
from idiolect_services.wiring import open_installation

LONG = 60.0  # far more than anything here takes, also on a busy machine
TRIES = 50
_NUMBERS = count()


@dataclass
class Replicas:
    fleet: Fleet
    people: People
    redis: RedisServer
    secret: str
    database_url: str

    def send(self, index: int, method: str, path: str, body: Any = None, key: str | None = None) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.fleet.ports[index]}/v1{path}"
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        headers |= {} if key is None else {"Idempotency-Key": key}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=LONG) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def said(self, index: int, user: str) -> dict[str, Any]:
        """Of an answer that names the person. A machine that is too busy to confirm their generation in time names
        nobody, and says so: then it is asked again."""
        body = {"query": QUERY, "documents": DOCUMENTS, "user": user, "domain": DOMAIN}
        for _ in range(TRIES):
            said = dict(self.send(index, "POST", "/rerank", body)["personalization"])
            if said["reason"] != "unconfirmed":
                return said
            assert (said["applied"], said["adapter"], said["generation"]) == (False, None, None)
        raise AssertionError(f"{TRIES} answers in a row name nobody")

    def reset(self, index: int, user: str, key: str | None = None) -> dict[str, Any]:
        return self.send(index, "POST", f"/users/{user}/personalization/reset", {"scope": "adapter"}, key)

    def receipt(self, user: str, reset_id: str, index: int = 0) -> dict[str, Any]:
        return self.send(index, "GET", f"/users/{user}/personalization/resets/{reset_id}")

    def someone(self, generation: int = 0) -> str:
        """A person of their own for each test, with an adapter that both servers have in memory."""
        user = self.people.users[next(_NUMBERS)]
        template, version = self.people.draw(user, generation)
        self.people.publish(template, version)
        for index in range(2):
            assert self.said(index, user) | {"adapter": version.id, "applied": True} == self.said(index, user)
        return user


def eventually(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    home = tmp_path_factory.mktemp("replicas") / "home"
    with ExitStack() as running:
        postgres, database_url, redis = running.enter_context(stores())
        settings = replica_settings(home, database_url, redis.url)
        installation = running.enter_context(open_installation(settings))
        people = People(installation, 16)
        secret = people.settle()
        fleet = running.enter_context(_fleet(Fleet(home, postgres, database_url, redis, 2), "right"))
        yield Replicas(fleet, people, redis, secret, database_url)


def test_a_reset_at_one_server_holds_at_the_other_at_once(replicas: Replicas) -> None:
    user = replicas.someone()
    receipt = replicas.reset(0, user)
    assert (receipt["generation"], receipt["served"]) == (1, "confirmed")
    said = replicas.said(1, user)
    assert (said["applied"], said["adapter"], said["generation"]) == (False, None, 1)


def test_the_receipt_says_when_every_server_has_purged_its_memory(replicas: Replicas) -> None:
    user = replicas.someone()
    receipt = replicas.reset(0, user)
    assert receipt["caches"]["confirmed"] + receipt["caches"]["pending"] == 2
    assert receipt["caches"]["confirmed"] >= 1  # the one that was asked
    assert eventually(lambda: replicas.receipt(user, receipt["id"])["caches"]["state"] == "confirmed")
    caches = replicas.receipt(user, receipt["id"])["caches"]
    assert (caches["confirmed"], caches["pending"], caches["silent"], len(caches["replicas"])) == (2, 0, 0, 2)
    steps = {step["step"]: step["state"] for step in replicas.receipt(user, receipt["id"])["steps"]}
    assert steps["purge_memory"] == "done"


def test_the_same_reset_at_both_servers_at_once_is_one_reset(replicas: Replicas) -> None:
    user = replicas.someone()
    with ThreadPoolExecutor(2) as pool:
        receipts = list(pool.map(lambda index: replicas.reset(index, user, "twice"), range(2)))
    assert [receipt["generation"] for receipt in receipts] == [1, 1]
    assert replicas.said(1, user)["generation"] == 1


def test_a_server_that_is_stopped_delays_no_reset_and_serves_nothing_older_when_it_goes_on(
    replicas: Replicas,
) -> None:
    user = replicas.someone()
    replicas.fleet.pause(1)
    try:
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(replicas.said, 1, user)  # arrives, and waits
            receipt = replicas.reset(0, user)
            assert receipt["caches"]["state"] == "pending"
            assert {step["step"]: step["state"] for step in receipt["steps"]}["purge_memory"] == "pending"
            replicas.fleet.resume(1)
            assert (late.result()["applied"], late.result()["generation"]) == (False, 1)
    finally:
        replicas.fleet.resume(1)
    assert eventually(lambda: replicas.receipt(user, receipt["id"])["caches"]["state"] == "confirmed")


@pytest.mark.parametrize("trouble", ["flushed", "killed", "stopped"])
def test_without_redis_everything_holds_and_what_it_may_hold_is_said_to_be_pending(
    replicas: Replicas, trouble: str
) -> None:
    user = replicas.someone()
    if trouble == "flushed":
        replicas.redis.flush()
    elif trouble == "killed":
        replicas.redis.stop()
    else:
        replicas.redis.signal(signal.SIGSTOP)
    try:
        receipt = replicas.reset(0, user)
        assert replicas.said(1, user)["generation"] == 1
        if trouble != "flushed":
            assert replicas.receipt(user, receipt["id"])["caches"]["state"] == "pending"
    finally:
        replicas.redis.signal(signal.SIGCONT)
        if trouble == "killed":
            replicas.redis.start()
    assert eventually(lambda: replicas.receipt(user, receipt["id"])["caches"]["state"] == "confirmed")


def test_servers_whose_connections_were_cut_answer_on_and_confirm_again(replicas: Replicas) -> None:
    user = replicas.someone()
    replicas.fleet.cut_connections()
    for index in range(2):
        assert replicas.said(index, user)["reason"] in ("applied", "store_unavailable")
        assert eventually(lambda index=index: replicas.said(index, user)["applied"])  # type: ignore[misc]


def test_a_server_that_was_killed_is_not_said_to_be_purged_and_its_successor_has_nothing_to_purge(
    replicas: Replicas,
) -> None:
    user = replicas.someone()
    replicas.fleet.kill(1)
    receipt = replicas.reset(0, user)
    replicas.fleet.start(1)
    assert eventually(lambda: replicas.said(1, user)["generation"] == 1)
    caches = replicas.receipt(user, receipt["id"])["caches"]
    assert (caches["state"], caches["confirmed"], caches["pending"] + caches["silent"]) == ("pending", 1, 1)
