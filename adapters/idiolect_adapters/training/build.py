"""From public preference data to a finished global model on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.ids import sha256_hex
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.carrying import projected_by
from idiolect_adapters.contrasts import choose_contrasts
from idiolect_adapters.evaluation.calibration import fit_temperature
from idiolect_adapters.preference import Head, PreferenceModel, Recipes, join_features, project_features, save_model
from idiolect_adapters.training.checkpoints import Checkpoint, identity_of, read_texts
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.encoder_tuning import check_tunable, tuned_weights, with_weights
from idiolect_adapters.training.global_model import GlobalOptions, Lesson, learn_texts, learn_votes, train_global
from idiolect_adapters.training.pairs import groups, person_pairs
from idiolect_adapters.training.tuning import (
    UserRecipes,
    choose_user_recipes,
    split_pairs,
    typical_curvature,
    user_curvature,
)
from idiolect_adapters.training.votes import MAX_SAY

FloatArray = NDArray[np.float64]

TUNING_SHARE, TUNING_MAX_PEOPLE = 0.1, 500
PAIRS_PER_PERSON = 160
# Per subject: what a domain has in common is seen through few items, however many people rated them.
DOMAIN_PRIOR, DOMAIN_STEPS = 0.5, 6


class _Trials:
    """Noise that public people's adapters are tried under. It protects nobody, and is the same for the same data, so
    that a training that goes on after a kill chooses the same recipes."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        return self._rng.normal(size=shape)


class Stages(Protocol):
    """Shows long work: `stage(name)` gives a callback for (done, total)."""

    def stage(self, name: str) -> Callable[[int, int], None]: ...


def build_global(
    root: Path,
    backbone: Backbone,
    data: SharedData,
    options: GlobalOptions,
    described: Mapping[str, Any],
    stages: Stages,
    before: PreferenceModel | None = None,
) -> PreferenceModel:
    """Train on 90% of the people, tune the public constants on the others, train again on all, and save under `root`.
    Where the encoder is tuned, it is on those 90% alone.

    After a kill the same call goes on: texts that were read, a tuned encoder and constants that were chosen are there
    (checkpoints.py).

    `described` goes into the model's card: what the data was and that it is public. `before` is the model whose
    directions are followed where they are free, so that adapters can be carried from it.
    """
    tuning_P, judged_I = tuning_people(data), _times_judged(data)
    if options.tune:
        check_tunable(backbone)
    texts = [(item.prompt, item.text) for item in data.items]
    checkpoint = Checkpoint.at(root, identity_of(backbone, data, options, None if before is None else before.digest))
    pooled_I_H = read_texts(backbone, texts, checkpoint, stages.stage("reading all texts"))
    rng = np.random.default_rng(options.seed)
    group_I = groups(data.items)
    ratings, comparisons = _ratings_of(data, tuning_P), data.comparisons.where(tuning_P[data.comparisons.person_C])
    held_out = person_pairs(ratings, comparisons, group_I, limit=PAIRS_PER_PERSON, rng=rng)
    pairs = split_pairs(held_out, group_I, rng)
    rank = options.user_rank
    before_I_K = None if before is None else projected_by(before, texts, pooled_I_H)[:, 1 : 1 + before.user_rank]

    @functools.cache
    def without_a_tenth() -> tuple[Lesson, Callable[[int, int], None]]:
        shown = stages.stage("global model without a tenth")
        return learn_votes(pooled_I_H, data, ~tuning_P, options, shown), shown

    seen_I_H = pooled_I_H
    if options.tune:
        backbone = _tuned(backbone, lambda: without_a_tenth()[0], options.seed, checkpoint, stages)
        seen_I_H = read_texts(backbone, texts, checkpoint, stages.stage("reading all texts again"), "tuned")

    def projected(head: Head) -> FloatArray:
        return project_features(join_features(seen_I_H, texts, head.kernel), head)

    def tuned() -> dict[str, Any]:
        lesson, shown = without_a_tenth()
        first = learn_texts(lesson, seen_I_H, options, shown)
        temperature = fit_temperature(_margins(projected(first), held_out), held_out.weight_C.astype(np.float64))
        chosen = choose_user_recipes(
            projected(_cooled(first, temperature)), rank, pairs, _Trials(options.seed), stages.stage("private recipes")
        )
        return {"temperature": temperature, "recipes": chosen.to_json()}

    constants = checkpoint.document("constants", tuned)
    everybody_P = np.ones(len(data.people), dtype=np.bool_)
    shown = stages.stage("global model")
    final = train_global(pooled_I_H, data, everybody_P, options, shown, before_I_K, seen_I_H)
    head = _cooled(final, float(constants["temperature"]))
    projected_I_P = projected(head)
    user = UserRecipes.from_json(constants["recipes"], user_curvature(projected_I_P, rank, pairs.adapt))
    recipes = Recipes(user, _domain_recipe(projected_I_P[:, 1 + rank :], _margins(projected_I_P, held_out), held_out))
    training = {
        "options": asdict(options),
        "tuned": options.tune,
        "items": len(data.items),
        "people": len(data.people),
    }
    contrasts = choose_contrasts(projected_I_P, rank, texts, judged_I)
    described = training | dict(described)
    model = save_model(root, backbone, head, recipes, temperature=1.0, training=described, contrasts=contrasts)
    checkpoint.remove()
    return model


def _tuned(
    backbone: Backbone, lesson: Callable[[], Lesson], seed: int, checkpoint: Checkpoint, stages: Stages
) -> Backbone:
    def weights() -> NDArray[np.float32]:
        learned = lesson()
        return tuned_weights(backbone, learned, seed, stages.stage("tuning the encoder"))

    return with_weights(backbone, checkpoint.array("encoder", weights))


def _cooled(head: Head, temperature: float) -> Head:
    """The reward divided by the temperature that fits it to held-out people, whose temperature is therefore 1.

    Adapters are trained on top of these margins as probabilities, so they must mean what they say before that.
    """
    return replace(head, reward_F=(head.reward_F / temperature).astype(np.float32))


def _margins(projected_I_P: FloatArray, pairs: Comparisons) -> FloatArray:
    margins_C: FloatArray = projected_I_P[pairs.chosen_C, 0] - projected_I_P[pairs.rejected_C, 0]
    return margins_C


def tuning_people(data: SharedData) -> NDArray[np.bool_]:
    """A stable tenth of the people (by a hash of their pseudonym), at most TUNING_MAX_PEOPLE."""
    rank_P = np.array([int(sha256_hex(f"tuning:{person}".encode())[:12], 16) for person in data.people], dtype=np.int64)
    count = min(TUNING_MAX_PEOPLE, round(TUNING_SHARE * len(rank_P)))
    mask_P = np.zeros(len(rank_P), dtype=np.bool_)
    mask_P[np.argsort(rank_P, kind="stable")[:count]] = True
    return mask_P


def _ratings_of(data: SharedData, mask_P: NDArray[np.bool_]) -> Ratings:
    mask_R = mask_P[data.ratings.person_R]
    return Ratings(data.ratings.person_R[mask_R], data.ratings.item_R[mask_R], data.ratings.value_R[mask_R])


def _times_judged(data: SharedData) -> FloatArray:
    """[I], with at most MAX_SAY for all that one person judged."""
    pairs = data.comparisons
    judged = np.concatenate([data.ratings.item_R, pairs.chosen_C, pairs.rejected_C])
    person = np.concatenate([data.ratings.person_R, pairs.person_C, pairs.person_C])
    share_P = np.minimum(1.0, MAX_SAY / np.maximum(np.bincount(person, minlength=len(data.people)), 1))
    return np.bincount(judged, share_P[person], minlength=len(data.items)).astype(np.float64)


def _domain_recipe(direction_I_M: FloatArray, margin_C: FloatArray, pairs: Comparisons) -> Recipe:
    """The curvature of one subject is that of one typical pair (a subject's pairs are averaged); the clip norm is
    the median norm of a subject's averaged gradient."""
    differences_C_M = direction_I_M[pairs.chosen_C] - direction_I_M[pairs.rejected_C]
    curvature = typical_curvature(differences_C_M, margin_C)
    if not len(pairs):
        return Recipe(1.0, DOMAIN_PRIOR, DOMAIN_STEPS, curvature)
    people, index_C = np.unique(pairs.person_C, return_inverse=True)
    sums_S_M = np.zeros((len(people), direction_I_M.shape[1]))
    np.add.at(sums_S_M, index_C, expit(-margin_C)[:, None] * differences_C_M)
    norms_S = np.linalg.norm(sums_S_M / np.bincount(index_C)[:, None], axis=1)
    return Recipe(float(max(np.median(norms_S), 1e-3)), DOMAIN_PRIOR, DOMAIN_STEPS, curvature)
