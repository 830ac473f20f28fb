"""Group commit: what waits together is written together, and nobody is told before it is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from serving_world import World

from idiolect.errors import ConflictError, IdiolectError, InvalidInputError, UnavailableError
from idiolect.ids import new_id, text_digest
from idiolect.resets.plan import plan_reset
from idiolect.signals.events import Inference
from idiolect.stores.ports import RecordOutcome, ShownInference
from idiolect_services.gateway import recorder as recorder_module
from idiolect_services.gateway.pace import MOST_TEXTS, RESTS, SLOW_SECONDS, Pace, Spent
from idiolect_services.gateway.recorder import AT_ONCE_IN_A_ROW, InferenceRecorder


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


class Hour:
    """A clock, and what the threads have done."""

    def __init__(self) -> None:
        self.now, self.spent = 0.0, Spent(0, 0, 0.0)

    def pace(self, *, embedded: bool = True) -> Pace:
        return Pace(embedded=embedded, monotonic=lambda: self.now, spent=lambda: self.spent)

    def answer(self, pace: Pace, seconds: float, *, waits: int = 1, reads: int = 0, others: float = 0.0) -> None:
        """`others`: the share of the time for which other threads compute."""
        began = pace.begins()
        self.now += seconds
        self.spent = Spent(self.spent.waits + waits, self.spent.reads + reads, self.spent.others_s + others * seconds)
        pace.ends(began)


def test_after_a_slow_answer_the_event_loop_is_spared_for_the_longer_the_slower_it_was() -> None:
    hour = Hour()
    pace = hour.pace()
    assert pace.allows(MOST_TEXTS)
    assert not pace.allows(MOST_TEXTS + 1)
    assert not hour.pace(embedded=False).allows(1)
    for seconds in (2 * SLOW_SECONDS, 8 * SLOW_SECONDS):
        hour.answer(pace, SLOW_SECONDS / 2)
        assert pace.allows(1)
        hour.answer(pace, seconds)
        hour.now += 0.9 * RESTS * seconds
        assert not pace.allows(1)
        hour.now += 0.2 * RESTS * seconds
        assert pace.allows(1)


def test_a_pause_that_the_system_made_says_nothing_of_the_store() -> None:
    hour = Hour()
    pace = hour.pace()
    hour.answer(pace, 100 * SLOW_SECONDS, waits=0)
    assert pace.allows(1)


def test_waiting_for_the_interpreter_while_others_compute_says_nothing_of_the_store() -> None:
    hour = Hour()
    pace = hour.pace()
    hour.answer(pace, 100 * SLOW_SECONDS, waits=80, others=0.9)
    assert pace.allows(1)
    hour.answer(pace, 2 * SLOW_SECONDS, waits=80, others=0.1)
    assert not pace.allows(1)


def test_a_disk_that_was_read_is_slow_whatever_others_did_meanwhile() -> None:
    hour = Hour()
    pace = hour.pace()
    hour.answer(pace, 2 * SLOW_SECONDS, reads=1, others=1.0)
    assert not pace.allows(1)


def test_what_other_threads_compute_is_told_from_waiting_for_nothing() -> None:
    done = threading.Event()

    def compute() -> None:
        until = time.thread_time() + 5 * SLOW_SECONDS
        while time.thread_time() < until:
            pass
        done.set()

    before = Pace(embedded=True).begins().spent
    threading.Thread(target=compute).start()
    done.wait()
    after = Pace(embedded=True).begins().spent
    assert after.others_s - before.others_s > 4 * SLOW_SECONDS
    assert after.waits > before.waits


def test_a_thread_that_waits_is_seen_to() -> None:
    pace = Pace(embedded=True)
    began = pace.begins()
    threading.Event().wait(2 * SLOW_SECONDS)
    pace.ends(began)
    assert not pace.allows(1)


class AtOnceStore(SlowStore):
    """Also writes at once, as long as nobody else is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on.set()
        self.busy = False

    def record_at_once(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome] | None:
        if self.error is not None:
            raise self.error
        return None if self.busy else ["recorded"] * len(shown)


def at_once(store: AtOnceStore) -> InferenceRecorder:
    return InferenceRecorder(store, pace=Hour().pace())  # type: ignore[arg-type]


def test_where_nothing_has_to_be_waited_for_a_group_is_written_at_once() -> None:
    store = AtOnceStore()
    recorder = at_once(store)
    assert recorder.record_at_once([shown(), shown()]) == ["recorded"] * 2
    assert store.groups == []
    store.busy = True
    assert recorder.record_at_once([shown()]) is None
    assert InferenceRecorder(store).record_at_once([shown()]) is None  # type: ignore[arg-type]


def test_of_many_groups_one_goes_through_the_thread_which_moves_the_log() -> None:
    store = AtOnceStore()
    recorder = at_once(store)
    for _ in range(2):
        for _ in range(AT_ONCE_IN_A_ROW):
            assert recorder.record_at_once([shown()]) == ["recorded"]
        assert recorder.record_at_once([shown()]) is None
        assert asyncio.run(recorder.record(shown())) == "recorded"
        settle(recorder)
    assert store.groups == [1, 1]
    recorder.close()


def test_while_the_thread_writes_nothing_overtakes_it() -> None:
    store = AtOnceStore()
    store.go_on.clear()
    recorder = at_once(store)

    async def scenario() -> None:
        tasks = await started(recorder, store, 1)
        assert recorder.record_at_once([shown()]) is None
        store.go_on.set()
        assert await asyncio.gather(*tasks) == ["recorded"]

    asyncio.run(scenario())
    recorder.close()
    assert recorder.record_at_once([shown()]) == ["recorded"]


@pytest.mark.parametrize("error", [UnavailableError("down."), ZeroDivisionError("a bug")])
def test_a_group_that_fails_at_once_tells_everyone_in_it(error: Exception) -> None:
    store = AtOnceStore()
    store.error = error
    outcomes = at_once(store).record_at_once([shown(), shown()])
    assert outcomes is not None
    assert [isinstance(outcome, IdiolectError) for outcome in outcomes] == [True, True]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is just now, the loop is never spared."""
    monkeypatch.setattr(Pace, "ends", lambda _pace, _began: None)


def warm(world: World) -> Any:
    api = world.api(world.key())
    world.opt_in("ann")
    world.publish_user("ann")
    api.rerank("ann")
    settle(world.app.state.gateway.recorder)
    return api


def settle(recorder: InferenceRecorder) -> None:
    """The thread has seen that nothing waits."""
    recorder._pool.submit(lambda: None).result()


@pytest.mark.usefixtures("unhurried")
def test_a_warm_ranking_is_recorded_without_a_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    api = warm(world)
    monkeypatch.setattr(world.store, "record_inferences", lambda shown: [ConflictError("by a thread.")] * len(shown))
    ranked = api.rerank("ann")
    assert ranked["personalization"]["applied"]
    inference = world.store.inference("acme", ranked["id"])
    assert inference is not None
    assert inference.shown == tuple(result["index"] for result in ranked["results"])


def test_beside_another_writer_a_warm_ranking_is_recorded_by_the_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = warm(world)
    turn, real = world.store._database._turn, world.store.record_inferences
    turn.acquire()
    monkeypatch.setattr(world.store, "record_inferences", lambda shown: (turn.release(), real(shown))[1])
    assert world.store.inference("acme", api.rerank("ann")["id"]) is not None


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("error", [UnavailableError("down."), ConflictError("a bug.")])
def test_what_can_not_be_recorded_at_once_is_answered_as_what_the_thread_can_not_record(
    world: World, monkeypatch: pytest.MonkeyPatch, error: IdiolectError
) -> None:
    api = warm(world)
    answers = []
    for outcome in ([error], None):
        monkeypatch.setattr(world.store, "record_at_once", lambda _shown, outcome=outcome: outcome)
        monkeypatch.setattr(world.store, "record_inferences", lambda _shown: [error])
        response = api.post("/v1/rerank", {"query": "q", "documents": ["document 1", "document 0"], "user": "ann"})
        said = response.json()
        answers.append((response.status_code, said.get("id"), said.get("personalization"), said.get("code")))
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("unhurried")
def test_a_warm_ranking_whose_person_was_reset_before_it_was_recorded_is_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, subject = warm(world), world.pseudonym("acme", "ann")
    real, once = world.store.record_at_once, []

    def record(shown: Sequence[ShownInference]) -> Any:
        if not once:
            once.append(shown[0].inference.id)
            world.store.apply_reset("acme", subject, new_id(), plan_reset("adapter"), world.clock.now())
        return real(shown)

    monkeypatch.setattr(world.store, "record_at_once", record)
    answer = api.rerank("ann")
    assert world.store.inference("acme", once[0]) is None
    assert (answer["personalization"]["applied"], answer["personalization"]["generation"]) == (False, 1)
    assert world.store.inference("acme", answer["id"]) is not None


@pytest.mark.usefixtures("unhurried")
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
    real = world.store.resolve
    monkeypatch.setattr(
        world.store, "resolve", lambda *names: (ran.append(threading.current_thread().name), real(*names))[1]
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
    assert [name.startswith("idiolect-loading") for name in loaded] == [True]
