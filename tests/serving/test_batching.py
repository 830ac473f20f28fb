"""Forwards that requests share: fair, bounded, in time, and for nobody who has gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import HashModel

from idiolect_adapters.runtime.features import FeatureCache, Pair, digested
from idiolect_services.gateway.batching import Batcher
from idiolect_services.gateway.queueing import QUANTUM, Ask, Bounds, FairQueue
from idiolect_services.gateway.statuses import StatusError


def pairs_of(*texts: str) -> list[Pair]:
    return [(digested("q"), digested(text)) for text in texts]


def rows_of(*texts: str) -> np.ndarray:
    return np.array([HashModel.row("q", text) for text in texts])


def texts_of(name: str, count: int) -> list[str]:
    return [f"{name} {index}" for index in range(count)]


class GatedModel(HashModel):
    """Every forward waits for a permit. `fails` names a text that no forward survives."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.entered, self.permits, self.fails = threading.Semaphore(0), threading.Semaphore(0), fails

    def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.entered.release()
        assert self.permits.acquire(timeout=20)
        if any(text == self.fails for _, text in pairs):
            raise RuntimeError("the model fell over")
        return super().project(pairs)

    def open(self) -> None:
        self.permits.release(100_000)


class Bench:
    """A batcher over a model that can be held up."""

    def __init__(self, bounds: Bounds | None = None, fails: str = "") -> None:
        self.model = GatedModel(fails)
        self.cache = FeatureCache(self.model, max_bytes=1 << 22)
        self.batcher = Batcher(bounds)

    def ask(
        self,
        tenant: str,
        *texts: str,
        person: str | None = None,
        seconds: float = 20.0,
        patience: float | None = None,
    ) -> asyncio.Task[Any]:
        asked = self.batcher.features(self.cache, tenant, pairs_of(*texts), person, seconds, patience=patience)
        return asyncio.ensure_future(asked)

    async def busy(self) -> asyncio.Task[Any]:
        """A forward is under way, and stays so until there is a permit."""
        first = self.ask("busy", "first")
        assert await asyncio.to_thread(self.model.entered.acquire, timeout=10)
        return first

    @property
    def computed(self) -> list[str]:
        return [text for call in self.model.calls for _, text in call]


def run(scenario: Callable[[Bench], Awaitable[None]], bounds: Bounds | None = None, fails: str = "") -> None:
    bench = Bench(bounds, fails)
    try:
        asyncio.run(scenario(bench))  # type: ignore[arg-type]
    finally:
        bench.model.open()
        bench.batcher.close()


async def refusal(task: asyncio.Task[Any]) -> StatusError:
    with pytest.raises(StatusError) as refused:
        await task
    return refused.value


def test_requests_that_wait_together_share_one_forward_and_get_their_own_bits() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.busy()
        asks = [bench.ask(f"tenant {index % 3}", f"a {index}", "b", f"a {index}") for index in range(12)]
        await asyncio.sleep(0.01)
        bench.model.open()
        for index, ask in enumerate(asks):
            assert np.array_equal(await ask, rows_of(f"a {index}", "b", f"a {index}"))
        await first
        assert [len(call) for call in bench.model.calls] == [1, 12 + 3]  # "b" once for each tenant
        assert bench.batcher.stats().shared == 12 - 3

    run(scenario)


def test_a_small_tenant_waits_for_one_turn_of_others_however_much_another_has_sent() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.busy()
        floods = [bench.ask("flood", *texts_of(f"flood {index}", 100)) for index in range(10)]
        await asyncio.sleep(0.01)
        small = bench.ask("small", "s 1", "s 2", "s 3")
        await asyncio.sleep(0.01)
        bench.model.permits.release(3)
        assert np.array_equal(await asyncio.wait_for(small, 10), rows_of("s 1", "s 2", "s 3"))
        assert not any(flood.done() for flood in floods)
        bench.model.open()
        await asyncio.gather(*floods)

    run(scenario)


def test_beyond_its_share_a_tenant_is_told_so_and_others_still_get_in() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.busy()
        waits = bench.ask("greedy", *texts_of("a", 30))  # alone it may be larger than the bound
        await asyncio.sleep(0)
        refused = await refusal(bench.ask("greedy", "one more"))
        assert (refused.status, refused.code) == (429, "share_exceeded")
        assert refused.retry_after_s in range(1, 61)
        other = bench.ask("other", *texts_of("b", 15))
        await asyncio.sleep(0)
        full = await refusal(bench.ask("third", *texts_of("c", 20)))
        assert (full.status, full.code) == (503, "overloaded")
        assert full.retry_after_s in range(1, 61)
        bench.model.open()
        assert len(await waits) == 30
        assert len(await other) == 15
        assert len(await bench.ask("greedy", "one more")) == 1
        stats = bench.batcher.stats()
        assert (stats.refused_share, stats.refused_full, stats.waiting) == (1, 1, 0)

    run(scenario, Bounds(tenant_texts=20, texts=50))


def test_whoever_would_wait_too_long_is_refused_at_once_unless_they_will_wait() -> None:
    async def scenario(bench: Bench) -> None:
        bench.batcher._speed.per_second = 100.0  # a text of these is one work
        await bench.busy()
        waits = bench.ask("greedy", *texts_of("a", 600))  # alone it may take as long as it takes
        await asyncio.sleep(0)
        refused = await refusal(bench.ask("greedy", "more", patience=5.0))
        assert (refused.status, refused.code, refused.retry_after_s) == (429, "share_exceeded", 6)
        patient = bench.ask("greedy", "more", patience=7.0)
        same = bench.ask("greedy", "a 3", patience=5.0)  # it waits already
        others = [bench.ask(f"other {index}", *texts_of("b", 200), patience=5.0) for index in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in (patient, same, *others))
        # 200 texts of their own and of each other tenant come first: 8 seconds.
        assert (await refusal(bench.ask("other 0", "more", patience=7.9))).status == 429
        more = bench.ask("other 0", "more", patience=8.1)
        bench.model.open()
        await asyncio.gather(waits, patient, same, *others, more)
        assert bench.batcher.stats().refused_share == 2

    run(scenario)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 30)), min_size=1, max_size=12), st.integers(0, 300))
@settings(max_examples=80, deadline=None)
def test_what_comes_first_is_counted_as_it_is_then_taken(asks: list[tuple[str, int]], most: int) -> None:
    """Nobody who was let in waits for more work than was allowed, but for what one turn of each rounds off."""
    cache, queue, asked = FeatureCache(HashModel(), max_bytes=0), FairQueue(Bounds(10_000, 100_000)), {}
    for number, (tenant, count) in enumerate(asks):
        pairs = pairs_of(*texts_of(f"{number}", count))
        ask = Ask(tenant, None, np.empty((count, cache.width)), 1e9, None, None)  # type: ignore[arg-type]
        if queue.join(ask, cache, [(row, pair, None) for row, pair in enumerate(pairs)], most_ahead=most) is None:
            asked[number] = tenant
    work = 0
    seen: set[int] = set()
    while taken := queue.take(1, now=0.0):
        for text in taken:
            number = int(text.pair[1].text.split()[0])
            assert number in seen or work <= most + 2 * QUANTUM * len(set(asked.values()))
            seen.add(number)
            work += text.work
    assert seen == set(asked)
    assert not queue._work


def test_asking_for_the_same_text_without_end_is_bounded_too() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.busy()
        asks = [bench.ask("greedy", "same") for _ in range(6)]
        await asyncio.sleep(0.01)
        assert [ask.done() for ask in asks] == [False] * 5 + [True]
        assert (await refusal(asks[5])).status == 429
        bench.model.open()
        await asyncio.gather(*asks[:5])

    run(scenario, Bounds(tenant_texts=5, texts=50))


def test_what_is_cached_takes_no_place_in_the_queue() -> None:
    async def scenario(bench: Bench) -> None:
        bench.model.open()
        await bench.ask("t", *texts_of("a", 9))
        assert len(await bench.ask("t", *texts_of("a", 9))) == 9
        assert len(await bench.ask("t", *texts_of("a", 9), "new")) == 10
        assert bench.computed.count("a 0") == 1

    run(scenario, Bounds(tenant_texts=1, texts=1))


def test_whoever_goes_away_frees_the_place_and_a_text_that_another_waits_for_is_computed() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.busy()
        gone = bench.ask("t", "shared", "only theirs")
        stays = bench.ask("t", "shared")
        await asyncio.sleep(0.01)
        assert bench.batcher.stats().waiting == 2
        gone.cancel()
        await asyncio.sleep(0.01)
        assert bench.batcher.stats().waiting == 1
        bench.model.open()
        assert np.array_equal(await stays, rows_of("shared"))
        assert bench.computed == ["first", "shared"]
        assert bench.batcher.stats().left == 1

    run(scenario)


def test_work_that_is_too_late_is_dropped_before_its_forward() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.busy()
        late = await refusal(bench.ask("t", "late", seconds=0.05))
        assert (late.status, late.code) == (503, "deadline_exceeded")
        assert late.retry_after_s
        assert bench.batcher.stats().waiting == 0
        bench.model.open()
        await bench.ask("t", "in time")
        assert bench.computed == ["first", "in time"]
        assert bench.batcher.stats().expired == 1

    run(scenario)


def test_what_is_too_late_is_not_taken_either_though_nobody_has_said_so_yet() -> None:
    """A loop that is held up tells nobody that their time is over. Who shares a text and has time gets it."""
    cache = FeatureCache(HashModel(), max_bytes=0)
    queue = FairQueue(Bounds())
    for expires, texts in ((1.0, ("late", "both")), (9.0, ("both", "in time"))):
        ask = Ask("t", None, np.empty((2, cache.width)), expires, None, None)  # type: ignore[arg-type]
        assert queue.join(ask, cache, [(row, pair, None) for row, pair in enumerate(pairs_of(*texts))]) is None
    assert [text.pair[1].text for text in queue.take(1_000, now=1.0)] == ["both", "in time"]
    assert (queue.texts, queue.tenants, dict(queue._asks)) == (0, 0, {"t": 1})


def test_a_text_that_the_model_can_not_do_takes_nobody_elses_answer_away() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.busy()
        good, bad = bench.ask("t", "good"), bench.ask("u", "also good", "poison")
        await asyncio.sleep(0.01)
        bench.model.open()
        assert np.array_equal(await good, rows_of("good"))
        with pytest.raises(RuntimeError, match="fell over"):
            await bad
        await first
        assert np.array_equal(await bench.ask("u", "also good"), rows_of("also good"))

    run(scenario, fails="poison")


def test_a_text_that_two_people_waited_for_stays_when_one_of_them_is_purged() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.busy()
        asks = [bench.ask("t", "both", person="ann"), bench.ask("t", "both", "hers", person="bob")]
        await asyncio.sleep(0.01)
        bench.model.open()
        await asyncio.gather(*asks)
        assert bench.cache.purge_person("t", "bob") == 1
        assert bench.cache.cached("t", pairs_of("both")) is not None
        assert bench.cache.cached("t", pairs_of("hers")) is None

    run(scenario)


def test_closing_tells_those_who_wait() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.busy()
        waits = bench.ask("t", "a")
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(asyncio.to_thread(bench.batcher.close))
        with pytest.raises(Exception, match="stops"):
            await waits
        bench.model.open()
        await first
        await closing

    run(scenario)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.integers(16, 200))
@settings(max_examples=60, deadline=None)
def test_tenants_get_equal_work_while_they_wait(counts: list[int], budget: int) -> None:
    """Of two tenants that both still wait, neither is ever ahead by more than two turns and one text."""
    cache = FeatureCache(HashModel(), max_bytes=0)
    queue = FairQueue(Bounds(10_000, 100_000))
    for number, count in enumerate(counts):
        texts = [f"{number} {index} " + "x" * (37 * index % 900) for index in range(count)]
        ask = Ask(str(number), None, np.empty((count, cache.width)), 1e9, None, None)  # type: ignore[arg-type]
        assert queue.join(ask, cache, [(row, pair, None) for row, pair in enumerate(pairs_of(*texts))]) is None
    done: Counter[str] = Counter()
    while taken := queue.take(budget, now=0.0):
        for text in taken:
            done[text.tenant] += text.work
            queue.landed(text, np.zeros(cache.width))
        waiting = [done[tenant] for tenant in queue._queues]
        assert not waiting or max(waiting) - min(waiting) <= 2 * QUANTUM + 9
    assert queue.texts == queue.work == queue.tenants == 0
    assert not queue._texts
    assert not queue._asks


def test_real_concurrency_keeps_a_small_tenants_waits_bounded_under_a_flood() -> None:
    """A wait is counted in texts that were computed meanwhile. The flood has always 1,500 waiting: first come, first
    served would compute them all before whoever comes behind it."""

    class Paced(HashModel):
        computed = 0

        def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
            time.sleep(len(pairs) / 2_000)
            Paced.computed += len(pairs)
            return super().project(pairs)

    cache, batcher = FeatureCache(Paced(), max_bytes=0), Batcher()
    waits: list[int] = []

    async def flood(number: int) -> None:
        for round_ in range(1000):
            await batcher.features(cache, "flood", pairs_of(*texts_of(f"{number} {round_}", 150)), None, 30.0)

    async def scenario() -> None:
        floods = [asyncio.ensure_future(flood(number)) for number in range(10)]
        await asyncio.sleep(0.3)
        for number in range(25):
            before = Paced.computed
            await batcher.features(cache, "small", pairs_of(f"a {number}", f"b {number}"), None, 30.0)
            waits.append(Paced.computed - before)
            assert batcher.stats().waiting > 500
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)

    asyncio.run(scenario())
    batcher.close()
    assert sorted(waits)[-2] < 1000, waits
