"""Public constants from public people: do the recipes come out right, whatever there is to choose from?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import load_model
from idiolect_adapters.training.build import build_global, tuning_people
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_adapters.training.tuning import (
    EPSILONS,
    PULL,
    Replayed,
    TuningPairs,
    UserRecipes,
    choose_user_recipes,
    recipe_of,
    split_pairs,
    typical_curvature,
)
from idiolect_adapters.training.uncertainty import noise_covariance
from idiolect_adapters.training.user import PaddedComparisons, pad_comparisons, train_users
from tasteful_world import make_world, shared_data

K = 2


class Zeros:
    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


class SeededNoise:
    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._rng.standard_normal(shape)


class Quiet:
    def stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: None


def some_pairs(people: int, each: int, items: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Comparisons]:
    """(projected [I, 1 + K], groups, comparisons of people with a strong taste along the first direction).

    The items are always the same; `seed` draws the comparisons.
    """
    made, rng = np.random.default_rng(0), np.random.default_rng(seed)
    projected = np.concatenate([0.1 * made.normal(size=(items, 1)), made.normal(size=(items, K))], axis=1)
    group = np.arange(items) // 4
    rows = []
    for person in range(people):
        taste = np.array([3.0 * (-1) ** person, 0.0])
        for _ in range(each):
            first = 4 * int(rng.integers(items // 4))
            a, b = first + rng.choice(4, 2, replace=False)
            liking = projected[:, 0] + projected[:, 1:] @ taste
            rows.append((person, a, b) if liking[a] > liking[b] else (person, b, a))
    columns = np.array(rows, np.int32).reshape(-1, 3)
    pairs = Comparisons(columns[:, 0], columns[:, 1], columns[:, 2], np.ones(len(columns), np.float32))
    return projected, group, pairs


def test_each_epsilon_gets_a_recipe_that_helps() -> None:
    projected, group, pairs = some_pairs(30, 80)
    split = split_pairs(pairs, group, np.random.default_rng(0))
    progress: list[tuple[int, int]] = []
    recipes = choose_user_recipes(projected, K, split, Zeros(), lambda *at: progress.append(at))
    assert set(recipes.by_epsilon) == {None, *EPSILONS}
    assert progress[-1] == (1 + len(EPSILONS), 1 + len(EPSILONS))
    for recipe in recipes.by_epsilon.values():
        assert recipe.clip_norm > 0
        assert recipe.curvature_K_K.shape == (K, K)


def test_the_recipe_of_epsilon_eight_helps_people_it_was_not_chosen_on() -> None:
    projected, group, pairs = some_pairs(40, 80)
    split = split_pairs(pairs, group, np.random.default_rng(0))
    recipe = choose_user_recipes(projected, K, split, SecureNoise(), lambda *_: None).at(8.0)
    _, _, fresh = some_pairs(40, 60, seed=1)
    fresh = split_pairs(fresh, group, np.random.default_rng(1))
    taste, base = projected[:, 1:], projected[:, 0]
    margins = base[fresh.adapt.chosen_C] - base[fresh.adapt.rejected_C]
    padded = pad_comparisons(fresh.adapt, np.arange(40), taste, margins, limit=30)
    adapters = train_users(padded, recipe, noise_multiplier_for(8.0, 1e-5, recipe.steps), SecureNoise())
    test = fresh.test
    own = ((taste[test.chosen_C] - taste[test.rejected_C]) * adapters[test.person_C]).sum(axis=1)
    without = base[test.chosen_C] - base[test.rejected_C]
    assert (without + own > 0).mean() > (without > 0).mean() + 0.15


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_recipe_goes_as_far_as_it_says_for_a_comparison_of_full_length(steps: int) -> None:
    """One comparison that disagrees with everything is clipped at every step, and pulled back a little."""
    recipe = recipe_of(0.1, 0.3, steps, K)
    alone = PaddedComparisons(np.array([[[5.0, 0.0]]]), np.array([[-100.0]]), np.ones((1, 1)))
    (adapter,) = train_users(alone, recipe, 0.0, Zeros())
    unpulled = 0.3 * steps**0.3
    assert (1.0 - PULL) * unpulled < adapter[0] <= unpulled + 1e-12
    assert adapter[1] == 0.0


def test_louder_noise_gets_shorter_steps() -> None:
    """Else the noise of a thousand dice would pass for taste."""
    projected, group, pairs = some_pairs(60, 80)
    split = split_pairs(pairs, group, np.random.default_rng(0))
    recipes = choose_user_recipes(projected, K, split, SeededNoise(), lambda *_: None)
    quiet, loud = (float(noise_covariance(recipes.at(epsilon), 1.0)[0, 0]) for epsilon in (8.0, 0.5))
    assert loud < quiet


def test_replayed_noise_is_the_same_for_every_recipe() -> None:
    drawn = np.random.default_rng(0).normal(size=(2, 3, K))
    for _ in range(2):
        noise = Replayed(drawn)
        assert np.array_equal(np.stack([noise.normal((3, K)) for _ in range(2)]), drawn)


def test_a_recipe_is_that_of_the_next_smaller_epsilon() -> None:
    recipes = {eps: Recipe(1.0, 1.0 + index, 2, np.eye(K)) for index, eps in enumerate((None, *EPSILONS))}
    table = UserRecipes(recipes, np.eye(K))
    assert table.at(None) is recipes[None]
    assert table.at(0.1) is recipes[0.5]
    assert table.at(0.5) is recipes[0.5]
    assert table.at(1.99) is recipes[1.0]
    assert table.at(2.0) is recipes[2.0]
    assert table.at(100.0) is recipes[8.0]


def test_recipes_survive_json() -> None:
    recipes = UserRecipes({None: Recipe(0.5, 2.0, 20, np.eye(K)), 1.0: Recipe(0.1, 8.0, 2, 3.0 * np.eye(K))}, np.eye(K))
    again = UserRecipes.from_json(recipes.to_json(), np.eye(K))
    assert again.to_json() == recipes.to_json()
    assert again.at(1.0).prior == 8.0
    assert np.array_equal(again.at(1.0).curvature_K_K, 3.0 * np.eye(K))


def test_recipes_that_were_written_without_a_stiffness_had_the_typical_curvature() -> None:
    old = [{"epsilon": 1.0, "clip_norm": 0.1, "prior": 8.0, "steps": 2}]
    assert np.array_equal(UserRecipes.from_json(old, 7.0 * np.eye(K)).at(1.0).curvature_K_K, 7.0 * np.eye(K))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_predicted_shares_no_item_with_what_was_learned(seed: int) -> None:
    _, group, pairs = some_pairs(20, 40, seed=seed)
    split = split_pairs(pairs, group, np.random.default_rng(seed))
    assert len(split.adapt)
    assert len(split.test)
    for person in range(20):
        learned = split.adapt.where(split.adapt.person_C == person)
        tested = split.test.where(split.test.person_C == person)
        groups_learned = set(group[learned.chosen_C]) | set(group[learned.rejected_C])
        assert groups_learned.isdisjoint(set(group[tested.chosen_C]) | set(group[tested.rejected_C]))


def test_items_of_one_large_group_are_split_item_by_item() -> None:
    _, _, pairs = some_pairs(20, 60)
    split = split_pairs(pairs, np.zeros(60, np.int64), np.random.default_rng(0))
    assert len(split.adapt)
    assert len(split.test)
    for person in range(20):
        learned = split.adapt.where(split.adapt.person_C == person)
        tested = split.test.where(split.test.person_C == person)
        assert set(learned.chosen_C) | set(learned.rejected_C) <= set(range(60))
        assert (set(learned.chosen_C) | set(learned.rejected_C)).isdisjoint(
            set(tested.chosen_C) | set(tested.rejected_C)
        )


def test_no_tuning_people_give_recipes_all_the_same() -> None:
    projected, group, _ = some_pairs(1, 1)
    empty = Comparisons(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))
    for split in (
        split_pairs(empty, group, np.random.default_rng(0)),
        TuningPairs(np.zeros(0, np.int64), empty, empty),
    ):
        recipes = choose_user_recipes(projected, K, split, Zeros(), lambda *_: None)
        assert set(recipes.by_epsilon) == {None, *EPSILONS}


def test_the_curvature_is_the_hessian_of_a_typical_comparison() -> None:
    rng = np.random.default_rng(0)
    rows, margins = rng.normal(size=(200, 3)), rng.normal(size=200)

    def mean_loss(adapter: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -(margins + rows @ adapter)).mean())

    step, numeric = 1e-4, np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            a, b = step * np.eye(3)[i], step * np.eye(3)[j]
            numeric[i, j] = (mean_loss(a + b) - mean_loss(a - b) - mean_loss(b - a) + mean_loss(-a - b)) / (4 * step**2)
    assert np.allclose(typical_curvature(rows, margins), numeric, atol=1e-5)
    assert not typical_curvature(np.zeros((0, 3)), np.zeros(0)).any()


# The whole way to a model on disk


def some_people(count: int) -> SharedData:
    return shared_data(make_world(count, prompts=8), list(range(count)))


def test_a_stable_tenth_of_the_people_is_kept_for_tuning() -> None:
    data = some_people(50)
    chosen = tuning_people(data)
    assert chosen.sum() == 5
    assert np.array_equal(chosen, tuning_people(data))
    reordered = SharedData(data.items, data.people[::-1], data.ratings, data.comparisons)
    assert np.array_equal(tuning_people(reordered)[::-1], chosen)  # a matter of the person, not of the order


@pytest.mark.parametrize("people", [3, 30])
def test_a_built_model_is_complete_also_without_anybody_to_tune_on(
    tiny_bert: Path, tmp_path: Path, people: int
) -> None:
    options = GlobalOptions(user_rank=3, domain_rank=4)
    data = some_people(people)
    model = build_global(
        tmp_path, Backbone.load(tiny_bert), data, options, {"privacy": "declared public data"}, Quiet()
    )
    loaded = load_model(tmp_path, model.digest)
    pairs = [(item.prompt, item.text) for item in data.items[:8]]
    assert np.array_equal(loaded.project(pairs), model.project(pairs))
    assert np.isfinite(loaded.project(pairs)).all()
    assert loaded.temperature > 0
    assert loaded.card["training"]["privacy"] == "declared public data"
    assert loaded.card["training"]["people"] == people
    for epsilon in (None, *EPSILONS):
        assert loaded.recipes.user.at(epsilon).curvature_K_K.shape == (3, 3)
    assert loaded.recipes.domain.curvature_K_K.shape == (4, 4)


def test_ratings_alone_are_enough(tiny_bert: Path, tmp_path: Path) -> None:
    world = make_world(20, prompts=6)
    ratings = world.ratings(list(range(20)), 0.8, np.random.default_rng(0))
    nothing = Comparisons(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))
    data = SharedData(world.items, tuple(f"p{i}" for i in range(20)), ratings, nothing)
    options = GlobalOptions(user_rank=2, domain_rank=2)
    model = build_global(tmp_path, Backbone.load(tiny_bert), data, options, {}, Quiet())
    assert isinstance(data.ratings, Ratings)
    assert model.user_rank == 2
