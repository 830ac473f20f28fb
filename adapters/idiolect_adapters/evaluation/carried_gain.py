"""How much of what the personal part was worth survives a change of the global model.

The gain of a stack is how much more accurate its user adapters make it, as a mean over people. Adapters are trained on
the old model, without the domain part, and carried; what is kept is their gain over the new model's base, divided by
the gain that they had over the old one's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.data import Comparisons
from idiolect_adapters.carrying import fit_carry
from idiolect_adapters.evaluation.accuracy import Accuracy, person_accuracies, ratio_of_means
from idiolect_adapters.evaluation.stacks import margins
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.user import pad_comparisons, train_users

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Public people, numbered from 0, who adapt to their first `pairs` of `adapt` and are tested on `test`."""

    people: int
    adapt: Comparisons
    test: Comparisons
    pairs: int


@dataclass(frozen=True, slots=True)
class CarriedGain:
    """Gains in accuracy, person by person [P]: of the adapters on the old model, carried to the new one, and trained on
    the new one instead. Means over the noise draws."""

    before_P: FloatArray
    carried_P: FloatArray
    fresh_P: FloatArray

    @property
    def kept(self) -> Accuracy:
        """The share of the gain that is kept, with a 95% bootstrap interval over people. NaN where the gain itself may
        be nothing: on the benchmark's new statements, say, it is a third of a point."""
        return ratio_of_means(self.carried_P, self.before_P)


@dataclass(frozen=True, slots=True)
class Side:
    """A model: what it says of all items, and how adapters are trained on it."""

    score_I: FloatArray
    taste_I_K: FloatArray
    recipe: Recipe
    noise_multiplier: float

    def trained(self, adaptation: Adaptation, noise: NoiseSource) -> FloatArray:
        """[P, K]"""
        adapt, people = adaptation.adapt, np.arange(adaptation.people)
        padded = pad_comparisons(adapt, people, self.taste_I_K, margins(self.score_I, adapt), limit=adaptation.pairs)
        return train_users(padded, self.recipe, self.noise_multiplier, noise)

    def gains(self, adapters_P_K: FloatArray, test: Comparisons) -> FloatArray:
        """[P] of people with enough pairs: how much more accurate their adapters make the model."""
        base_C = margins(self.score_I, test)
        difference_C_K = self.taste_I_K[test.chosen_C] - self.taste_I_K[test.rejected_C]
        delta_C = (difference_C_K * adapters_P_K[test.person_C]).sum(axis=1)
        gains_P: FloatArray = person_accuracies(base_C + delta_C, test.person_C)
        return gains_P - person_accuracies(base_C, test.person_C)


def carried_gain(
    old: Side,
    new: Side,
    group_I: NDArray[np.int64],
    anchor_A: NDArray[np.int64],
    adaptation: Adaptation,
    noise: NoiseSource,
    *,
    draws: int = 1,
) -> CarriedGain:
    """`group_I` names the items' prompts; `anchor_A` are the items that the matrix is fitted on. `draws` of the noise
    are averaged."""
    matrix_O_N = fit_carry(old.taste_I_K[anchor_A], new.taste_I_K[anchor_A], group_I[anchor_A]).matrix_O_N
    gains = []
    for _ in range(draws):
        adapters_P_O = old.trained(adaptation, noise)
        gains.append(
            (
                old.gains(adapters_P_O, adaptation.test),
                new.gains(adapters_P_O @ matrix_O_N, adaptation.test),
                new.gains(new.trained(adaptation, noise), adaptation.test),
            )
        )
    return CarriedGain(*np.mean(gains, axis=0))
