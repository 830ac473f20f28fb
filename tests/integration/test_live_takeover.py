"""A whole server, real models on disk: a new live global model, a damaged one, and people trained on the new one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from fastapi import FastAPI
from test_retraining import SECONDS, eventually
from training_home import TENANT, Home

from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_adapters.preference import CARD, save_model
from idiolect_services import takeover
from idiolect_services.serving import create_server_app, listen, server_for


@contextmanager
def running(app: FastAPI, home: Home) -> Iterator[str]:
    """The address of the server, started and stopped as `idiolect serve` does."""
    settings = home.installation.settings.model_copy(update={"port": 0})
    with listen(settings) as listener:
        server = server_for(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(SECONDS)


def another_model(home: Home, temperature: float) -> str:
    """The same weights under another temperature: another digest."""
    model = home.model
    saved = save_model(
        home.installation.models, model.backbone, model.head, model.recipes, temperature=temperature, training={}
    )
    return saved.digest


def publish(home: Home, digest: str) -> None:
    home.store.set_global(digest, home.installation.clock.now(), reason="test", actor="test")


def test_a_running_server_moves_to_the_new_model_and_stays_on_it_when_the_next_is_damaged(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "LOOK_SECONDS", 0.05)
    secret = new_secret()
    home.store.create_key(TENANT, list(Scope), hash_secret(secret), home.installation.clock.now())
    items = home.world.items[:4]
    body = {"query": items[0].prompt, "documents": [item.text for item in items], "user": "dora"}
    first, second, damaged = home.model.digest, another_model(home, 3.0), another_model(home, 4.0)
    card = home.installation.models / damaged / CARD
    card.write_bytes(card.read_bytes() + b" ")
    stop, models = threading.Event(), list[str]()

    with running(create_server_app(home.installation), home) as base:
        api = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {secret}"}, timeout=30)

        def rank() -> None:
            while not stop.is_set():
                answer = api.post("/v1/rerank", json=body)
                assert answer.status_code == 200
                models.append(answer.json()["model"])

        with api, ThreadPoolExecutor(1) as pool:
            before = api.post("/v1/rerank", json=body).json()
            traffic = pool.submit(rank)
            publish(home, second)
            assert eventually(lambda: second in models)
            stop.set()
            traffic.result(SECONDS)
            moved = [model for model, last in zip(models[1:], models, strict=False) if model != last]
            assert moved in ([], [second])  # never back, and nothing in between
            after = api.post("/v1/rerank", json=body).json()
            assert (before["model"], after["model"]) == (first, second)
            assert [r["score"] for r in after["results"]] == [r["score"] for r in before["results"]]
            assert [r["relevance_score"] for r in after["results"]] != [r["relevance_score"] for r in before["results"]]

            publish(home, damaged)
            assert eventually(lambda: api.get("/readyz").json() == {"status": "ok", "model": "outdated"})
            assert api.post("/v1/rerank", json=body).json()["model"] == second
            publish(home, second)
            assert eventually(lambda: api.get("/readyz").json() == {"status": "ok"})

            api.put("/v1/users/dora/personalization", json={"opted_in": True})
            shown = api.post("/v1/rerank", json=body).json()
            signal = {"inference_id": shown["id"], "kind": "choice", "value": 2, "user": "dora"}
            assert api.post("/v1/feedback", json=signal).status_code == 202
            assert eventually(lambda: bool(api.post("/v1/rerank", json=body).json()["personalization"]["applied"]))
