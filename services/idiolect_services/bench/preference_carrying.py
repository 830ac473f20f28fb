"""What adapters keep of their gain when the global model is trained anew: part of the preference benchmark.

The second training differs from the first in its seed alone, and follows it (deploy/decisions/0011-carrying-over.md).
The peer is a training of the same people on the new model: what even that gains less is not lost by carrying.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.signals.data import SharedData
from idiolect_adapters.carrying import projected_by
from idiolect_adapters.evaluation.accuracy import ratio_of_means
from idiolect_adapters.evaluation.carried_gain import Adaptation, Side, carried_gain
from idiolect_adapters.evaluation.splits import NewPeople
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_adapters.training.pairs import groups
from idiolect_services.bench.form import Measured
from idiolect_services.bench.trained import trained_model
from idiolect_services.training_runs import Stages

PARTS = ("test_known", "test_new")
EPSILON = 8.0
NOISE_DRAWS = 5
OTHER_SEED = 7
FRESH = "trained anew"


def metrics(kind: str, pairs: int) -> list[str]:
    return [f"{kind}_{part}_carried_n{pairs}_eps{EPSILON:g}" for part in PARTS]


def measure_carrying(
    kind: str,
    pairs: int,
    old: PreferenceModel,
    pooled_I_H: NDArray[np.float32],
    data: SharedData,
    new: NewPeople,
    data_digest: str,
    *,
    backbone: Path,
    models: Path,
    options: GlobalOptions,
    noise: NoiseSource,
    stages: Stages,
) -> Iterator[Measured]:
    """`pooled_I_H`: the encoder's features of all items under `old`."""
    other = replace(options, seed=options.seed + OTHER_SEED)
    following = trained_model(models, backbone, data, data_digest, other, stages, before=old).model
    texts = [(item.prompt, item.text) for item in data.items]
    before, after = (_side(model, texts, pooled_I_H) for model in (old, following))
    judged = np.unique(np.concatenate([data.ratings.item_R, data.comparisons.chosen_C, data.comparisons.rejected_C]))
    for part, metric in zip(PARTS, metrics(kind, pairs), strict=True):
        adaptation = Adaptation(len(new.people), new.adaptation, new.parts[part], pairs)
        found = carried_gain(before, after, groups(data.items), judged, adaptation, noise, draws=NOISE_DRAWS)
        fresh = ratio_of_means(found.fresh_P, found.before_P).value
        yield Measured(metric, "share of the gain", found.kept.value, found.kept.low, found.kept.high, FRESH, fresh)


def _side(model: PreferenceModel, texts: Sequence[tuple[str, str]], pooled_I_H: NDArray[np.float32]) -> Side:
    projected_I_P = projected_by(model, texts, pooled_I_H)
    recipe = model.recipes.user.at(EPSILON)
    multiplier = noise_multiplier_for(EPSILON, DEFAULT_DELTA, recipe.steps)
    return Side(projected_I_P[:, 0], projected_I_P[:, 1 : 1 + model.user_rank], recipe, multiplier)
