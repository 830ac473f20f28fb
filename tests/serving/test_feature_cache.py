from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import HashModel

from idiolect.errors import CorruptArtifactError, IdiolectError
from idiolect_adapters.runtime.features import ENTRY_OVERHEAD_BYTES, FeatureCache, Pair, digested

ROW_BYTES = (1 + HashModel.user_rank + HashModel.domain_rank) * 8 + ENTRY_OVERHEAD_BYTES


def pairs_of(*texts: str) -> list[Pair]:
    return [(digested("q"), digested(text)) for text in texts]


def rows_of(*texts: str) -> np.ndarray:
    return np.array([HashModel.row("q", text) for text in texts])


def test_only_what_is_missing_is_computed_and_in_one_call() -> None:
    model = HashModel()
    cache = FeatureCache(model, max_bytes=1 << 20)
    cache.project("t", pairs_of("a", "b"))
    found = cache.project("t", pairs_of("c", "a", "d", "c"))
    assert model.calls == [[("q", "a"), ("q", "b")], [("q", "c"), ("q", "d")]]
    assert np.array_equal(found, rows_of("c", "a", "d", "c"))


def test_cached_never_computes_and_wants_all_of_them() -> None:
    model = HashModel()
    cache = FeatureCache(model, max_bytes=1 << 20)
    assert cache.cached("t", pairs_of("a")) is None
    cache.project("t", pairs_of("a"))
    assert cache.cached("t", pairs_of("a", "b")) is None
    found = cache.cached("t", pairs_of("a", "a"))
    assert found is not None
    assert np.array_equal(found, rows_of("a", "a"))
    assert len(model.calls) == 1


def test_one_tenant_can_not_see_from_a_hit_what_another_has_sent() -> None:
    model = HashModel()
    cache = FeatureCache(model, max_bytes=1 << 20)
    cache.project("acme", pairs_of("a"))
    assert cache.cached("other", pairs_of("a")) is None


def test_the_same_text_under_another_prompt_is_another_entry() -> None:
    cache = FeatureCache(HashModel(), max_bytes=1 << 20)
    one = cache.project("t", [(digested("q"), digested("a"))])
    two = cache.project("t", [(digested("r"), digested("a"))])
    assert not np.array_equal(one, two)


def test_the_least_recently_used_entry_goes_first() -> None:
    model = HashModel()
    cache = FeatureCache(model, max_bytes=2 * ROW_BYTES)
    cache.project("t", pairs_of("a"))
    cache.project("t", pairs_of("b"))
    assert cache.cached("t", pairs_of("a")) is not None
    cache.project("t", pairs_of("c"))
    assert cache.cached("t", pairs_of("b")) is None
    assert cache.cached("t", pairs_of("a")) is not None
    assert cache.stats().evictions == 1
    cache.check_integrity()


def test_a_cache_without_room_still_answers() -> None:
    cache = FeatureCache(HashModel(), max_bytes=0)
    assert np.array_equal(cache.project("t", pairs_of("a", "b")), rows_of("a", "b"))
    assert cache.cached("t", pairs_of("a")) is None
    assert cache.stats().entries == 0


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=20), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_whatever_is_asked_in_any_order_equals_the_model(requests: list[list[str]], room: int) -> None:
    cache = FeatureCache(HashModel(), max_bytes=room * ROW_BYTES)
    for texts in requests:
        found = cache.project("t", pairs_of(*texts))
        assert np.array_equal(found, rows_of(*texts).reshape(len(texts), cache.width))
        cache.check_integrity()
        assert cache.stats().entries <= room


class BlockedModel(HashModel):
    """Waits in `project` until released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()

    def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.entered.release()
        assert self.release.wait(10)
        return super().project(pairs)


def test_two_threads_that_want_the_same_text_compute_it_once() -> None:
    model = BlockedModel()
    cache = FeatureCache(model, max_bytes=1 << 20)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.project, "t", pairs_of("a", "b"))
        assert model.entered.acquire(timeout=10)
        second = pool.submit(cache.project, "t", pairs_of("b", "c"))
        assert model.entered.acquire(timeout=10)  # for "c" alone
        model.release.set()
        assert np.array_equal(first.result(10), rows_of("a", "b"))
        assert np.array_equal(second.result(10), rows_of("b", "c"))
    assert sorted(text for call in model.calls for _, text in call) == ["a", "b", "c"]


def test_who_waited_for_a_computation_that_failed_computes_for_itself() -> None:
    class FailsOnce(BlockedModel):
        def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
            first = not self.release.is_set()
            found = super().project(pairs)
            if first:
                raise RuntimeError("out of memory")
            return found

    model = FailsOnce()
    cache = FeatureCache(model, max_bytes=1 << 20)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.project, "t", pairs_of("a"))
        assert model.entered.acquire(timeout=10)
        second = pool.submit(cache.project, "t", pairs_of("a"))
        model.release.set()
        with pytest.raises(RuntimeError, match="out of memory"):
            first.result(10)
        assert np.array_equal(second.result(10), rows_of("a"))


def test_purging_forgets_one_tenant_also_what_is_being_computed_for_it() -> None:
    model = BlockedModel()
    cache = FeatureCache(model, max_bytes=1 << 20)
    model.release.set()
    cache.project("t", pairs_of("a", "b"))
    cache.project("u", pairs_of("a"))
    model.release.clear()
    model.entered = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(cache.project, "t", pairs_of("c"))
        assert model.entered.acquire(timeout=10)
        assert cache.purge("t") == 2
        model.release.set()
        assert np.array_equal(late.result(10), rows_of("c"))
    assert [cache.cached("t", pairs_of(text)) for text in "abc"] == [None, None, None]
    assert cache.cached("u", pairs_of("a")) is not None
    cache.check_integrity()
    cache.project("t", pairs_of("d", "e", "f"))
    cache.check_integrity()


@pytest.mark.parametrize(
    "bad", [np.full((1, 13), np.nan), np.full((1, 13), np.inf), np.zeros((1, 4)), np.zeros((2, 13))]
)
def test_a_model_that_answers_nonsense_is_refused_and_nothing_is_kept(bad: np.ndarray) -> None:
    model = HashModel()
    model.project = lambda pairs: bad  # type: ignore[method-assign]
    cache = FeatureCache(model, max_bytes=1 << 20)
    with pytest.raises(CorruptArtifactError, match="features"):
        cache.project("t", pairs_of("a"))
    assert cache.stats().entries == 0


def test_books_that_do_not_balance_are_noticed() -> None:
    cache = FeatureCache(HashModel(), max_bytes=1 << 20)
    cache.project("t", pairs_of("a", "b"))
    cache._slots["t", "x", "y"] = 0
    with pytest.raises(IdiolectError, match="balance"):
        cache.check_integrity()


def test_many_threads_on_a_small_cache_get_the_right_rows() -> None:
    cache = FeatureCache(HashModel(), max_bytes=5 * ROW_BYTES)
    texts = [f"text {index}" for index in range(20)]

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            some = [texts[index] for index in random.integers(0, 20, 6)]
            assert np.array_equal(cache.project("t", pairs_of(*some)), rows_of(*some))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    cache.check_integrity()
