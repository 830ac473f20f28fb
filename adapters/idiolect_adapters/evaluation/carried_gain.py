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
from idiolect_adapters.evaluation.accuracy import person_accuracies
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
    """Gains in accuracy. `kept` is NaN where there was nothing to keep."""

    before: float
    carried: float

    @property
    def kept(self) -> float:
        return self.carried / self.before if self.before > 0.0 else float("nan")


def carried_gain(
    old_I_P: FloatArray,
    new_I_P: FloatArray,
    group_I: NDArray[np.int64],
    user_rank: tuple[int, int],
    adaptation: Adaptation,
    recipe: Recipe,
    noise_multiplier: float,
    noise: NoiseSource,
) -> CarriedGain:
    """`old_I_P` and `new_I_P`: what both models say of all items, which are the anchors too; `user_rank` of both;
    `recipe` is the old model's."""
    old_I_K, new_I_K = old_I_P[:, 1 : 1 + user_rank[0]], new_I_P[:, 1 : 1 + user_rank[1]]
    adapt = adaptation.adapt
    padded = pad_comparisons(
        adapt, np.arange(adaptation.people), old_I_K, margins(old_I_P[:, 0], adapt), limit=adaptation.pairs
    )
    adapters_P_K = train_users(padded, recipe, noise_multiplier, noise)
    carry = fit_carry(old_I_K, new_I_K, group_I)
    return CarriedGain(
        _gain(old_I_P[:, 0], old_I_K, adapters_P_K, adaptation.test),
        _gain(new_I_P[:, 0], new_I_K, adapters_P_K @ carry.matrix_O_N, adaptation.test),
    )


def _gain(score_I: FloatArray, taste_I_K: FloatArray, adapters_P_K: FloatArray, test: Comparisons) -> float:
    base_C = margins(score_I, test)
    difference_C_K = taste_I_K[test.chosen_C] - taste_I_K[test.rejected_C]
    delta_C = (difference_C_K * adapters_P_K[test.person_C]).sum(axis=1)
    with_C, without_C = (person_accuracies(margin_C, test.person_C) for margin_C in (base_C + delta_C, base_C))
    return float(with_C.mean() - without_C.mean())
