"""The bank's books: slots, readers, pins, admission, the host cache and refusals."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import HashModel, K, signed_version, template_for

from idiolect.clock import SystemClock
from idiolect.errors import CorruptArtifactError, NotFoundError, UnavailableError
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.signing import Signer
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.runtime.admission import FrequencySketch
from idiolect_adapters.runtime.bank import AdapterBank, Owner
from idiolect_adapters.runtime.slab import Held, Key, Slab

MODEL, SIGNER, CLOCK = HashModel(), Signer(b"\x07" * 32), SystemClock()


class Registry:
    """People with several versions each; the weights of a version spell out whose and which it is."""

    def __init__(self, people: int, versions: int = 1) -> None:
        self.stored: dict[str, StoredVersion] = {}
        self.wanted: list[list[ResolvedVersion]] = []
        self.loads = 0
        self.trouble: Callable[[], None] = lambda: None
        template = template_for("acme", "user", MODEL, CLOCK)
        for person in range(people):
            mine = [
                signed_version(template, SIGNER, weights_of(person, number).tolist(), subject=owner(person).name)
                for number in range(versions)
            ]
            self.stored.update({one.id: StoredVersion(template, one, False) for one in mine})
            self.wanted.append([ResolvedVersion(v.id, v.release, v.weights_sha256, v.generation) for v in mine])

    def load(self, _tenant: str, version_id: str) -> StoredVersion | None:
        self.loads += 1
        self.trouble()
        return self.stored.get(version_id)

    def bank(self, **options: object) -> AdapterBank:
        return AdapterBank(MODEL, self.load, SIGNER, **options)  # type: ignore[arg-type]


def owner(person: int) -> Owner:
    return Owner("acme", "user", f"person-{person}")


def weights_of(person: int, number: int) -> np.ndarray:
    return np.arange(K) / 8.0 + 100.0 * number + person + 1.0


def test_ten_thousand_swaps_loads_evictions_and_failures_never_serve_another_version() -> None:
    people, versions = 24, 4
    registry = Registry(people, versions)
    dice = random.Random(7)  # only the loader's; every thread has its own

    def sometimes_down() -> None:
        if dice.random() < 0.1:
            raise UnavailableError("down.")

    registry.trouble = sometimes_down
    bank = registry.bank(max_adapters=10, host_bytes=6_000)
    live = [0] * people
    problems: list[str] = []

    def step(chance: random.Random) -> None:
        person = chance.randrange(people)
        number = live[person]
        wanted = registry.wanted[person][number]
        action = chance.random()
        try:
            if action < 0.60:
                if not np.array_equal(bank.weights(owner(person), wanted), weights_of(person, number)):
                    problems.append(f"torn weights of {person}, version {number}")
            elif action < 0.75:
                with bank.lease(owner(person), wanted) as leased:
                    if leased is not None:
                        time.sleep(0)
                        row = leased.slab.rows_S_K[leased.slot] * leased.slab.scale_S[leased.slot]
                        if not np.array_equal(row, weights_of(person, number)):
                            problems.append(f"a leased row of {person} was used again")
            elif action < 0.85:
                live[person] = (number + 1) % versions
                bank.unload(owner(person), wanted)
            elif action < 0.90:
                bank.purge("acme", owner(person).name)
            elif action < 0.95:
                bank.prefetch(owner(person), wanted)
            elif bank.pin(owner(person), wanted):
                bank.unpin(owner(person), wanted)
        except UnavailableError:
            pass  # the loader's; nothing may be left of it

    def traffic(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(2_500):
            step(chance)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(traffic, seed) for seed in range(4)]:
            future.result(60)
    bank.close()
    assert problems == []
    bank.check_integrity()
    stats = bank.stats()
    assert stats.draining == stats.pinned == 0
    assert min(stats.evictions, stats.hits, stats.loads, stats.host_hits, stats.host_evictions) > 0
    assert stats.loading == 0
    for person in range(people):
        bank.purge("acme", owner(person).name)
    emptied = bank.stats()
    assert (emptied.entries, emptied.bytes, emptied.host_entries, emptied.host_bytes) == (0, 0, 0, 0)
    bank.check_integrity()


def test_memory_returns_to_its_level_after_a_million_loads_and_unloads() -> None:
    slab = Slab(256, K)
    keys = [Key(f"{number:064x}", 0, f"v{number}").digest for number in range(256)]
    rows = [Held(owner(number).digest, np.ones(K, dtype=np.float32), 1.0) for number in range(256)]

    def rounds(count: int) -> None:
        for _ in range(count):
            for key, row in zip(keys, rows, strict=True):
                slab.insert(key, row)
            for key in keys:
                slab.unload(key)

    rounds(2)
    before = sys.getallocatedblocks()
    rounds(1_000_000 // 256)
    assert abs(sys.getallocatedblocks() - before) < 500
    assert (len(slab), slab.bytes_used) == (0, 0)
    assert not slab.rows_S_K.any()
    slab.check_integrity()


def test_what_the_bank_loads_verifies_and_lets_go_of_leaves_nothing_in_any_tier() -> None:
    registry = Registry(60)
    bank = registry.bank(max_adapters=20, host_bytes=30 * (700 + 4 * K))  # not for all

    def rounds(count: int) -> None:
        for _ in range(count):
            for person in range(60):
                bank.weights(owner(person), registry.wanted[person][0])
            for person in range(60):
                bank.unload(owner(person), registry.wanted[person][0])
        gc.collect()

    rounds(2)
    before = sys.getallocatedblocks()
    rounds(10)
    assert abs(sys.getallocatedblocks() - before) < 500
    stats = bank.stats()
    assert stats.loads == registry.loads == 60 * 12
    assert min(stats.evictions, stats.host_evictions) > 0
    assert (stats.entries, stats.bytes, stats.host_entries, stats.host_bytes) == (0, 0, 0, 0)
    bank.check_integrity()


def test_a_version_in_use_is_drained_not_torn() -> None:
    registry = Registry(3)
    bank = registry.bank(max_adapters=2)
    first = registry.wanted[0][0]
    with bank.lease(owner(0), first) as leased:
        assert leased is not None
        assert bank.purge("acme", owner(0).name) == 1
        assert not bank.holds(owner(0), first)
        for person in (1, 2):
            bank.weights(owner(person), registry.wanted[person][0])
        assert np.array_equal(leased.slab.rows_S_K[leased.slot], weights_of(0, 0))
        assert bank.stats().draining == 1
        bank.check_integrity()
    assert bank.stats().draining == 0
    assert not leased.slab.rows_S_K[leased.slot].any()
    bank.check_integrity()


def test_unloading_zeroes_the_memory_and_gives_the_bytes_back() -> None:
    registry = Registry(1)
    bank = registry.bank()
    wanted = registry.wanted[0][0]
    with bank.lease(owner(0), wanted) as leased:
        assert leased is not None
    assert bank.stats().bytes > 0
    assert bank.unload(owner(0), wanted)
    assert not bank.unload(owner(0), wanted)
    assert bank.stats().bytes == 0
    assert not leased.slab.rows_S_K.any()
    bank.weights(owner(0), wanted)
    assert registry.loads == 2


def test_a_pass_over_many_people_does_not_push_out_those_who_come_often() -> None:
    registry = Registry(140)
    bank = registry.bank(max_adapters=40, host_bytes=0)
    regulars = range(40)
    for _ in range(5):
        for person in regulars:
            bank.weights(owner(person), registry.wanted[person][0])
    for person in range(40, 140):
        assert np.array_equal(bank.weights(owner(person), registry.wanted[person][0]), weights_of(person, 0))
    assert sum(bank.holds(owner(person), registry.wanted[person][0]) for person in regulars) >= 38
    assert bank.stats().turned_away >= 98


def test_old_fame_fades() -> None:
    sketch = FrequencySketch(4)
    for _ in range(15):
        sketch.add("old")
    peak = sketch.estimate("old")
    for number in range(200):
        sketch.add(number)
    assert sketch.estimate("old") < peak


@given(st.lists(st.integers(0, 30), max_size=30))
def test_the_sketch_never_counts_too_little_between_two_halvings(keys: list[int]) -> None:
    sketch = FrequencySketch(16)  # halves after 160
    for key in keys:
        sketch.add(key)
    assert all(sketch.estimate(key) >= min(keys.count(key), 15) for key in set(keys))


def test_what_is_pinned_stays_and_at_most_half_may_be() -> None:
    registry = Registry(8)
    bank = registry.bank(max_adapters=4, host_bytes=0)
    assert [bank.pin(owner(person), registry.wanted[person][0]) for person in range(3)] == [True, True, False]
    for _ in range(3):
        for person in range(2, 8):
            bank.weights(owner(person), registry.wanted[person][0])
    assert all(bank.holds(owner(person), registry.wanted[person][0]) for person in range(2))
    assert bank.purge("acme", owner(0).name) == 1  # a pin is no protection from a reset
    assert bank.stats().pinned == 1
    bank.unpin(owner(1), registry.wanted[1][0])
    bank.check_integrity()


def test_what_was_pushed_out_comes_back_from_the_host_cache_without_the_registry() -> None:
    registry = Registry(2)
    bank = registry.bank(max_adapters=1)
    for person in (0, 1):
        bank.weights(owner(person), registry.wanted[person][0])
    loads = registry.loads
    assert np.array_equal(bank.weights(owner(0), registry.wanted[0][0]), weights_of(0, 0))
    assert registry.loads == loads
    assert bank.stats().host_hits == 1
    with pytest.raises(CorruptArtifactError, match="another owner"):
        bank.weights(owner(0), registry.wanted[1][0])
    bank.purge("acme", owner(1).name)
    bank.weights(owner(1), registry.wanted[1][0])
    assert registry.loads == loads + 1


def test_the_host_cache_stays_within_its_bytes() -> None:
    registry = Registry(20)
    bank = registry.bank(max_adapters=1, host_bytes=5_000)
    for person in range(20):
        bank.weights(owner(person), registry.wanted[person][0])
    assert 0 < bank.stats().host_bytes <= 5_000
    bank.check_integrity()


def test_a_refusal_is_remembered_for_a_while_and_only_for_whom_it_was() -> None:
    registry = Registry(1)
    now = [0.0]
    bank = registry.bank(monotonic=lambda: now[0])
    wanted = registry.wanted[0][0]
    stranger = owner(1)
    for _ in range(3):
        with pytest.raises(CorruptArtifactError, match="not the one that was resolved") as refused:
            bank.weights(stranger, wanted)
        assert refused.value.code == "misplaced"
    assert registry.loads == 1
    assert bank.stats().refused == 3
    assert np.array_equal(bank.weights(owner(0), wanted), weights_of(0, 0))
    erased = replace(wanted, id="gone")
    with pytest.raises(NotFoundError):
        bank.weights(owner(0), erased)
    now[0] += 10.0
    loads = registry.loads
    with pytest.raises(NotFoundError):
        bank.weights(owner(0), erased)
    assert registry.loads == loads + 1


def test_a_store_that_was_away_is_asked_again_at_once() -> None:
    registry = Registry(1)
    bank = registry.bank()

    def down() -> None:
        raise UnavailableError("down.")

    registry.trouble = down
    with pytest.raises(UnavailableError):
        bank.weights(owner(0), registry.wanted[0][0])
    registry.trouble = lambda: None
    assert np.array_equal(bank.weights(owner(0), registry.wanted[0][0]), weights_of(0, 0))


def test_loads_are_bounded_and_warm_reads_do_not_wait_for_them() -> None:
    registry = Registry(10)
    bank = registry.bank(max_loads=2)
    bank.weights(owner(9), registry.wanted[9][0])
    inside, most, lock, go_on = [0], [0], threading.Lock(), threading.Event()

    def slow() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        assert go_on.wait(20)
        with lock:
            inside[0] -= 1

    registry.trouble = slow
    with ThreadPoolExecutor(8) as pool:
        cold = [pool.submit(bank.weights, owner(person), registry.wanted[person][0]) for person in range(8)]
        warm = pool.submit(lambda: None)
        assert np.array_equal(bank.weights(owner(9), registry.wanted[9][0]), weights_of(9, 0))
        go_on.set()
        for person, future in enumerate(cold):
            assert np.array_equal(future.result(20), weights_of(person, 0))
        warm.result(20)
    assert most[0] <= 2


def test_a_load_that_somebody_waits_for_does_not_wait_for_those_ahead_of_need() -> None:
    registry = Registry(10)
    bank = registry.bank(max_loads=1)
    begun, go_on = threading.Event(), threading.Event()

    def slow_ahead() -> None:
        if threading.current_thread().name.startswith("idiolect-prefetch"):
            begun.set()
            assert go_on.wait(20)

    registry.trouble = slow_ahead
    for person in range(9):
        assert bank.prefetch(owner(person), registry.wanted[person][0])
    assert begun.wait(20)
    with ThreadPoolExecutor(1) as pool:
        wanted = pool.submit(bank.weights, owner(9), registry.wanted[9][0])
        try:
            assert np.array_equal(wanted.result(20), weights_of(9, 0))
            assert bank.stats().prefetches_waiting == 9
        finally:
            go_on.set()
    bank.close()


def test_a_prefetched_version_is_there_when_it_is_asked_for() -> None:
    registry = Registry(2)
    bank = registry.bank()
    begun = threading.Semaphore(0)
    registry.trouble = begun.release
    assert bank.prefetch(owner(0), registry.wanted[0][0])
    assert bank.prefetch(owner(1), replace(registry.wanted[1][0], id="gone"))  # nobody is waiting to be told
    assert all(begun.acquire(timeout=20) for _ in range(2))
    bank.close()
    loads = registry.loads
    bank.weights(owner(0), registry.wanted[0][0])
    assert registry.loads == loads == 2


def test_an_installed_version_is_verified_and_resident_at_once() -> None:
    registry = Registry(1, versions=2)
    bank = registry.bank()
    stored = registry.stored[registry.wanted[0][0].id]
    wanted = bank.install(owner(0), stored)
    assert wanted == registry.wanted[0][0]
    assert np.array_equal(bank.weights(owner(0), wanted), weights_of(0, 0))
    assert registry.loads == 0
    forged = replace(stored, version=replace(stored.version, weights=b"x"))
    with pytest.raises(CorruptArtifactError):
        bank.install(owner(0), forged)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["load", "unload", "purge", "pin", "unpin"]), st.integers(0, 7)), max_size=60)
)
def test_the_books_balance_after_any_sequence(steps: list[tuple[str, int]]) -> None:
    bank = REGISTRY.bank(max_adapters=3, host_bytes=4_000)
    for action, person in steps:
        mine = (owner(person), REGISTRY.wanted[person][0])
        if action == "load":
            assert np.array_equal(bank.weights(*mine), weights_of(person, 0))
        elif action == "purge":
            bank.purge("acme", mine[0].name)
            assert not bank.holds(*mine)
        else:
            getattr(bank, action)(*mine)
        bank.check_integrity()
    bank.close()


REGISTRY = Registry(8)
