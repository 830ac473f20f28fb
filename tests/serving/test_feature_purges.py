"""A reset takes the texts that only this person's requests brought in, and nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import DOCUMENTS, HashModel, World

from idiolect_adapters.runtime.features import FeatureCache, Pair, Wanted, digested

PEOPLE = ("ann", "bob", None)


def pairs_of(texts: Sequence[str]) -> list[Pair]:
    return [(digested("q"), digested(text)) for text in texts]


asks = st.tuples(st.sampled_from(["t", "u"]), st.sampled_from(PEOPLE), st.text("abcdef", max_size=5), st.integers(0, 3))


@given(st.lists(asks, max_size=25), st.sampled_from(["t", "u"]), st.sampled_from(["ann", "bob"]))
@settings(max_examples=120, deadline=None)
def test_exactly_what_only_they_asked_for_goes(
    asked: list[tuple[str, str | None, str, int]], tenant: str, person: str
) -> None:
    """By whichever of the ways a text is asked for."""
    cache = FeatureCache(HashModel(), max_bytes=1 << 20)
    askers: dict[tuple[str, str], set[str | None]] = {}
    for partition, who, texts, way in asked:
        pairs = pairs_of(texts)
        if way == 0:
            cache.project(partition, pairs, who)
        elif way == 1:
            cache.project_each([Wanted(partition, pair, who) for pair in pairs])
        elif way == 2 and cache.cached(partition, pairs, who) is None:
            continue
        elif way == 3 and cache.found(partition, pairs, who)[1]:
            texts = "".join(text for text in texts if (partition, text) in askers)
        for text in texts:
            askers.setdefault((partition, text), set()).add(who)
    gone = {key for key, people in askers.items() if key[0] == tenant and people == {person}}
    assert cache.purge_person(tenant, person) == len(gone)
    for key in askers:
        assert (cache.cached(key[0], pairs_of([key[1]])) is None) == (key in gone)
    cache.check_integrity()


def test_what_is_being_computed_for_a_purged_person_is_not_kept() -> None:
    entered, release = threading.Event(), threading.Event()

    class Blocked(HashModel):
        def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
            entered.set()
            assert release.wait(10)
            return super().project(pairs)

    cache = FeatureCache(Blocked(), max_bytes=1 << 20)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(cache.project, "t", pairs_of(["a"]), "ann")
        assert entered.wait(10)
        cache.purge_person("t", "ann")
        release.set()
        assert np.array_equal(late.result(10), np.array([HashModel.row("q", "a")]))
    assert cache.cached("t", pairs_of(["a"])) is None


def test_a_reset_over_http_forgets_their_texts_and_keeps_shared_ones(world: World) -> None:
    api = world.api(world.key())
    world.opt_in("ann")
    api.rerank("ann", documents=["hers alone", *DOCUMENTS])
    api.rerank("bob")
    assert world.features.stats().entries == 11
    assert api.post("/v1/users/ann/personalization/reset", {"scope": "all"}).status_code == 200
    assert world.features.stats().entries == 10
    assert world.features.cached("acme", pairs_of(["hers alone"])) is None
    assert world.features.cached("acme", pairs_of(DOCUMENTS)) is not None


def test_knowing_who_asked_costs_eight_bytes_for_a_text() -> None:
    cache = FeatureCache(HashModel(), max_bytes=1 << 20)
    assert cache._person_S.nbytes == 8 * cache.capacity
