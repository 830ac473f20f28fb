"""The local option: the store never learns what a person really answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from serving_world import World, world_at

from idiolect.privacy.randomised_response import debiasing_weight, flip_probability

PATH = "/v1/feedback"
EPSILON = 1.0


@pytest.fixture
def local_world(tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, local_epsilon=EPSILON) as made:
        yield made


def served(world: World, documents: int = 2) -> str:
    world.opt_in("ann")
    texts = [f"document {index}" for index in range(documents)]
    return str(world.api(world.key()).rerank("ann", documents=texts)["id"])


def signal(inference: str, **fields: Any) -> dict[str, Any]:
    return {"inference_id": inference, "kind": "choice", "value": 0, "user": "ann"} | fields


def stored(world: World) -> list[tuple[str, str, float]]:
    """(chosen text, rejected text, weight)"""
    snapshot = world.store.personal_snapshot("acme", max_comparisons=2000)
    pairs = snapshot.comparisons
    return [
        (snapshot.items[chosen].text, snapshot.items[rejected].text, float(weight))
        for chosen, rejected, weight in zip(pairs.chosen_C, pairs.rejected_C, pairs.weight_C, strict=True)
    ]


def test_directions_are_flipped_before_they_are_stored(local_world: World) -> None:
    inference, api, total = served(local_world), local_world.api(local_world.key()), 300
    for start in range(0, total, 100):
        batch = [signal(inference, id=f"s{start + number}") for number in range(100)]
        assert api.post(PATH, {"signals": batch}).json()["accepted"] == 100
    counts = Counter(chosen for chosen, _, _ in stored(local_world))
    assert sum(counts.values()) == total
    assert binomtest(counts["document 1"], total, flip_probability(EPSILON)).pvalue > 1e-6


def test_a_retry_does_not_draw_again(local_world: World) -> None:
    inference, api = served(local_world), local_world.api(local_world.key())
    assert api.post(PATH, signal(inference, id="s1")).json()["status"] == "accepted"
    first = stored(local_world)
    for _ in range(20):
        assert api.post(PATH, signal(inference, id="s1")).json()["status"] == "duplicate"
    assert stored(local_world) == first


@pytest.mark.parametrize(
    ("kind", "value", "weight"),
    [
        ("choice", 3, 1.0),
        ("ranking", [4, 2, 1], 1.0),
        ("accept", 0, 0.5),
        ("dismiss", 4, 0.25),
        ("rating", [[1, 5]], 1),
    ],
)
def test_a_signal_is_stored_as_one_pair_whatever_it_implied(
    local_world: World, kind: str, value: Any, weight: float
) -> None:
    """How many pairs there are, and which, would say what was answered."""
    api = local_world.api(local_world.key())
    assert api.post(PATH, signal(served(local_world, 5), kind=kind, value=value)).status_code == 202
    ((_, _, kept),) = stored(local_world)
    assert kept == pytest.approx(weight * debiasing_weight(EPSILON), rel=1e-6)


def test_the_answer_itself_is_not_stored(local_world: World) -> None:
    api = local_world.api(local_world.key())
    assert api.post(PATH, signal(served(local_world, 5), value=4)).status_code == 202
    (person,) = local_world.store.subjects("acme")
    assert [row["value"] for row in local_world.store.person_page("acme", person.subject, "signals").rows] == [None]


def test_a_bad_signal_is_refused_as_without_the_option(local_world: World) -> None:
    api = local_world.api(local_world.key())
    assert api.post(PATH, signal(served(local_world), value=7)).status_code == 422
    assert stored(local_world) == []


def test_without_the_option_feedback_is_stored_as_it_was_given(world: World) -> None:
    api = world.api(world.key())
    for number in range(20):
        api.post(PATH, signal(served(world), id=f"s{number}"))
    assert set(stored(world)) == {("document 0", "document 1", 1.0)}
