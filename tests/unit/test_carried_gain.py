"""How the kept gain is measured: on a world of planted tastes, where what should come out is known."""

from __future__ import annotations

import numpy as np
import pytest

from idiolect_adapters.evaluation.carried_gain import Adaptation, CarriedGain, carried_gain
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.pairs import groups
from tasteful_world import make_world

PEOPLE = list(range(30))
WORLD = make_world(len(PEOPLE), prompts=16)
RNG = np.random.default_rng(0)
SAID = Adaptation(len(PEOPLE), *(WORLD.comparisons(PEOPLE, each, RNG) for each in (20, 40)), 20)


def model(directions: np.ndarray) -> np.ndarray:
    """A model that knows what is good, and whose directions are these."""
    return np.column_stack([1.2 * WORLD.good_I, directions])


def measured(new: np.ndarray) -> CarriedGain:
    noise = 0.05 * np.random.default_rng(1).normal(size=len(WORLD.items))
    old = model(np.column_stack([WORLD.warm_I - 0.5, noise]))
    recipe = Recipe(1.0, 1.0, 20, 5.0 * np.eye(2))
    return carried_gain(old, new, groups(WORLD.items), (2, new.shape[1] - 1), SAID, recipe, 0.0, SecureNoise())


def test_a_model_that_knows_the_same_in_other_words_keeps_all_of_it() -> None:
    warm = WORLD.warm_I - 0.5
    found = measured(model(np.column_stack([0.3 * warm, np.zeros_like(warm), -2.0 * warm])))
    assert found.before > 0.1, "the planted taste was not learned"
    assert found.kept == pytest.approx(1.0, abs=0.02)


def test_a_model_that_knows_nothing_of_it_keeps_nothing() -> None:
    strange = np.random.default_rng(3).normal(size=(len(WORLD.items), 1))
    found = measured(model(strange))
    assert found.kept < 0.3


def test_where_nothing_was_gained_nothing_is_said_to_be_kept() -> None:
    assert np.isnan(CarriedGain(0.0, 0.1).kept)
    assert CarriedGain(0.04, 0.03).kept == pytest.approx(0.75)
