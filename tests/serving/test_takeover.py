"""A new live global model takes over while requests are under way on the old one."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from serving_world import HashModel, World
from test_gateway_crowded import eventually
from test_gateway_storm import serving

from idiolect.errors import CorruptArtifactError, UnavailableError
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache, digested
from idiolect_services.live import LiveScorer
from idiolect_services.scorer import Scorer
from idiolect_services.takeover import RETRY_SECONDS, Takeover, TakeoverLoop

OLD, NEW, BROKEN = HashModel.digest, "d" * 64, "e" * 64


class Shifted(HashModel):
    """Another model: every score is one higher."""

    digest = NEW

    def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        rows = super().project(pairs)
        rows[:, 0] += 1.0
        return rows


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Switching:
    """A takeover on the world's store whose loads are watched, and held until `loads` is set."""

    def __init__(self, world: World) -> None:
        self.world, self.clock = world, Clock()
        self.loaded: list[str] = []
        self.loading, self.loads = threading.Event(), threading.Event()
        self.loads.set()
        self.broken = {BROKEN}
        self.takeover = Takeover(world.live, world.store.live_global, self.build, monotonic=self.clock)

    def build(self, digest: str) -> Scorer:
        self.loading.set()
        assert self.loads.wait(20)
        self.loaded.append(digest)
        if digest in self.broken:
            raise CorruptArtifactError("a byte of the model is wrong.")
        model = HashModel() if digest == OLD else Shifted()
        model.digest = digest  # type: ignore[misc]
        store = self.world.store
        return Scorer(
            store, FeatureCache(model, max_bytes=1 << 20), AdapterBank(model, store.version, self.world.signer)
        )

    def publish(self, digest: str) -> None:
        self.world.store.set_global(digest, self.world.clock.now(), reason="test", actor="test")


@pytest.fixture
def switching(world: World) -> Switching:
    return Switching(world)


def test_the_new_model_serves_once_it_is_loaded_and_says_so(world: World, switching: Switching) -> None:
    api = world.api(world.key())
    before = api.rerank()
    assert switching.takeover.look() is None
    switching.publish(NEW)
    between = api.rerank("ann")
    assert between["model"] == OLD
    assert between["results"] == before["results"]
    assert switching.takeover.look() is world.live.current
    after = api.rerank()
    assert after["model"] == NEW
    assert [r["score"] for r in after["results"]] == [r["score"] + 1.0 for r in before["results"]]
    assert switching.takeover.look() is None
    assert switching.loaded == [NEW]


def test_a_request_under_way_finishes_on_the_old_model_which_is_then_freed(
    world: World, switching: Switching, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    real = world.model.project

    def project(pairs: Any) -> Any:
        entered.set()
        assert release.wait(20)
        return real(pairs)

    monkeypatch.setattr(world.model, "project", project)
    key = world.key()
    with serving(world.app) as port, ThreadPoolExecutor(1) as pool:
        url, headers = f"http://127.0.0.1:{port}/v1/rerank", {"Authorization": f"Bearer {key}"}
        body = {"query": "q", "documents": ["a", "b"]}
        slow = pool.submit(httpx.post, url, json=body, headers=headers, timeout=30)
        assert entered.wait(10)
        switching.publish(NEW)
        assert switching.takeover.look() is not None
        switching.publish(OLD)
        assert switching.takeover.look() is None  # two models are in memory, and there is no room for a third
        assert world.live.draining == 1
        release.set()
        old = slow.result(30).json()
        assert old["model"] == OLD
        assert {r["index"]: r["score"] for r in old["results"]} == {
            index: HashModel.row("q", text)[0] for index, text in enumerate("ab")
        }
        assert eventually(lambda: world.live.draining == 0)
        assert httpx.post(url, json=body, headers=headers).json()["model"] == NEW
    gone = weakref.ref(world.live.current)
    assert switching.takeover.look() is not None  # back to the old one, as a new scorer
    assert eventually(lambda: gc.collect() >= 0 and gone() is None)


def test_a_damaged_model_leaves_the_old_one_serving_and_readyz_and_metrics_say_so(
    world: World, switching: Switching
) -> None:
    settings = world.settings.model_copy(update={"metrics_token": None})
    app = world.make_app(settings=type(settings)(home=world.root, metrics_token="0123456789abcdef"))
    api, scraper = world.api(world.key(), app), world.api("0123456789abcdef", app)
    before = api.rerank()
    switching.publish(BROKEN)
    assert switching.takeover.look() is None
    assert api.rerank()["results"] == before["results"]
    assert api.get("/readyz").json() == {"status": "ok", "model": "outdated"}
    assert "idiolect_model_outdated 1\n" in scraper.get("/metrics").text
    assert switching.takeover.look() is None
    assert switching.loaded == [BROKEN]  # not again at once
    switching.broken.clear()
    switching.clock.now = RETRY_SECONDS + 1
    assert switching.takeover.look() is not None
    assert api.rerank()["model"] == BROKEN
    assert api.get("/readyz").json() == {"status": "ok"}
    assert "idiolect_model_outdated 0\n" in scraper.get("/metrics").text
    app.state.gateway.close()


def test_a_damaged_model_that_is_withdrawn_is_no_trouble_any_more(world: World, switching: Switching) -> None:
    switching.publish(BROKEN)
    assert switching.takeover.look() is None
    assert world.live.outdated == "CorruptArtifactError"
    switching.publish(OLD)
    assert switching.takeover.look() is None
    assert world.live.outdated is None
    assert world.live.switches == 0


def test_the_thread_loads_off_the_hot_path_and_survives_a_store_that_is_gone(
    world: World, switching: Switching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idiolect_services.takeover.LOOK_SECONDS", 0.01)
    failures = iter([UnavailableError("gone."), RuntimeError("a bug")])

    def live_global() -> str | None:
        error = next(failures, None)
        if error is not None:
            raise error
        return str(world.store.live_global())

    told: list[Scorer] = []
    loop = TakeoverLoop(Takeover(world.live, live_global, switching.build), told.append)
    switching.loads.clear()
    switching.publish(NEW)
    api = world.api(world.key())
    loop.start()
    try:
        assert switching.loading.wait(10)
        assert [api.rerank()["model"] for _ in range(5)] == [OLD] * 5
        switching.loads.set()
        assert eventually(lambda: told == [world.live.current])
        assert api.rerank()["model"] == NEW
    finally:
        switching.loads.set()
        loop.stop()


def test_a_reset_forgets_on_the_draining_model_too(world: World, switching: Switching) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    subject = world.pseudonym("acme", "ann")
    world.api(world.key()).rerank("ann")
    with world.live.lease() as models:
        old = models.live
        switching.publish(NEW)
        switching.takeover.look()
        assert old.bank.stats().entries == 1
        assert old.features.stats().entries == 10
        world.live.forget("acme", subject)
        assert old.bank.stats().entries == 0
        assert old.features.stats().entries == 0


def test_every_answer_under_many_switches_is_of_exactly_one_model(world: World) -> None:
    """Model n adds n to every score: an answer whose scores and digest disagree mixed two of them."""
    digests = [f"{number:064x}" for number in range(1, 13)]

    class Adds(HashModel):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number, self.digest = number, digests[number]  # type: ignore[misc]

        def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
            rows = super().project(pairs)
            rows[:, 0] += self.number
            return rows

    def scorer(number: int) -> Scorer:
        model = Adds(number)
        bank = AdapterBank(model, world.store.version, world.signer)
        return Scorer(world.store, FeatureCache(model, max_bytes=1 << 20), bank)

    live = LiveScorer(scorer(0))
    app = world.make_app(live=live)
    key, stop = world.key(), threading.Event()
    answers: list[dict[str, Any]] = []

    def rank(number: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}) as http:
            round_ = 0
            while not stop.is_set():
                body = {"query": "q", "documents": [f"{number} {round_ % 7}", "b"]}
                answers.append(http.post("/v1/rerank", json=body, timeout=30).json() | {"texts": body["documents"]})
                round_ += 1

    with serving(app) as port, ThreadPoolExecutor(4) as pool:
        ranking = [pool.submit(rank, number) for number in range(4)]
        for number in range(1, 12):
            seen = len(answers)
            assert eventually(lambda seen=seen: len(answers) > seen + 8)
            assert eventually(lambda: live.draining == 0)
            live.switch(scorer(number))
        stop.set()
        for future in ranking:
            future.result(30)
    app.state.gateway.close()
    for answer in answers:
        number = digests.index(answer["model"])
        for result in answer["results"]:
            assert result["score"] == HashModel.row("q", answer["texts"][result["index"]])[0] + number
    assert len({answer["model"] for answer in answers}) > 8


def test_the_last_reader_of_an_old_model_frees_it_also_when_it_failed(world: World, switching: Switching) -> None:
    def fail() -> None:
        with world.live.lease():
            switching.publish(NEW)
            switching.takeover.look()
            assert world.live.draining == 1
            raise RuntimeError("the request failed")

    with pytest.raises(RuntimeError, match="request failed"):
        fail()
    assert world.live.draining == 0
    assert world.live.wait_until_drained(0.0)


def test_purging_one_tenant_leaves_the_texts_of_another(world: World) -> None:
    cache = world.features
    pairs = [(digested("q"), digested(text)) for text in "ab"]
    for tenant, person in (("acme", "ann"), ("acme", None), ("other", "ann")):
        cache.project(tenant, pairs, person)
    assert cache.purge("acme") == 2
    assert cache.cached("acme", pairs) is None
    assert cache.cached("other", pairs, "ann") is not None
    assert replace(cache.stats(), hits=0, misses=0).entries == 2
