"""Public constants of the private trainings, chosen on held-out *public* people.

Nothing here ever sees a person who is trained privately: the clip norm, prior and number of steps for each epsilon
come from people of declared public data who were left out of the global training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.ids import sha256_hex
from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.signals.data import Comparisons
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.user import pad_comparisons, train_users

FloatArray = NDArray[np.float64]

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
CLIP_QUANTILES = (0.1, 0.25, 0.5, 0.75)
# How far a comparison of full length moves an adapter; people are N(0, I).
REACHES = (0.05, 0.08, 0.13, 0.2)
# How much of itself an adapter loses to its prior over all steps: many pairs of few items say less than they seem to.
PULL = 0.6
FEW_STEPS, MORE_STEPS = (2,), (4, 8)
LOUD = 2.0  # up to this epsilon the noise is so loud that a few steps tell all
TYPICAL_COMPARISONS = 50  # public: the curvature is that of so many comparisons
ADAPTATION_SIZES = (5, 10, 30, 50)
NOISE_DRAWS = 2


@dataclass(frozen=True, slots=True)
class UserRecipes:
    """Recipes by epsilon (None: without noise), and the Hessian of the loss of TYPICAL_COMPARISONS comparisons, which
    says how much of a person those leave open (uncertainty.py).

    A recipe's own curvature is a multiple of the identity: that of the *clipped* loss is far below the typical one, and
    its shape did not matter (deploy/decisions/0012-what-moves-accuracy.md).
    """

    by_epsilon: Mapping[float | None, Recipe]
    typical_K_K: FloatArray

    def at(self, epsilon: float | None) -> Recipe:
        """The recipe chosen for the largest tabled epsilon that is not above `epsilon` (or the smallest)."""
        if epsilon is None:
            return self.by_epsilon[None]
        tabled = [key for key in self.by_epsilon if key is not None]
        return self.by_epsilon[max((key for key in tabled if key <= epsilon), default=min(tabled))]

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "epsilon": epsilon,
                "clip_norm": recipe.clip_norm,
                "prior": recipe.prior,
                "steps": recipe.steps,
                "stiffness": float(recipe.curvature_K_K[0, 0]) if recipe.curvature_K_K.size else 0.0,
            }
            for epsilon, recipe in self.by_epsilon.items()
        ]

    @staticmethod
    def from_json(rows: list[Mapping[str, Any]], typical_K_K: FloatArray) -> UserRecipes:
        """Rows without a stiffness were written when every recipe had the typical curvature."""

        def curvature(row: Mapping[str, Any]) -> FloatArray:
            return float(row["stiffness"]) * np.eye(len(typical_K_K)) if "stiffness" in row else typical_K_K

        recipes = {row["epsilon"]: Recipe(row["clip_norm"], row["prior"], row["steps"], curvature(row)) for row in rows}
        return UserRecipes(recipes, typical_K_K)


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
    """For every epsilon the recipe under which `pairs.test` are likeliest: mean over ADAPTATION_SIZES, and for each
    over the people who have so many pairs: steps that fit those with few would be too long for the others.

    Likelihood tells recipes apart that order the same pairs alike, and wants a scale that fits.
    """
    choice = _Choice(projected_I_P, user_rank, pairs, noise)
    chosen: dict[float | None, Recipe] = {}
    for done, epsilon in enumerate((None, *EPSILONS)):
        candidates = choice.candidates(epsilon)
        chosen[epsilon] = candidates[int(np.argmin([choice.loss(recipe, epsilon) for recipe in candidates]))]
        progress(done + 1, 1 + len(EPSILONS))
    return UserRecipes(chosen, user_curvature(projected_I_P, user_rank, pairs.adapt))


def recipe_of(clip_norm: float, reach: float, steps: int, rank: int) -> Recipe:
    """`reach`: how far a single step would go for one comparison of full length."""
    # Later steps find less left to do, so each may go further than its share.
    step = reach / (steps**0.7 * clip_norm)
    prior = PULL / (steps * step)
    return Recipe(clip_norm, prior, steps, (1.0 / step - prior) * np.eye(rank))


def _margins(score_I: FloatArray, comparisons: Comparisons) -> FloatArray:
    return score_I[comparisons.chosen_C] - score_I[comparisons.rejected_C]


class _Choice:
    """What choosing reads: public people, numbered from 0, their padded pairs by size, and the pairs to predict."""

    def __init__(self, projected_I_P: FloatArray, user_rank: int, pairs: TuningPairs, noise: NoiseSource) -> None:
        taste_I_K, test = projected_I_P[:, 1 : 1 + user_rank], pairs.test
        margin_C = _margins(projected_I_P[:, 0], pairs.adapt)
        differences_C_K = taste_I_K[pairs.adapt.chosen_C] - taste_I_K[pairs.adapt.rejected_C]
        self._noise, self._rank, self._people = noise, user_rank, len(pairs.people)
        self._norms_C = np.linalg.norm(differences_C_K, axis=1) * expit(-margin_C)
        self._person_C = np.searchsorted(pairs.people, test.person_C)
        said_P = np.searchsorted(np.sort(pairs.adapt.person_C), pairs.people, side="right") - np.searchsorted(
            np.sort(pairs.adapt.person_C), pairs.people
        )
        sizes = [size for size in ADAPTATION_SIZES if (said_P[self._person_C] >= size).any()] or [0]
        self._sizes = [
            (
                pad_comparisons(pairs.adapt, pairs.people, taste_I_K, margin_C, limit=max(size, 1)),
                self._shares(said_P >= size),
            )
            for size in sizes
        ]
        self._margin_C = _margins(projected_I_P[:, 0], test)
        self._difference_C_K = taste_I_K[test.chosen_C] - taste_I_K[test.rejected_C]
        self._drawn: dict[int, list[FloatArray]] = {}

    def candidates(self, epsilon: float | None) -> list[Recipe]:
        norms_C = self._norms_C
        clips = [float(max(np.quantile(norms_C, q), 1e-3)) for q in CLIP_QUANTILES] if len(norms_C) else [1.0]
        steps = MORE_STEPS if epsilon is None or epsilon > LOUD else FEW_STEPS
        return [recipe_of(*constants, self._rank) for constants in itertools.product(clips, REACHES, steps)]

    def loss(self, recipe: Recipe, epsilon: float | None) -> float:
        """Mean cross-entropy of the pairs to predict. All candidates meet the same noise."""
        multiplier = 0.0 if epsilon is None else noise_multiplier_for(epsilon, DEFAULT_DELTA, recipe.steps)
        draws = self._draws(recipe.steps) if multiplier else [np.zeros(0)]
        losses = []
        for padded, share_C in self._sizes:
            for drawn_T_P_K in draws:
                adapters_P_K = train_users(padded, recipe, multiplier, Replayed(drawn_T_P_K))
                delta_C = (self._difference_C_K * adapters_P_K[self._person_C]).sum(axis=1)
                losses.append(float((share_C * np.logaddexp(0.0, -self._margin_C - delta_C)).sum()))
        return float(np.mean(losses))

    def _shares(self, counts_P: NDArray[np.bool_]) -> FloatArray:
        """What each pair to predict counts: people equally, of those who count."""
        share_C = counts_P[self._person_C] / np.bincount(self._person_C, minlength=self._people)[self._person_C]
        shares_C: FloatArray = share_C / max(float(share_C.sum()), 1e-12)
        return shares_C

    def _draws(self, steps: int) -> list[FloatArray]:
        if steps not in self._drawn:
            shape = (steps, self._people, self._rank)
            self._drawn[steps] = [self._noise.normal(shape) for _ in range(NOISE_DRAWS)]
        return self._drawn[steps]


class Replayed:
    """Noise that was drawn before, one slice for each step."""

    def __init__(self, drawn_T_P_K: FloatArray) -> None:
        self._slices = iter(drawn_T_P_K)

    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        drawn: FloatArray = next(self._slices)
        return drawn.reshape(shape)
