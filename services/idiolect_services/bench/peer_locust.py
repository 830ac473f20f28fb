"""The load of the load benchmark. Run by locust's own Python, so it imports nothing of Idiolect.

    python peer_locust.py < plan.json > outcome.json

The plan: {port, secret, domain, users: [str], callers, rate, seconds}. Each of the `callers` has one request at a time
over a connection of its own; together they send `rate` requests a second, or as many as they can if it is null. Only
loopback is called. The outcome: [[second, kind, status, milliseconds, clear], ...], where `clear` says that a refusal
has a Retry-After, and status 0 that no answer came.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import sys
import time
from typing import Any

# Importing it makes sockets and sleeps of this process cooperative.
from locust import FastHttpUser, constant_throughput  # type: ignore[import-not-found,unused-ignore]
from locust.env import Environment  # type: ignore[import-not-found,unused-ignore]

QUERIES = 20
WARM_DOCUMENTS, NEW_DOCUMENTS = 10, 3
MAX_ANSWERS = 2_000_000
TIMEOUT_S = 60.0
_numbers = itertools.count()


def run(plan: dict[str, Any]) -> list[list[Any]]:
    answers: list[list[Any]] = []
    began = time.monotonic()
    ends = began + plan["seconds"]
    rate = plan["rate"]
    run_id = str(time.time_ns())  # so that texts which are meant to be new differ from those of earlier runs

    class Caller(FastHttpUser):  # type: ignore[misc]
        host = f"http://127.0.0.1:{plan['port']}"
        connection_timeout = network_timeout = TIMEOUT_S
        concurrency = 1
        default_headers = {"Authorization": f"Bearer {plan['secret']}", "Content-Type": "application/json"}  # noqa: RUF012
        if rate is not None:
            wait_time = constant_throughput(rate / plan["callers"])

        def on_start(self) -> None:
            self.random = random.Random(f"{run_id}/{next(_numbers)}")  # noqa: S311
            self.shown: tuple[str, str] | None = None
            if rate is not None:
                time.sleep(self.random.random() * plan["callers"] / rate)

        def call(self, kind: str, method: str, path: str, body: Any = None) -> Any:
            sent = time.monotonic()
            if sent >= ends:
                time.sleep(1.0)
                return None
            options = {} if body is None else {"data": json.dumps(body)}
            with self.client.request(method, path, catch_response=True, name=kind, **options) as response:
                status = response.status_code or 0
                headers = response.headers or {}
                response.success()
                text = response.text if status == 200 else ""
            took = (time.monotonic() - sent) * 1000.0
            if len(answers) < MAX_ANSWERS:
                answers.append([int(time.monotonic() - began), kind, status, round(took, 2), "retry-after" in headers])
            return json.loads(text) if text else None

        def rank(self, kind: str, documents: list[str]) -> None:
            user = self.random.choice(plan["users"])
            query = f"How do I get order {self.random.randrange(QUERIES)} replaced?"
            body = {"query": query, "documents": documents, "user": user, "domain": plan["domain"]}
            answer = self.call(kind, "POST", "/v1/rerank", body)
            if answer and answer["id"]:
                self.shown = (user, answer["id"])

        def rerank_known_texts(self) -> None:
            self.rank("rerank_known", [f"Answer {n}: write to us within {n} days." for n in range(WARM_DOCUMENTS)])

        def rerank_new_texts(self) -> None:
            number = f"{run_id}-{next(_numbers)}"
            self.rank("rerank_new", [f"Offer {n} of {number}: we send it again." for n in range(NEW_DOCUMENTS)])

        def score(self) -> None:
            texts = [f"Answer {n}: write to us within {n} days." for n in range(WARM_DOCUMENTS)]
            self.call("score", "POST", "/v1/score", {"query": "How do I get order 0 replaced?", "documents": texts})

        def feedback(self) -> None:
            if self.shown is None:
                self.rerank_known_texts()
                return
            user, inference = self.shown
            self.shown = None
            signal = {"inference_id": inference, "user": user, "kind": "choice", "value": self.random.randrange(3)}
            self.call("feedback", "POST", "/v1/feedback", signal)

        def read_consent(self) -> None:
            self.call("consent", "GET", f"/v1/users/{self.random.choice(plan['users'])}/personalization")

        def reset(self) -> None:
            path = f"/v1/users/{self.random.choice(plan['users'])}/personalization/reset"
            self.call("reset", "POST", path, {"scope": "adapter"})

        tasks = {  # noqa: RUF012
            rerank_known_texts: 60,
            rerank_new_texts: 15,
            feedback: 12,
            read_consent: 6,
            score: 5,
            reset: 2,
        }

    runner = Environment(user_classes=[Caller]).create_local_runner()
    runner.start(plan["callers"], spawn_rate=plan["callers"])
    time.sleep(max(0.0, ends - time.monotonic()))
    runner.stop()
    return answers


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # a task that fails says so
    json.dump(run(json.load(sys.stdin)), sys.stdout)
