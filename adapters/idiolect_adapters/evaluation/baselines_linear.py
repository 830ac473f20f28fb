"""Linear baselines: one Bradley-Terry head for everybody, and one head per person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.data import Comparisons
from idiolect_adapters.evaluation.baselines_pairs import (
    bilinear_loss,
    minimised,
    pair_matrices,
    standardised,
)
from idiolect_adapters.evaluation.kernel_preference import laplace_mode

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GlobalLinear:
    """The same score for everybody, whatever they said."""

    score_I: FloatArray

    def scores(self, adapt: Comparisons, people: int) -> FloatArray:
        del adapt
        return np.tile(self.score_I, (people, 1))


@dataclass(frozen=True, slots=True)
class PersonalLinear:
    """A head per person, shrunk towards the global one with strength `prior`: no basis, every feature is free."""

    features_I_F: FloatArray
    score_I: FloatArray
    prior: float

    def scores(self, adapt: Comparisons, people: int) -> FloatArray:
        return self.score_I + np.stack([self._delta(adapt, person) for person in range(people)])

    def _delta(self, adapt: Comparisons, person: int) -> FloatArray:
        """[I]. Solved over the person's pairs, of which there are fewer than features."""
        own = adapt.where(adapt.person_C == person)
        if not len(own):
            return np.zeros(len(self.features_I_F))
        differences_C_F = self.features_I_F[own.chosen_C] - self.features_I_F[own.rejected_C]
        margin_C = self.score_I[own.chosen_C] - self.score_I[own.rejected_C]
        kernel_C_C = differences_C_F @ differences_C_F.T / self.prior
        pull_C, _ = laplace_mode(kernel_C_C, margin_C, own.weight_C.astype(np.float64))
        delta_I: FloatArray = self.features_I_F @ (pull_C @ differences_C_F) / self.prior
        return delta_I


def fit_global_linear(features_I_F: NDArray[np.floating], train: Comparisons, *, strength: float) -> GlobalLinear:
    """Bradley-Terry on standardised features; `strength` is the ridge penalty per training pair."""
    known_I_F = standardised(features_I_F)
    pairs = pair_matrices(
        Comparisons(np.zeros_like(train.person_C), train.chosen_C, train.rejected_C, train.weight_C), len(known_I_F), 1
    )
    penalty = strength * max(len(train), 1)

    def objective(parts: list[FloatArray]) -> tuple[float, list[FloatArray]]:
        (head_F,) = parts
        loss, slope_I_1, _ = bilinear_loss((known_I_F @ head_F)[:, None], np.ones((1, 1)), pairs)
        return loss + 0.5 * penalty * float(head_F @ head_F), [known_I_F.T @ slope_I_1[:, 0] + penalty * head_F]

    (head_F,) = minimised(objective, [np.zeros(known_I_F.shape[1])])
    return GlobalLinear(known_I_F @ head_F)


def fit_personal_linear(features_I_F: NDArray[np.floating], below: GlobalLinear, *, prior: float) -> PersonalLinear:
    return PersonalLinear(standardised(features_I_F), below.score_I, prior)
