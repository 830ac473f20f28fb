"""Why a document ranks where it does, and what is known of a person, in texts that anybody may read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_world import HashModel, K, M, World, world_at

from idiolect.registry.manifest import Carried
from idiolect_adapters.contrasts import Contrast, Contrasts, Example
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import UserRecipes
from idiolect_adapters.training.uncertainty import noise_covariance

RECIPE = Recipe(1.0, 4.0, 10, 5.0 * np.eye(K))  # clip and steps of `template_for`


def contrast(name: str) -> Contrast:
    return Contrast((Example("p", f"<b>high of {name}"),), (Example("p", f"low of {name}"),))


@dataclass(frozen=True)
class SomeRecipes:
    user: UserRecipes


class ExplainedModel(HashModel):
    contrasts = Contrasts(
        tuple(contrast(f"user {k}") for k in range(K)), tuple(contrast(f"domain {m}") for m in range(M))
    )
    recipes = SomeRecipes(UserRecipes({None: RECIPE, 0.5: RECIPE}, 5.0 * np.eye(K)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path) as made:
        yield made


@pytest.fixture
def explained(world: World) -> World:
    """The same world; its model knows what its directions mean."""
    world.model.__class__ = ExplainedModel
    return world


def told(world: World, user: str = "ann") -> dict[str, Any]:
    return dict(world.api(world.key()).get(f"/v1/users/{user}/explanation").json()["adapter"])


def test_every_score_splits_into_its_directions(explained: World) -> None:
    explained.opt_in("ann")
    explained.publish_user("ann")
    explained.publish_domain("news")
    answer = explained.api(explained.key()).rerank("ann", domain="news", explain=True, strength=0.7)
    for result in answer["results"]:
        parts, directions = result["parts"], result["directions"]
        assert result["score"] == (parts["global"] + parts["domain"]) + parts["user"]
        assert (len(directions["user"]), len(directions["domain"])) == (K, M)
        for name in ("user", "domain"):
            largest = max(map(abs, directions[name]))
            assert math.fsum(directions[name]) == pytest.approx(parts[name], abs=1e-12 * largest)
        every = {f"{name}:{k}": abs(x) for name in ("user", "domain") for k, x in enumerate(directions[name])}
        assert directions["top"] == sorted(every, key=lambda key: -every[key])[:3]
    named = {key for result in answer["results"] for key in result["directions"]["top"]}
    assert set(answer["contrasts"]) == named
    for key, shown in answer["contrasts"].items():
        assert shown["high"] == [{"prompt": "p", "text": f"<b>high of {key.replace(':', ' ')}"}]


def test_nothing_of_directions_is_said_unless_it_is_asked_for(explained: World) -> None:
    answer = explained.api(explained.key()).rerank("ann")
    assert "contrasts" not in answer
    assert not {"parts", "directions"} & set(answer["results"][0])


def test_what_was_not_applied_has_no_directions(explained: World) -> None:
    explained.opt_in("ann")
    explained.publish_user("ann")
    answer = explained.api(explained.key()).rerank("ann", explain=True, personalization="off")
    assert answer["contrasts"] == {}
    assert answer["results"][0]["directions"] == {"user": [], "domain": [], "top": []}


def test_a_person_is_told_which_of_their_directions_stand_out_from_the_noise(explained: World) -> None:
    explained.opt_in("ann")
    (noise, *_) = np.sqrt(np.diag(noise_covariance(RECIPE, 2.0))).tolist()
    weights = [0.0] * K
    weights[2], weights[5] = -3.0 * noise, 1.5 * noise
    explained.publish_user("ann", weights)
    directions = told(explained)["directions"]
    assert [one["direction"] for one in directions[:2]] == [2, 5]
    assert [one["clear"] for one in directions] == [True] + [False] * (K - 1)
    assert all(one["noise"] == pytest.approx(noise) and one["noise"] < one["uncertainty"] for one in directions)
    assert "'low' to those under 'high'" in directions[0]["says"]
    assert "noise alone" in directions[1]["says"]
    assert directions[0]["low"] == [{"prompt": "p", "text": "low of user 2"}]


def test_noise_that_is_not_known_is_not_made_up(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    for one in told(world)["directions"]:
        assert (one["noise"], one["uncertainty"], one["clear"], one["high"]) == (None, None, None, [])
        assert "is not known" in one["says"]


def test_other_constants_than_the_models_are_not_claimed_to_be_understood(explained: World) -> None:
    explained.opt_in("ann")
    version = explained.publish_user("ann")
    template = explained.store.version("acme", version.id).template
    other = replace(template.privacy, clip_norm=9.0)
    explained.publish_user("ann", privacy=other)
    assert {one["clear"] for one in told(explained)["directions"]} == {None}


def test_a_carried_adapter_says_so_and_has_the_noise_that_its_manifest_tells(explained: World) -> None:
    explained.opt_in("ann")
    explained.publish_user("ann", [1.0] * K, carried=Carried("release-0", "d" * 64, (0.4,) * 4 + (0.6,) * 4))
    adapter = told(explained)
    assert adapter["carried_from"] == "release-0"
    assert [one["clear"] for one in adapter["directions"]] == [True] * 4 + [False] * 4
