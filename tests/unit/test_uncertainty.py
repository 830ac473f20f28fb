"""What noise alone makes of an adapter, by formula and by training people who said nothing."""

from __future__ import annotations

import numpy as np
import pytest

from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.uncertainty import noise_covariance, posterior_covariance
from idiolect_adapters.training.user import PaddedComparisons, train_users

PEOPLE = 20_000


class SeededNoise:
    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._rng.standard_normal(shape)


@pytest.mark.parametrize(("prior", "steps"), [(1.0, 1), (4.0, 5), (32.0, 2)])
def test_the_noise_of_people_who_said_nothing_is_as_foretold(prior: float, steps: int) -> None:
    recipe = Recipe(0.5, prior, steps, np.array([[9.0, 2.0], [2.0, 3.0]]))
    nothing = PaddedComparisons(np.zeros((PEOPLE, 1, 2)), np.zeros((PEOPLE, 1)), np.zeros((PEOPLE, 1)))
    found = np.cov(train_users(nothing, recipe, 3.0, SeededNoise()).T)
    foretold = noise_covariance(recipe, 3.0)
    assert np.allclose(found, foretold, atol=0.05 * np.abs(foretold).max())


def test_without_noise_there_is_none_and_more_comparisons_leave_less_open() -> None:
    assert not noise_covariance(Recipe(0.5, 1.0, 5, np.eye(2)), 0.0).any()
    little, much = (posterior_covariance(curvature * np.eye(2)) for curvature in (1.0, 10.0))
    assert np.diag(much)[0] < np.diag(little)[0] < 1.0
