"""The load of the load benchmark. Run by locust's own Python, so it imports nothing of Idiolect.

    python peer_locust.py < plan.json > outcome.json

The plan: {port, secret, domain, users: [str], callers, rate, seconds}. Each of the `callers` has one request at a time
over a connection of its own; together they send `rate` requests a second, or as many as they can if it is null. Only
loopback is called. The outcome: [[second, kind, status, milliseconds, clear, said], ...], where `clear` says that a
refusal has a Retry-After, `said` is what the answer says of personalization, and status 0 that no answer came.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

# Importing it makes sockets and sleeps of this process cooperative.
from locust import FastHttpUser, task  # type: ignore[import-not-found,unused-ignore]
from locust.env import Environment  # type: ignore[import-not-found,unused-ignore]

QUERIES = 20
WARM_DOCUMENTS, NEW_DOCUMENTS = 10, 3
MAX_ANSWERS = 2_000_000
TIMEOUT_S = 60.0
KNOWN_TEXTS = [f"Answer {n}: write to us within {n} days." for n in range(WARM_DOCUMENTS)]


@dataclass
class Run:
    """What all callers of one run share."""

    plan: dict[str, Any]
    answers: list[list[Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    # So that texts which are meant to be new differ from those of earlier runs.
    name: str = field(default_factory=lambda: str(time.time_ns()))
    numbers: Any = field(default_factory=itertools.count)

    @property
    def ends(self) -> float:
        return float(self.began + self.plan["seconds"])

    @property
    def pause(self) -> float:
        """Seconds from one call of a caller to the next; 0 for those who never wait."""
        return self.plan["callers"] / self.plan["rate"] if self.plan["rate"] else 0.0

    def answered(self, answer: list[Any]) -> None:
        if len(self.answers) < MAX_ANSWERS:
            self.answers.append(answer)


class Caller(FastHttpUser):  # type: ignore[misc]
    """What it calls, and how often: the weights of the tasks."""

    abstract = True
    connection_timeout = network_timeout = TIMEOUT_S
    concurrency = 1
    planned: Run  # of its subclass

    def on_start(self) -> None:
        self.random = random.Random(f"{self.planned.name}/{next(self.planned.numbers)}")  # noqa: S311
        self.shown: tuple[str, str] | None = None
        wait = self.random.random() * self.planned.pause
        self.due = time.monotonic() + wait
        time.sleep(wait)

    def wait_time(self) -> float:
        """Until its next call, evenly from its first one on. locust's own pacing counts from the moment at which all
        callers were made, so they would all call at once, and then nobody for a while."""
        now = time.monotonic()
        self.due = max(self.due + self.planned.pause, now)
        return float(self.due - now)

    def call(self, kind: str, method: str, path: str, body: Any = None) -> Any:
        sent = time.monotonic()
        if sent >= self.planned.ends:
            time.sleep(1.0)
            return None
        options = {} if body is None else {"data": json.dumps(body)}
        with self.client.request(method, path, catch_response=True, name=kind, **options) as response:
            status = response.status_code or 0
            headers = response.headers or {}
            response.success()
            text = response.text if status == 200 else ""
        now = time.monotonic()
        answer = json.loads(text) if text else {}
        said = answer.get("personalization", {}).get("reason", "")
        took_ms = round((now - sent) * 1000.0, 2)
        self.planned.answered([int(now - self.planned.began), kind, status, took_ms, "retry-after" in headers, said])
        return answer or None

    def anybody(self) -> str:
        return str(self.random.choice(self.planned.plan["users"]))

    def rank(self, kind: str, documents: list[str]) -> None:
        user = self.anybody()
        query = f"How do I get order {self.random.randrange(QUERIES)} replaced?"
        body = {"query": query, "documents": documents, "user": user, "domain": self.planned.plan["domain"]}
        answer = self.call(kind, "POST", "/v1/rerank", body)
        if answer and answer["id"]:
            self.shown = (user, answer["id"])

    @task(60)  # type: ignore[untyped-decorator,unused-ignore]
    def rerank_known_texts(self) -> None:
        self.rank("rerank_known", KNOWN_TEXTS)

    @task(15)  # type: ignore[untyped-decorator,unused-ignore]
    def rerank_new_texts(self) -> None:
        number = f"{self.planned.name}-{next(self.planned.numbers)}"
        self.rank("rerank_new", [f"Offer {n} of {number}: we send it again." for n in range(NEW_DOCUMENTS)])

    @task(12)  # type: ignore[untyped-decorator,unused-ignore]
    def feedback(self) -> None:
        if self.shown is None:
            self.rank("rerank_known", KNOWN_TEXTS)
            return
        (user, inference), self.shown = self.shown, None
        signal = {"inference_id": inference, "user": user, "kind": "choice", "value": self.random.randrange(3)}
        self.call("feedback", "POST", "/v1/feedback", signal)

    @task(6)  # type: ignore[untyped-decorator,unused-ignore]
    def read_consent(self) -> None:
        self.call("consent", "GET", f"/v1/users/{self.anybody()}/personalization")

    @task(5)  # type: ignore[untyped-decorator,unused-ignore]
    def score(self) -> None:
        body = {"query": "How do I get order 0 replaced?", "documents": KNOWN_TEXTS}
        self.call("score", "POST", "/v1/score", body)

    @task(2)  # type: ignore[untyped-decorator,unused-ignore]
    def reset(self) -> None:
        path = f"/v1/users/{self.anybody()}/personalization/reset"
        self.call("reset", "POST", path, {"scope": "adapter"})


def callers_of(run: Run) -> type[Caller]:
    headers = {"Authorization": f"Bearer {run.plan['secret']}", "Content-Type": "application/json"}
    host = f"http://127.0.0.1:{run.plan['port']}"
    return type("PlannedCaller", (Caller,), {"host": host, "default_headers": headers, "planned": run})


def run(plan: dict[str, Any]) -> list[list[Any]]:
    planned = Run(plan)
    runner = Environment(user_classes=[callers_of(planned)]).create_local_runner()
    runner.start(plan["callers"], spawn_rate=plan["callers"])
    time.sleep(max(0.0, planned.ends - time.monotonic()))
    runner.stop()
    return planned.answers


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # a task that fails says so
    json.dump(run(json.load(sys.stdin)), sys.stdout)
