"""Explanations: what each direction of the model adds to a score, what it means, and where a person stands on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from idiolect.registry.manifest import ReleaseTemplate
from idiolect_adapters.contrasts import Contrast, Contrasts
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import UserRecipes
from idiolect_adapters.training.uncertainty import CLEAR, noise_covariance, posterior_covariance
from idiolect_services.scorer import ScoreResult

if TYPE_CHECKING:  # it imports torch
    from idiolect_adapters.preference import Recipes
    from idiolect_adapters.runtime.bank import Weights

TOP = 3
# The accountant meets the epsilon that was asked for from below; without this a recipe would be missed by its rounding.
ROUNDING = 1e-6


@runtime_checkable
class Explained(Protocol):
    """A model that knows what its directions mean."""

    @property
    def contrasts(self) -> Contrasts: ...

    @property
    def recipes(self) -> Recipes: ...


@dataclass(frozen=True, slots=True)
class Directions:
    """Of one global model; of one that is not `Explained`, nothing is known of a direction but its number."""

    contrasts: Contrasts = field(default_factory=Contrasts)
    recipes: UserRecipes | None = None

    @staticmethod
    def of(model: object) -> Directions:
        return Directions(model.contrasts, model.recipes.user) if isinstance(model, Explained) else Directions()

    def named(self, keys: Iterable[str]) -> dict[str, Any]:
        """Contrasts by key, as in `contributions_of`."""
        return {key: self._contrast(*_parsed(key)).to_json() for key in sorted(keys, key=_parsed)}

    def of_person(self, weights_K: Weights, template: ReleaseTemplate) -> list[dict[str, Any]]:
        """Largest weights first; those that may be noise come last."""
        noise = noise_of(template, self.recipes)
        if noise is not None and len(noise) != len(weights_K):
            noise = None
        told = [self._told(k, float(weight), None if noise is None else noise[k]) for k, weight in enumerate(weights_K)]
        return sorted(told, key=lambda one: (one["clear"] is False, -abs(one["weight"])))

    def _told(self, k: int, weight: float, noise: float | None) -> dict[str, Any]:
        contrast = self._contrast("user", k)
        clear = None if noise is None else abs(weight) > CLEAR * noise
        uncertainty = None
        if noise is not None and self.recipes is not None and k < len(self.recipes.typical_K_K):
            uncertainty = math.sqrt(noise**2 + float(posterior_covariance(self.recipes.typical_K_K)[k, k]))
        return {
            "direction": k,
            "weight": weight,
            "noise": noise,
            "uncertainty": uncertainty,
            "clear": clear,
            "says": in_words(weight, clear),
            **contrast.to_json(),
        }

    def _contrast(self, basis: str, k: int) -> Contrast:
        of_basis = self.contrasts.user if basis == "user" else self.contrasts.domain
        return of_basis[k] if k < len(of_basis) else Contrast()


def in_words(weight: float, clear: bool | None) -> str:
    if weight == 0.0 or clear is False:
        return "No clear leaning: privacy noise alone gives weights like this one."
    liked, other = ("high", "low") if weight > 0 else ("low", "high")
    much = "More than most people, prefers" if abs(weight) > 1.0 else "Prefers"
    unsure = "" if clear else " How much of it is noise is not known."
    return f"{much} texts like those under '{liked}' to those under '{other}'.{unsure}"


def recipe_of(template: ReleaseTemplate, recipes: UserRecipes | None) -> Recipe | None:
    """The public constants for the epsilon of this release."""
    if recipes is None or template.privacy is None:
        return None
    return recipes.at(template.privacy.epsilon * (1.0 + ROUNDING))


def noise_of(template: ReleaseTemplate, recipes: UserRecipes | None) -> tuple[float, ...] | None:
    """Standard deviation, per direction, that privacy noise alone gives a user adapter; None where it is not known.

    `recipes` are those of the model that the release is bound to. A release that says that it was trained by other
    constants, registered from elsewhere for instance, is not claimed to be understood.
    """
    if template.carried is not None:
        return template.carried.noise or None
    recipe, privacy = recipe_of(template, recipes), template.privacy
    if (
        recipe is None
        or privacy is None
        or recipe.steps != privacy.steps
        or not math.isclose(recipe.clip_norm, privacy.clip_norm)
    ):
        return None
    return tuple(np.sqrt(np.diag(noise_covariance(recipe, privacy.noise_multiplier))).tolist())


def contributions_of(result: ScoreResult, index: int) -> dict[str, Any]:
    """What each direction adds to one text, and the keys of those that add or take most."""
    domain = (result.domain_directions_N_M or [[]] * (index + 1))[index]
    user = (result.user_directions_N_K or [[]] * (index + 1))[index]
    every = [(abs(x), f"{basis}:{k}") for basis, row in (("user", user), ("domain", domain)) for k, x in enumerate(row)]
    top = sorted((one for one in every if one[0] > 0.0), key=lambda one: -one[0])[:TOP]
    return {"domain": domain, "user": user, "top": [key for _, key in top]}


def _parsed(key: str) -> tuple[str, int]:
    basis, _, k = key.partition(":")
    return basis, int(k)
