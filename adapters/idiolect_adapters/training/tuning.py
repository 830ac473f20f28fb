"""Public constants of the private trainings, chosen on held-out *public* people.

Nothing here ever sees a person who is trained privately: the clip norm, prior and number of steps for each epsilon
come from people of declared public data who were left out of the global training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.ids import sha256_hex
from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.signals.data import Comparisons
from idiolect_adapters.evaluation.accuracy import person_accuracies
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.user import pad_comparisons, train_users

FloatArray = NDArray[np.float64]

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
CLIP_QUANTILES = (0.25, 0.5, 0.9)
PRIORS = (1.0, 4.0, 8.0, 16.0, 32.0, 64.0)
STEPS = (2, 5)
STEPS_WITHOUT_NOISE = 20
TYPICAL_COMPARISONS = 50  # public: the curvature is that of so many comparisons
ADAPTATION_SIZES = (5, 10, 30)
NOISE_DRAWS = 2


@dataclass(frozen=True, slots=True)
class UserRecipes:
    """Recipes by epsilon (None: without noise), and the shared curvature of TYPICAL_COMPARISONS comparisons."""

    by_epsilon: Mapping[float | None, Recipe]

    def at(self, epsilon: float | None) -> Recipe:
        """The recipe chosen for the largest tabled epsilon that is not above `epsilon` (or the smallest)."""
        if epsilon is None:
            return self.by_epsilon[None]
        tabled = [key for key in self.by_epsilon if key is not None]
        return self.by_epsilon[max((key for key in tabled if key <= epsilon), default=min(tabled))]

    def with_curvature(self, curvature_K_K: FloatArray) -> UserRecipes:
        """The same constants for another basis of the same scale."""
        return UserRecipes(
            {epsilon: replace(recipe, curvature_K_K=curvature_K_K) for epsilon, recipe in self.by_epsilon.items()}
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"epsilon": epsilon, "clip_norm": recipe.clip_norm, "prior": recipe.prior, "steps": recipe.steps}
            for epsilon, recipe in self.by_epsilon.items()
        ]

    @staticmethod
    def from_json(rows: list[Mapping[str, Any]], curvature_K_K: FloatArray) -> UserRecipes:
        return UserRecipes(
            {row["epsilon"]: Recipe(row["clip_norm"], row["prior"], row["steps"], curvature_K_K) for row in rows}
        )


@dataclass(frozen=True, slots=True)
class TuningPairs:
    """Pairs of public held-out people: `adapt` is learned from, `test` (of other items) is predicted."""

    people: NDArray[np.int64]
    adapt: Comparisons
    test: Comparisons


def split_pairs(pairs: Comparisons, group_I: NDArray[np.int64], rng: np.random.Generator) -> TuningPairs:
    """Split each person's items in two, and keep the pairs that lie within one half.

    Items of small groups (candidates for one prompt) go together, else no pair of such data would stay whole.
    """
    unit_C = _splitting_unit(pairs, group_I)
    salt = str(rng.integers(1 << 30))

    def half(person: int, unit: int) -> bool:
        return int(sha256_hex(f"{salt}:{person}:{unit}".encode())[:4], 16) % 5 < 3

    first = np.array([half(p, u) for p, u in zip(pairs.person_C, unit_C[0], strict=True)], bool)
    second = np.array([half(p, u) for p, u in zip(pairs.person_C, unit_C[1], strict=True)], bool)
    shuffled = rng.permutation(len(pairs))
    adapt, test = first & second, ~first & ~second
    keep_adapt, keep_test = shuffled[adapt[shuffled]], shuffled[test[shuffled]]
    people = np.unique(pairs.person_C).astype(np.int64)
    return TuningPairs(people, pairs.where(keep_adapt), pairs.where(keep_test))


def _splitting_unit(pairs: Comparisons, group_I: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    small_groups = np.median(np.bincount(group_I)[group_I]) <= 8
    if small_groups:
        return group_I[pairs.chosen_C], group_I[pairs.rejected_C]
    return pairs.chosen_C.astype(np.int64), pairs.rejected_C.astype(np.int64)


def typical_curvature(differences_C_K: FloatArray, margins_C: FloatArray) -> FloatArray:
    """[K, K]: mean Hessian of the Bradley-Terry loss of one comparison at B = 0."""
    probability_C = expit(margins_C)
    weighted = differences_C_K * (probability_C * (1.0 - probability_C))[:, None]
    curvature_K_K: FloatArray = weighted.T @ differences_C_K / max(len(differences_C_K), 1)
    return curvature_K_K


def user_curvature(projected_I_P: FloatArray, user_rank: int, adapt: Comparisons) -> FloatArray:
    """[K, K]: that of TYPICAL_COMPARISONS comparisons like those of `adapt`."""
    taste_I_K = projected_I_P[:, 1 : 1 + user_rank]
    differences_C_K = taste_I_K[adapt.chosen_C] - taste_I_K[adapt.rejected_C]
    return TYPICAL_COMPARISONS * typical_curvature(differences_C_K, _margins(projected_I_P[:, 0], adapt))


def choose_user_recipes(
    projected_I_P: FloatArray,
    user_rank: int,
    pairs: TuningPairs,
    noise: NoiseSource,
    progress: Callable[[int, int], None],
) -> UserRecipes:
    """For every epsilon the recipe with the best mean accuracy on `pairs.test`, over ADAPTATION_SIZES."""
    taste_I_K = projected_I_P[:, 1 : 1 + user_rank]
    margin_C = _margins(projected_I_P[:, 0], pairs.adapt)
    differences_C_K = taste_I_K[pairs.adapt.chosen_C] - taste_I_K[pairs.adapt.rejected_C]
    curvature_K_K = user_curvature(projected_I_P, user_rank, pairs.adapt)
    norms_C = np.linalg.norm(differences_C_K, axis=1) * expit(-margin_C)
    clips = [float(max(np.quantile(norms_C, q), 1e-3)) for q in CLIP_QUANTILES] if len(norms_C) else [1.0]
    chosen: dict[float | None, Recipe] = {}
    for done, epsilon in enumerate((None, *EPSILONS)):
        steps = STEPS if epsilon is not None else (STEPS_WITHOUT_NOISE,)
        candidates = [Recipe(c, p, s, curvature_K_K) for c, p, s in itertools.product(clips, PRIORS, steps)]
        values = [_value(recipe, epsilon, projected_I_P, taste_I_K, margin_C, pairs, noise) for recipe in candidates]
        chosen[epsilon] = candidates[int(np.argmax(values))]
        progress(done + 1, 1 + len(EPSILONS))
    return UserRecipes(chosen)


def _margins(score_I: FloatArray, comparisons: Comparisons) -> FloatArray:
    return score_I[comparisons.chosen_C] - score_I[comparisons.rejected_C]


def _value(
    recipe: Recipe,
    epsilon: float | None,
    projected_I_P: FloatArray,
    taste_I_K: FloatArray,
    margin_C: FloatArray,
    pairs: TuningPairs,
    noise: NoiseSource,
) -> float:
    multiplier = 0.0 if epsilon is None else noise_multiplier_for(epsilon, DEFAULT_DELTA, recipe.steps)
    test = pairs.test
    position = np.zeros(int(pairs.people.max(initial=0)) + 1, np.int64)
    position[pairs.people] = np.arange(len(pairs.people))
    values = []
    for limit in ADAPTATION_SIZES:
        padded = pad_comparisons(pairs.adapt, pairs.people, taste_I_K, margin_C, limit=limit)
        for _ in range(NOISE_DRAWS if multiplier else 1):
            adapters_P_K = train_users(padded, recipe, multiplier, noise)
            delta_C = (
                (taste_I_K[test.chosen_C] - taste_I_K[test.rejected_C]) * adapters_P_K[position[test.person_C]]
            ).sum(axis=1)
            accuracies = person_accuracies(_margins(projected_I_P[:, 0], test) + delta_C, test.person_C)
            values.append(float(accuracies.mean()) if len(accuracies) else 0.0)
    return float(np.mean(values))
