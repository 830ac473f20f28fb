"""Short adapters are made longer after the mechanism, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import InvalidInputError
from idiolect_adapters.training.descent import MAX_LENGTHENING, Recipe
from idiolect_adapters.training.lengthening import lengthened
from idiolect_adapters.training.user import PaddedComparisons, train_users

PLAIN = Recipe(0.5, 1.0, 4, 3.0 * np.eye(3))
LENGTHENING = replace(PLAIN, lengthening=2.0, until=0.5)


class SeededNoise:
    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._rng.standard_normal(shape)


def along(lengths: np.ndarray) -> np.ndarray:
    return lengths[:, None] * np.array([[0.6, 0.0, -0.8]])


def test_next_to_nothing_is_tripled_a_length_of_until_doubled_and_a_long_adapter_left_alone() -> None:
    grown = lengthened(along(np.array([0.0, 1e-6, 0.5, 1e3])), LENGTHENING)
    assert np.allclose(grown, along(np.array([0.0, 3e-6, 1.0, 1e3])), rtol=1e-5)


@given(
    lengthening=st.floats(0.0, MAX_LENGTHENING),
    until=st.floats(1e-3, 1e3),
    lengths=st.lists(st.floats(0.0, 1e4), min_size=2, max_size=20),
)
def test_every_direction_stays_and_the_longer_of_two_stays_the_longer(
    lengthening: float, until: float, lengths: list[float]
) -> None:
    adapters = along(np.sort(np.array(lengths)))
    grown = lengthened(adapters, replace(PLAIN, lengthening=lengthening, until=until))
    after = np.linalg.norm(grown, axis=1)
    assert (np.diff(after) >= -1e-9 * after[1:]).all()
    assert (after >= np.linalg.norm(adapters, axis=1) * (1.0 - 1e-12)).all()
    assert np.allclose(grown, after[:, None] * np.array([[0.6, 0.0, -0.8]]), rtol=1e-9)


def test_it_sees_what_the_mechanism_released_and_nothing_of_the_person() -> None:
    rng = np.random.default_rng(1)
    said = PaddedComparisons(rng.normal(size=(40, 6, 3)), rng.normal(size=(40, 6)), rng.random((40, 6)))
    released = train_users(said, PLAIN, 2.0, SeededNoise())
    published = train_users(said, LENGTHENING, 2.0, SeededNoise())
    assert np.array_equal(published, lengthened(released, LENGTHENING))
    assert not np.allclose(published, released)


def test_a_recipe_without_it_releases_the_very_bits_of_before() -> None:
    adapters = np.random.default_rng(2).normal(size=(5, 3))
    assert lengthened(adapters, PLAIN) is adapters


@pytest.mark.parametrize(
    "wrong",
    [{"lengthening": -0.1}, {"lengthening": 8.0}, {"lengthening": float("nan")}, {"until": 0.0}, {"until": np.inf}],
)
def test_a_recipe_that_could_reverse_the_order_or_is_no_number_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        replace(PLAIN, **wrong)
