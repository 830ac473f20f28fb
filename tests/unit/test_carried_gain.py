"""How the kept gain is measured: on a world of planted tastes, where what should come out is known."""

from __future__ import annotations

import numpy as np
import pytest

from idiolect_adapters.evaluation.accuracy import ratio_of_means
from idiolect_adapters.evaluation.carried_gain import Adaptation, CarriedGain, Side, carried_gain
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
    sides = [
        Side(known[:, 0], known[:, 1:], Recipe(1.0, 1.0, 20, 5.0 * np.eye(known.shape[1] - 1)), 0.0)
        for known in (old, new)
    ]
    return carried_gain(*sides, groups(WORLD.items), np.arange(len(WORLD.items)), SAID, SecureNoise())


def test_a_model_that_knows_the_same_in_other_words_keeps_all_of_it() -> None:
    warm = WORLD.warm_I - 0.5
    found = measured(model(np.column_stack([0.3 * warm, np.zeros_like(warm), -2.0 * warm])))
    assert found.before_P.mean() > 0.1, "the planted taste was not learned"
    assert found.kept.value == pytest.approx(1.0, abs=0.02)
    assert found.kept.low <= found.kept.value <= found.kept.high


def test_a_model_that_knows_nothing_of_it_keeps_nothing() -> None:
    strange = np.random.default_rng(3).normal(size=(len(WORLD.items), 1))
    found = measured(model(strange))
    assert found.kept.value < 0.3
    assert found.fresh_P.mean() < 0.3 * found.before_P.mean(), "training on it would have done no better"


def test_where_a_training_on_the_new_model_would_have_gained_as_little_the_carrying_is_not_to_blame() -> None:
    weak = 0.5 * (WORLD.warm_I - 0.5) + 0.5 * np.random.default_rng(4).normal(size=len(WORLD.items))
    found = measured(model(weak[:, None]))
    assert found.kept.value < 0.9
    assert found.carried_P.mean() == pytest.approx(found.fresh_P.mean(), abs=0.03)


def test_where_nothing_was_gained_nothing_is_said_to_be_kept() -> None:
    nothing, something = np.zeros(5), np.array([0.1, 0.1, 0.2, 0.1, 0.3])
    assert np.isnan(CarriedGain(nothing, something, something).kept.value)
    assert np.isnan(CarriedGain(np.zeros(0), np.zeros(0), np.zeros(0)).kept.value)
    assert CarriedGain(something, 0.75 * something, something).kept.value == pytest.approx(0.75)


def test_of_a_gain_that_may_be_nothing_there_is_no_share() -> None:
    """Else a mean that happens to be near 0 makes any share of it."""
    gains = np.random.default_rng(0).normal(0.002, 0.1, 200)
    assert gains.mean() > 0.0
    assert np.isnan(ratio_of_means(gains - 0.05, gains).value)


def test_a_small_gain_of_few_people_has_a_wide_interval() -> None:
    rng = np.random.default_rng(0)
    few, many = (
        ratio_of_means(0.9 * gains + noise, gains)
        for gains, noise in ((rng.normal(0.03, 0.1, n), rng.normal(0.0, 0.05, n)) for n in (100, 10_000))
    )
    assert few.high - few.low > 3 * (many.high - many.low)
    assert many.low < 0.9 < many.high
