"""Feedback makes a new version live in a running server; and the thread that does it survives what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from training_home import NEW, TENANT, Home, WatchedStore

from idiolect.clock import SystemClock
from idiolect.consent import ConsentChange
from idiolect.errors import ConflictError, CorruptArtifactError, UnavailableError
from idiolect.privacy.ledger import LedgerRun
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_services import serving
from idiolect_services.serving import RetrainingLoop, create_server_app
from idiolect_services.trainer import TrainingReport

SECONDS = 30.0  # far more than any of this takes; what never happens fails after it


def eventually(happened: Callable[[], bool]) -> bool:
    until = time.monotonic() + SECONDS
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


class KilledError(BaseException):
    """Nothing catches it, so nothing after it is done."""


@dataclass
class FakeTrainer:
    """Fails for the tenants in `errors`, and remembers whom it was asked to train."""

    errors: dict[str, Exception] = field(default_factory=dict)
    asked: list[tuple[str, list[str]]] = field(default_factory=list)

    def train_users(self, tenant: str, subjects: list[str]) -> TrainingReport:
        self.asked.append((tenant, list(subjects)))
        if tenant in self.errors:
            raise self.errors[tenant]
        return TrainingReport("r", len(subjects), 0, 0, 2.0)


def loop_of(home: Home, trainer: Any) -> RetrainingLoop:
    return RetrainingLoop(home.installation, trainer)


def somebody(home: Home, name: str = "dora") -> str:
    person = home.installation.pseudonym(TENANT, name)
    home.store.change_subject(TENANT, person, ConsentChange(opted_in=True), home.installation.clock.now())
    return person


def drained(home: Home) -> Home:
    """The imported people are queued at first, too."""
    everybody = [person for _, person in home.store.training_queue(min_new=1)]
    home.store.mark_trained(TENANT, everybody, home.installation.clock.now())
    assert not home.store.training_queue(min_new=1)
    return home


def test_feedback_makes_a_new_version_live_without_a_restart(home: Home) -> None:
    person, scorer = somebody(drained(home)), home.scorer()
    loop = loop_of(home, home.trainer())
    assert home.scored(scorer, person).personalization.reason == "no_adapter"
    loop.start()
    try:
        home.say(person, "one")
        loop.wake(TENANT, person)
        assert eventually(lambda: home.scored(scorer, person).personalization.applied)
        first = home.scored(scorer, person)
        assert any(first.user_N)
        home.say(person, "two", chosen=3)
        loop.wake(TENANT, person)
        assert eventually(lambda: home.scored(scorer, person).personalization.adapter != first.personalization.adapter)
        second = home.scored(scorer, person)
        assert second.personalization.applied
        assert second.user_N != first.user_N
    finally:
        loop.stop()


def test_a_whole_server_learns_from_what_it_is_told(home: Home) -> None:
    """PUT opt-in, rerank, feedback, and soon the same request is answered personally; then a reset takes it back."""
    secret = new_secret()
    home.store.create_key(TENANT, list(Scope), hash_secret(secret), home.installation.clock.now())
    app = create_server_app(home.installation)
    items = home.world.items[:4]
    body = {"query": items[0].prompt, "documents": [item.text for item in items], "user": "dora"}

    async def told() -> None:
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {secret}"}
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as api,
        ):
            never = (await api.post("/v1/rerank", json=body)).json()
            assert never["personalization"]["reason"] == "unknown_user"
            await api.put("/v1/users/dora/personalization", json={"opted_in": True})
            shown = (await api.post("/v1/rerank", json=body)).json()
            signal = {"inference_id": shown["id"], "kind": "choice", "value": 2, "user": "dora"}
            assert (await api.post("/v1/feedback", json=signal)).status_code == 202
            until = time.monotonic() + SECONDS
            served = shown
            while not served["personalization"]["applied"]:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
                served = (await api.post("/v1/rerank", json=body)).json()
            assert served["personalization"]["adapter"]
            await api.post("/v1/users/dora/personalization/reset", json={"scope": "all"})
            after = (await api.post("/v1/rerank", json=body)).json()
            assert after["results"] == never["results"]
            assert not after["personalization"]["applied"]

    asyncio.run(told())


def test_the_queue_is_in_the_store_so_a_crash_loses_nobody(home: Home) -> None:
    person = somebody(drained(home))
    home.say(person, "one")
    trainer = FakeTrainer()
    loop_of(home, trainer).train_queued()  # a loop that was started later and never woken
    assert trainer.asked == [(TENANT, [person])]
    loop_of(home, trainer).train_queued()
    assert len(trainer.asked) == 1


def test_too_little_feedback_waits_for_more(home: Home) -> None:
    person = somebody(drained(home))
    home.say(person, "one")  # three comparisons
    patient = replace(
        home,
        installation=replace(
            home.installation, settings=home.installation.settings.model_copy(update={"retrain_after": 4})
        ),
    )
    trainer = FakeTrainer()
    loop_of(patient, trainer).train_queued()
    assert not trainer.asked
    home.say(person, "two")
    loop_of(patient, trainer).train_queued()
    assert trainer.asked == [(TENANT, [person])]


def test_who_is_over_budget_is_not_tried_again_before_they_say_more(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    person = somebody(drained(home))
    home.overspend(person)
    home.say(person, "one")
    loop = loop_of(home, home.trainer())
    with caplog.at_level(logging.INFO, "idiolect.serving"):
        loop.train_queued()
    assert "over the budget" in caplog.text
    runs = len(home.store.runs(TENANT))
    loop.train_queued()
    assert len(home.store.runs(TENANT)) == runs
    home.say(person, "two")
    assert home.store.training_queue(min_new=1) == [(TENANT, person)]


@pytest.mark.parametrize("error", [CorruptArtifactError("the model is broken."), ZeroDivisionError("a bug")])
def test_a_training_that_can_only_fail_again_is_not_charged_again(
    home: Home, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A reservation is final, so trying every half minute would use up everybody's budget within the hour."""
    person = somebody(drained(home))
    home.say(person, "one")
    trainer = FakeTrainer({TENANT: error})
    loop = loop_of(home, trainer)
    loop.train_queued()
    loop.train_queued()
    assert len(trainer.asked) == 1
    assert "failed" in caplog.text


@pytest.mark.parametrize("error", [UnavailableError("the store is away."), ConflictError("another model is live.")])
def test_what_will_work_later_stays_queued(home: Home, error: Exception) -> None:
    person = somebody(drained(home))
    home.say(person, "one")
    with pytest.raises(type(error)):
        loop_of(home, FakeTrainer({TENANT: error})).train_queued()
    trainer = FakeTrainer()
    loop_of(home, trainer).train_queued()
    assert trainer.asked == [(TENANT, [person])]


@dataclass
class Later:
    """The installation's clock, moved on."""

    by: timedelta = timedelta(0)

    def now(self) -> datetime:
        return SystemClock().now() + self.by


@pytest.mark.parametrize("gone", [UnavailableError("the keys are away."), KilledError()], ids=["store", "kill"])
def test_trainings_that_are_charged_and_cut_off_do_not_use_up_the_budget(
    home: Home, gone: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a store that is needed to publish is gone, or the process is killed in each training and started anew."""
    person = somebody(drained(home))
    home.say(person, "one")
    clock = Later()
    home = replace(home, installation=replace(home.installation, clock=clock))

    def fails(*_: Any, **__: Any) -> None:
        raise gone

    def starts_and_trains(store: Any) -> None:
        with suppress(type(gone)):
            loop_of(home, home.trainer(store=store)).train_queued()

    broken = WatchedStore(home.store, {"publish": fails})
    for wait, charged in ((0, 1), (0, 2), (0, 2), (59, 2), (2, 3), (60, 3), (23 * 60, 4), (60, 4)):
        clock.by += timedelta(minutes=wait)
        starts_and_trains(broken)
        assert home.store.account(TENANT, "comparison", person).runs == charged
    assert "idiolect train users" in caplog.text
    assert home.store.training_queue(min_new=1) == [(TENANT, person)]
    home.trainer().train_users(TENANT, [person])  # who asks for it by hand is not kept waiting
    assert home.live(person) is not None
    home.say(person, "two")
    loop_of(home, home.trainer()).train_queued()
    assert home.store.account(TENANT, "comparison", person).runs == 6


def test_one_tenants_failure_is_not_anothers(home: Home) -> None:
    queued = [("bad", "1" * 32), (TENANT, "2" * 32), (TENANT, "3" * 32)]

    class Store:
        marked: list[tuple[str, list[str]]] = []  # noqa: RUF012

        def training_queue(self, *, min_new: int) -> list[tuple[str, str]]:
            return queued

        def runs(self, tenant: str, *, unit: str, limit: int) -> list[LedgerRun]:
            return []

        def mark_trained(self, tenant: str, subjects: list[str], upto: object) -> None:
            self.marked.append((tenant, list(subjects)))

    trainer = FakeTrainer({"bad": CorruptArtifactError("broken.")})
    RetrainingLoop(replace(home.installation, store=Store()), trainer).train_queued()  # type: ignore[arg-type]
    assert trainer.asked == [("bad", ["1" * 32]), (TENANT, ["2" * 32, "3" * 32])]
    assert Store.marked == trainer.asked


def test_the_thread_outlives_every_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "POLL_SECONDS", 0.01)
    seen: list[int] = []

    class Failing:
        def training_queue(self, *, min_new: int) -> list[tuple[str, str]]:
            seen.append(min_new)
            raise (UnavailableError("away."), ValueError("a bug"))[len(seen) % 2]

    loop = RetrainingLoop(replace(home.installation, store=Failing()), FakeTrainer())  # type: ignore[arg-type]
    loop.start()
    assert eventually(lambda: len(seen) > 5)
    loop.stop()


def test_a_stop_between_two_looks_is_not_forgotten(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop comes just before the loop clears its wake-up: a loop that then waited would wait for half a minute."""
    monkeypatch.setattr(serving, "POLL_SECONDS", 3600.0)
    loop = loop_of(drained(home), FakeTrainer())

    class StoppedJustBeforeTheClear(threading.Event):
        def clear(self) -> None:
            loop._stop.set()
            self.set()
            super().clear()

    loop._wake = StoppedJustBeforeTheClear()
    loop.start()
    loop._thread.join(timeout=5.0)
    assert not loop._thread.is_alive()


def test_a_wake_up_that_comes_while_it_trains_is_not_lost(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "POLL_SECONDS", 3600.0)
    drained(home)
    rounds: list[int] = []
    loop = loop_of(home, FakeTrainer())
    real = loop.train_queued

    def slow() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            loop.wake(TENANT, "somebody")
        real()

    monkeypatch.setattr(loop, "train_queued", slow)
    loop.start()
    assert eventually(lambda: len(rounds) == 2)
    loop.stop()


def test_imported_people_are_trained_once_and_then_left_alone(home: Home) -> None:
    queued = {person for _, person in home.store.training_queue(min_new=1)}
    assert queued <= set(home.new_people)
    home.trainer().train_users(TENANT)
    assert not home.store.training_queue(min_new=1)
    assert len(home.new_people) == len(NEW)
