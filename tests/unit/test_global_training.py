"""The global model on a world whose tastes are known: does it learn what is shared, and how people differ?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from idiolect.errors import InvalidInputError
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import Head, project_features, text_features
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.global_model import GlobalOptions, train_global
from idiolect_adapters.training.user import pad_comparisons, train_users
from tasteful_world import World, make_world, shared_data

PEOPLE = 40
TRAINED, NEW = list(range(28)), list(range(28, PEOPLE))
OPTIONS = GlobalOptions(user_rank=3, domain_rank=4)


class NoNoise:
    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


@dataclass(frozen=True)
class Trained:
    world: World
    data: SharedData
    backbone: Backbone
    head: Head
    progress: list[tuple[int, int]]

    def projected(self) -> np.ndarray:
        pairs = [(item.prompt, item.text) for item in self.world.items]
        return project_features(text_features(self.backbone, pairs, self.head.kernel), self.head)


def mask(people: list[int]) -> np.ndarray:
    return np.isin(np.arange(PEOPLE), people)


def train(tiny_bert: Path, data: SharedData, options: GlobalOptions = OPTIONS) -> tuple[Backbone, Head]:
    backbone = Backbone.load(tiny_bert)
    pooled_I_H = backbone.features([(item.prompt, item.text) for item in data.items])
    return backbone, train_global(pooled_I_H, data, mask(TRAINED), options)


@pytest.fixture(scope="module")
def trained(tiny_bert: Path) -> Trained:
    world = make_world(PEOPLE)
    data = shared_data(world, TRAINED)
    backbone = Backbone.load(tiny_bert)
    progress: list[tuple[int, int]] = []
    pooled_I_H = backbone.features([(item.prompt, item.text) for item in data.items])
    head = train_global(pooled_I_H, data, mask(TRAINED), OPTIONS, lambda *at: progress.append(at))
    return Trained(world, data, backbone, head, progress)


def accuracy(score_I: np.ndarray, pairs: Comparisons) -> float:
    return float((score_I[pairs.chosen_C] > score_I[pairs.rejected_C]).mean())


def test_everybody_likes_what_the_reward_head_likes(trained: Trained) -> None:
    world, score_I = trained.world, trained.projected()[:, 0]
    good = [(i, j) for i in range(len(score_I)) for j in range(len(score_I)) if i // 4 == j // 4]
    good = [(i, j) for i, j in good if world.good_I[i] > world.good_I[j] and world.warm_I[i] == world.warm_I[j]]
    assert np.mean([score_I[i] > score_I[j] for i, j in good]) > 0.95


def test_the_loss_of_the_trained_people_falls_well_below_chance(trained: Trained) -> None:
    pairs = trained.world.comparisons(TRAINED, 30, np.random.default_rng(9))
    score_I = trained.projected()[:, 0]
    loss = np.logaddexp(0.0, -(score_I[pairs.chosen_C] - score_I[pairs.rejected_C])).mean()
    assert loss < 0.8 * np.log(2.0)


def test_new_people_are_ranked_far_better_with_their_own_adapter(trained: Trained) -> None:
    """The basis must hold the direction in which people differ, though no one of these was in the training."""
    rng = np.random.default_rng(5)
    learned, judged = trained.world.comparisons(NEW, 25, rng), trained.world.comparisons(NEW, 60, rng)
    projected = trained.projected()
    taste_I_K = projected[:, 1 : 1 + OPTIONS.user_rank]
    margins = projected[learned.chosen_C, 0] - projected[learned.rejected_C, 0]
    padded = pad_comparisons(learned, np.array(NEW), taste_I_K, margins, limit=25)
    differences = taste_I_K[learned.chosen_C] - taste_I_K[learned.rejected_C]
    recipe = Recipe(10.0, 1.0, 20, 25 * 0.25 * differences.T @ differences / len(differences))
    adapters = train_users(padded, recipe, 0.0, NoNoise())
    base = projected[:, 0]
    personal = np.array(
        [
            base[c] - base[r] + (taste_I_K[c] - taste_I_K[r]) @ adapters[p - NEW[0]]
            for p, c, r in zip(judged.person_C, judged.chosen_C, judged.rejected_C, strict=True)
        ]
    )
    without = accuracy(base, judged)
    assert without < 0.88  # warm against cold is a coin toss
    assert (personal > 0).mean() > without + 0.08


def test_the_first_direction_is_the_one_along_which_people_differ(trained: Trained) -> None:
    taste_I_K = trained.projected()[:, 1 : 1 + OPTIONS.user_rank]
    assert np.isfinite(taste_I_K).all()
    warm, cold = taste_I_K[trained.world.warm_I == 1], taste_I_K[trained.world.warm_I == 0]
    gap = np.abs(warm.mean(0) - cold.mean(0))
    assert gap.argmax() == 0  # directions come in order of how much people differ along them
    assert gap[0] > 0.5  # people are N(0, 1) in it, so this is what a typical person's taste is worth


def test_the_head_is_finite_and_of_the_declared_shapes(trained: Trained) -> None:
    features = len(trained.head.mean_F)
    named = ("mean", "reward", "user_basis", "domain_basis")
    shapes = {name: trained.head.tensors()[name].shape for name in named}
    assert shapes == {
        "mean": (features,),
        "reward": (features,),
        "user_basis": (OPTIONS.user_rank, features),
        "domain_basis": (OPTIONS.domain_rank, features),
    }
    assert all(np.isfinite(tensor).all() for tensor in trained.head.tensors().values())
    assert all(trained.head.tensors()[name].dtype == np.float32 for name in named)


def test_progress_counts_every_step(trained: Trained) -> None:
    total = trained.progress[-1][1]
    assert [done for done, _ in trained.progress] == list(range(1, total + 1))


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tiny_bert: Path) -> None:
    data = shared_data(make_world(PEOPLE, prompts=4), TRAINED)
    first, again = train(tiny_bert, data)[1].tensors(), train(tiny_bert, data)[1].tensors()
    other = train(tiny_bert, data, replace(OPTIONS, seed=1))[1].tensors()
    for name, tensor in first.items():
        assert np.array_equal(tensor, again[name]), name
    assert not np.array_equal(first["kernel_weights"], other["kernel_weights"])


def test_people_who_are_left_out_leave_no_trace(tiny_bert: Path) -> None:
    """They are kept for tuning: what they say must not be able to change the model."""
    world = make_world(PEOPLE, prompts=4)
    data = shared_data(world, TRAINED)
    rng = np.random.default_rng(0)
    extra = world.comparisons(NEW, 10, rng)
    names = ("person_C", "chosen_C", "rejected_C", "weight_C")
    joined = Comparisons(*(np.concatenate([getattr(data.comparisons, n), getattr(extra, n)]) for n in names))
    without = train(tiny_bert, data)[1]
    beside = train(tiny_bert, replace(data, comparisons=joined))[1]
    for name, tensor in without.tensors().items():
        assert np.array_equal(tensor, beside.tensors()[name]), name


def no_ratings() -> Ratings:
    return Ratings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


def no_comparisons() -> Comparisons:
    return Comparisons(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))


def test_no_data_at_all_is_said(tiny_bert: Path) -> None:
    world = make_world(PEOPLE, prompts=2)
    for items in (world.items, ()):
        nothing = SharedData(items, tuple(map(str, range(PEOPLE))), no_ratings(), no_comparisons())
        with pytest.raises(InvalidInputError, match="nobody compared"):
            train(tiny_bert, nothing)


def test_data_that_compares_nothing_is_said(tiny_bert: Path) -> None:
    """Ratings that are all the same, or of different prompts, order nothing."""
    world = make_world(PEOPLE, prompts=4)
    same = Ratings(np.zeros(16, np.int32), np.arange(16, dtype=np.int32), np.ones(16, np.float32))
    apart = Ratings(np.zeros(4, np.int32), np.arange(0, 16, 4, dtype=np.int32), np.arange(4, dtype=np.float32))
    for ratings in (same, apart):
        data = SharedData(world.items, tuple(map(str, range(PEOPLE))), ratings, no_comparisons())
        with pytest.raises(InvalidInputError, match="nobody compared"):
            train(tiny_bert, data)


def test_only_left_out_people_is_the_same_as_no_data(tiny_bert: Path) -> None:
    world = make_world(PEOPLE, prompts=2)
    with pytest.raises(InvalidInputError, match="nobody compared"):
        train(tiny_bert, shared_data(world, NEW))


@pytest.mark.parametrize("pairs", [1, 3])
def test_one_person_with_next_to_nothing_still_gives_a_finite_model(tiny_bert: Path, pairs: int) -> None:
    world = make_world(PEOPLE, prompts=2)
    data = SharedData(
        world.items,
        tuple(map(str, range(PEOPLE))),
        no_ratings(),
        world.comparisons([0], pairs, np.random.default_rng(0)),
    )
    _, head = train(tiny_bert, data)
    assert all(np.isfinite(tensor).all() for tensor in head.tensors().values())
