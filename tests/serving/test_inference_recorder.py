"""Group commit: what waits together is written together, and nobody is told before it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from serving_world import World

from idiolect.errors import ConflictError, IdiolectError, InvalidInputError, UnavailableError
from idiolect.ids import new_id, text_digest
from idiolect.signals.events import Inference
from idiolect.stores.ports import RecordOutcome, ShownInference
from idiolect_services.gateway import recorder as recorder_module
from idiolect_services.gateway.pace import MOST_TEXTS, REST_SECONDS, SLOW_SECONDS, Pace
from idiolect_services.gateway.recorder import InferenceRecorder


def shown(number: int = 0, *, texts: Sequence[str] = ("q", "a"), tenant: str = "acme", **fields: Any) -> ShownInference:
    digests = {name: text_digest(name) for name in ("q", "a")}
    base = {"id": new_id(), "subject": None, "domain": "d", "query": digests["q"], "documents": (digests["a"],)}
    base |= {"shown": (0,), "created_at": datetime(2026, 1, 1, tzinfo=UTC), **fields}
    return ShownInference(tenant, Inference(**base), texts)


class SlowStore:
    """Holds the first group up until told otherwise, and remembers how large each was."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def record_inferences(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome]:
        self.groups.append(len(shown))
        self.entered.set()
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        return ["recorded"] * len(shown)


async def started(recorder: InferenceRecorder, store: SlowStore, count: int) -> list[asyncio.Task[RecordOutcome]]:
    """One in the first group, which is held up, and the others behind it."""
    tasks = [asyncio.create_task(recorder.record(shown()))]
    await asyncio.to_thread(store.entered.wait, 10)
    tasks += [asyncio.create_task(recorder.record(shown())) for _ in range(count - 1)]
    await asyncio.sleep(0.02)
    return tasks


def test_what_waits_while_a_group_commits_becomes_the_next_group_and_nobody_hears_before() -> None:
    store = SlowStore()
    recorder = InferenceRecorder(store)  # type: ignore[arg-type]

    async def scenario() -> None:
        tasks = await started(recorder, store, 40)
        assert not any(task.done() for task in tasks)
        store.go_on.set()
        assert await asyncio.gather(*tasks) == ["recorded"] * 40

    asyncio.run(scenario())
    assert store.groups == [1, 39]
    recorder.close()


def test_too_many_that_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 3)
    store = SlowStore()
    recorder = InferenceRecorder(store)  # type: ignore[arg-type]

    async def scenario() -> None:
        tasks = await started(recorder, store, 4)
        with pytest.raises(UnavailableError) as refused:
            await recorder.record(shown())
        assert refused.value.code == "overloaded"
        store.go_on.set()
        assert await asyncio.gather(*tasks) == ["recorded"] * 4

    asyncio.run(scenario())
    recorder.close()


@pytest.mark.parametrize("error", [UnavailableError("down."), ZeroDivisionError("a bug")])
def test_a_group_that_fails_tells_everyone_in_it_and_the_next_one_goes_on(error: Exception) -> None:
    store = SlowStore()
    store.error = error
    store.go_on.set()
    recorder = InferenceRecorder(store)  # type: ignore[arg-type]

    async def scenario() -> None:
        outcomes = await asyncio.gather(*(recorder.record(shown()) for _ in range(3)))
        assert all(isinstance(outcome, IdiolectError) for outcome in outcomes)
        store.error = None
        assert await recorder.record(shown()) == "recorded"

    asyncio.run(scenario())
    recorder.close()


def test_who_gave_up_waiting_or_whose_loop_is_gone_holds_nobody_up() -> None:
    store = SlowStore()
    recorder = InferenceRecorder(store)  # type: ignore[arg-type]

    async def gives_up() -> None:
        tasks = await started(recorder, store, 2)
        tasks[1].cancel()
        tasks[0].cancel()

    asyncio.run(gives_up())
    store.go_on.set()

    async def comes_later() -> RecordOutcome:
        return await asyncio.wait_for(recorder.record(shown()), 10)

    assert asyncio.run(comes_later()) == "recorded"
    recorder.close()


def test_one_bad_inference_of_a_group_leaves_the_others_as_they_are(world: World) -> None:
    good, again = shown(), shown()
    different = ShownInference("acme", Inference(**{**_fields(good.inference), "domain": "other"}), good.texts)
    elsewhere = ShownInference("other", good.inference, good.texts)
    group = [good, shown(texts=("q",), tenant="other"), again, different, shown(documents=("xyz",)), elsewhere, again]
    outcomes = world.store.record_inferences(group)
    assert [type(outcome) if isinstance(outcome, IdiolectError) else outcome for outcome in outcomes] == [
        "recorded",
        InvalidInputError,
        "recorded",
        ConflictError,
        InvalidInputError,
        "recorded",
        "recorded",
    ]
    for one in (good, again, elsewhere):
        assert world.store.inference(one.tenant, one.inference.id) == one.inference
    assert world.store.inference("other", group[1].inference.id) is None
    assert world.store.record_inferences([]) == []


def _fields(inference: Inference) -> dict[str, Any]:
    return {name: getattr(inference, name) for name in Inference.__dataclass_fields__}


def test_feedback_finds_the_inference_as_soon_as_its_answer_is_there(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    for number in range(5):
        ranked = api.rerank("ann", query=f"q {number}")
        signal = {"inference_id": ranked["id"], "kind": "choice", "value": 0, "user": "ann"}
        assert api.post("/v1/feedback", signal).status_code == 202


def test_after_a_slow_answer_the_event_loop_is_spared_for_a_while() -> None:
    now = [0.0]
    pace = Pace(embedded=True, monotonic=lambda: now[0])
    assert pace.allows(MOST_TEXTS)
    assert not pace.allows(MOST_TEXTS + 1)
    pace.took(SLOW_SECONDS / 2)
    assert pace.allows(1)
    pace.took(SLOW_SECONDS * 2)
    assert not pace.allows(1)
    now[0] += REST_SECONDS
    assert pace.allows(1)
    assert not Pace(embedded=False).allows(1)


@pytest.mark.parametrize("embedded", [True, False])
def test_an_answer_is_the_same_to_the_last_bit_on_the_loop_and_on_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    world.publish_domain("default")
    cold = api.rerank("ann", explain=True)
    monkeypatch.setattr(world.app.state.gateway.pace, "_embedded", embedded)
    ran: list[str] = []
    real = world.scorer.try_score
    monkeypatch.setattr(
        world.scorer,
        "try_score",
        lambda ask, **options: (ran.append(threading.current_thread().name), real(ask, **options))[1],
    )
    warm = api.rerank("ann", explain=True)
    assert (warm["results"], warm["personalization"]) == (cold["results"], cold["personalization"])
    assert [name.startswith("idiolect-serving") for name in ran] == [not embedded]


def test_an_adapter_that_is_not_resident_is_never_loaded_on_the_event_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    first = world.publish_user("ann")
    assert api.rerank("ann")["personalization"]["adapter"] == first.id
    second = world.publish_user("ann", [0.5] * world.model.user_rank)
    loaded: list[str] = []
    real = world.bank._load
    monkeypatch.setattr(
        world.bank, "_load", lambda *names: (loaded.append(threading.current_thread().name), real(*names))[1]
    )
    assert api.rerank("ann")["personalization"]["adapter"] == second.id
    assert [name.startswith("idiolect-serving") for name in loaded] == [True]
