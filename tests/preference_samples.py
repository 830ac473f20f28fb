"""A small head and recipes for tests of whole models."""

from __future__ import annotations

import numpy as np

from idiolect_adapters.preference import Head, Recipes
from idiolect_adapters.surface import NAMES
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import UserRecipes

K, M = 3, 4


def some_head(hidden: int, seed: int = 0) -> Head:
    rng = np.random.default_rng(seed)
    features = hidden + len(NAMES)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return Head(draw(features), draw(features), draw(K, features), draw(M, features))


def some_recipes() -> Recipes:
    typical = np.float32(np.diag([1.5, 0.5, 0.1])).astype(np.float64)
    by_epsilon = {None: Recipe(1.25, 0.5, 20, 3.0 * np.eye(K)), 1.0: Recipe(0.1, 4.0, 2, 0.7 * np.eye(K))}
    return Recipes(UserRecipes(by_epsilon, typical), Recipe(0.7, 5.0, 6, np.eye(M)))
