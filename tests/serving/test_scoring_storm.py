"""Ten thousand things at once, at random: swaps, loads, evictions and cancellations beside people who rank."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from serving_world import K, World, world_at

from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import digested
from idiolect_services.gateway.batching import Batcher
from idiolect_services.scorer import Scorer, ScoreRequest

STEPS, CLIENTS = 10_000, 40
PEOPLE, VERSIONS, SLOTS = 12, 3, 4
TEXTS = tuple((digested("q"), digested(f"text {number}")) for number in range(30))


@dataclass
class Span:
    version: str
    began: int
    ended: float = math.inf


@dataclass
class Live:
    """Which version of a person was live when. One counts from before its swap was asked for until the next swap was
    answered: while a swap is under way either may be served."""

    versions: list[str]
    spans: list[Span] = field(default_factory=list)

    def begin(self, version: str, tick: int) -> None:
        self.spans.append(Span(version, tick))

    def settle(self, tick: int) -> None:
        if len(self.spans) > 1:
            self.spans[-2].ended = tick

    def between(self, first: int, last: int) -> set[str]:
        return {span.version for span in self.spans if span.began <= last and span.ended >= first}


class Storm:
    def __init__(self, world: World) -> None:
        self.world = world
        self.bank = AdapterBank(world.model, world.whole, world.signer, max_adapters=SLOTS, host_bytes=4_000)
        self.scorer = Scorer(world.store, world.features, self.bank)
        self.batcher = Batcher()
        self.dice = random.Random(11)
        self.ticks = itertools.count()
        self.weights: dict[str, np.ndarray] = {}
        self.live: list[Live] = []
        self.swapping = [asyncio.Lock() for _ in range(PEOPLE)]
        self.did: Counter[str] = Counter()
        for person in range(PEOPLE):
            world.opt_in(f"person {person}")
            versions = []
            for number in range(VERSIONS):
                row_K = [person + 100.0 * number + at / 8.0 for at in range(K)]
                version = world.publish_user(f"person {person}", row_K)
                self.weights[version.id] = np.array(row_K)
                versions.append(version.id)
            self.live.append(Live(versions))
            self.live[-1].begin(versions[-1], next(self.ticks))

    async def run(self) -> None:
        steps = iter(range(STEPS))
        await asyncio.gather(*(self._client(steps) for _ in range(CLIENTS)))
        self.batcher.close()
        self.bank.close()

    async def _client(self, steps: Iterator[int]) -> None:
        for _ in steps:
            person, chance = self.dice.randrange(PEOPLE), self.dice.random()
            if chance < 0.15:
                await self._swap(person)
            elif chance < 0.45:
                self._stir(person)
                await asyncio.sleep(0)
            elif chance < 0.65:
                await self._go_away(person)
            else:
                await self._rank(person)

    async def _swap(self, person: int) -> None:
        live = self.live[person]
        async with self.swapping[person]:
            version = self.dice.choice([one for one in live.versions if one != live.spans[-1].version])
            live.begin(version, next(self.ticks))
            now = self.world.clock.now()
            await asyncio.to_thread(self.world.store.promote, "acme", version, now, reason="storm", actor="t")
            live.settle(next(self.ticks))
            self.did["swaps"] += 1

    def _stir(self, person: int) -> None:
        owner, wanted = self.world.named("user", f"person {person}")
        action = self.dice.choice(("unload", "purge", "prefetch"))
        if action == "unload":
            self.bank.unload(owner, wanted)
        elif action == "purge":
            self.scorer.forget("acme", owner.name)
        else:
            self.bank.prefetch(owner, wanted)
        self.did[action] += 1

    async def _go_away(self, person: int) -> None:
        """A client that leaves after a random number of turns of the loop; some have their answer by then."""
        request = asyncio.ensure_future(self._rank(person))
        for _ in range(self.dice.randrange(6)):
            await asyncio.sleep(0)
        request.cancel()
        try:
            await request
        except asyncio.CancelledError:
            self.did["cancelled"] += 1

    async def _rank(self, person: int) -> None:
        subject = self.world.pseudonym("acme", f"person {person}")
        pairs = tuple(self.dice.sample(TEXTS, 5))
        request = ScoreRequest("acme", pairs, subject)
        began = next(self.ticks)
        features_NW = await self.batcher.features(self.world.features, "acme", pairs, subject, 60.0)
        result = await asyncio.to_thread(self.scorer.score, request, features_NW)
        said = result.personalization
        assert said.applied, said.reason
        assert said.adapter in self.live[person].between(began, next(self.ticks))
        rows_NW = np.array([self.world.model.row(prompt.text, text.text) for prompt, text in pairs])
        user_N = np.sum(rows_NW[:, 1 : 1 + K] * self.weights[said.adapter], axis=1)
        assert result.score_N == (rows_NW[:, 0] + user_N).tolist()
        self.did["ranked"] += 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, feature_cache_bytes=6_000) as world:  # about ten texts: most have to be computed
        yield world


def test_ten_thousand_swaps_loads_evictions_and_cancellations_answer_with_one_version_that_was_live(
    small: World,
) -> None:
    storm = Storm(small)
    asyncio.run(storm.run())
    stats, queue = storm.bank.stats(), storm.batcher.stats()
    assert min(storm.did[what] for what in ("swaps", "unload", "purge", "prefetch", "cancelled")) > 500
    assert storm.did["ranked"] > 3_000
    assert min(stats.hits, stats.loads, stats.evictions, stats.host_hits, queue.left, queue.shared) > 0
    assert (stats.draining, stats.pinned, stats.prefetches_waiting) == (0, 0, 0)
    assert (queue.waiting, queue.tenants) == (0, 0)
    storm.bank.check_integrity()
    small.features.check_integrity()
