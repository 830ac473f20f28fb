"""Broken mechanisms, planted to test the audit. Nothing here is reachable from a training that ships.

Each is a mistake that has been made in practice, as small as it is made: next to the shipped code of the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.registry.weights import dump_weights
from idiolect_adapters.audit.canary import FloatArray, Mechanism
from idiolect_adapters.audit.domain_canaries import DomainTraining, shipped_domain
from idiolect_adapters.audit.global_canaries import GlobalTraining, shipped_global
from idiolect_adapters.audit.lora_canaries import shipped_lora, steps_of_lora
from idiolect_adapters.audit.user_canaries import UserTraining, shipped_user
from idiolect_adapters.runtime.bank import HEAD_B
from idiolect_adapters.training.clip_noise import NoiseSource, clip_rows
from idiolect_adapters.training.descent import Recipe, noisy_descent
from idiolect_adapters.training.domain import SubjectComparisons, mean_gradients, train_domain
from idiolect_adapters.training.private_global import Released, release_private_global
from idiolect_adapters.training.user import PaddedComparisons, train_users

IntArray = NDArray[np.int64]
Normal = Callable[[tuple[int, ...]], FloatArray]
Broken = Callable[[NoiseSource], Normal]


@dataclass(frozen=True, slots=True)
class FromFunction:
    """A noise source that is a function of the shape."""

    normal_of: Normal

    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        return self.normal_of(shape)


def _halved(noise: NoiseSource) -> Normal:
    return lambda shape: 0.5 * noise.normal(shape)


def _seed_in_each_step(_noise: NoiseSource) -> Normal:
    return lambda shape: np.random.default_rng(7).standard_normal(shape)


def _seed_in_each_run(_noise: NoiseSource) -> Normal:
    generator = np.random.default_rng(7)
    return lambda shape: generator.standard_normal(shape)


def _same_in_each_step(noise: NoiseSource) -> Normal:
    drawn: dict[tuple[int, ...], FloatArray] = {}
    return lambda shape: drawn[shape] if shape in drawn else drawn.setdefault(shape, noise.normal(shape))


def _shared_by_people(noise: NoiseSource) -> Normal:
    return lambda shape: np.broadcast_to(noise.normal((1, *shape[1:])), shape).copy()


def _exact_count(noise: NoiseSource) -> Normal:
    """The domain's count is released as it is."""
    return lambda shape: np.zeros(shape) if shape == (1,) else noise.normal(shape)


def _user_noise(broken: Broken) -> UserTraining:
    return lambda data, recipe, multiplier, noise: train_users(data, recipe, multiplier, FromFunction(broken(noise)))


def _domain_noise(broken: Broken) -> DomainTraining:
    return lambda data, recipe, multiplier, noise: train_domain(data, recipe, multiplier, FromFunction(broken(noise)))


def _user_sums(sums_of: Callable[[FloatArray, float], FloatArray]) -> UserTraining:
    """`sums_of(gradients [P, C, K], clip norm)` is [P, K]."""

    def train(data: PaddedComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> FloatArray:
        differences = data.differences_P_C_K

        def sums(adapters_P_K: FloatArray) -> FloatArray:
            scores_P_C = data.margins_P_C + np.einsum("pck,pk->pc", differences, adapters_P_K)
            return sums_of((data.weights_P_C * expit(-scores_P_C))[..., None] * differences, recipe.clip_norm)

        return noisy_descent(sums, (len(differences), differences.shape[2]), recipe, multiplier, noise)

    return train


def _domain_sums(sums_of: Callable[[FloatArray, float], FloatArray]) -> DomainTraining:
    """`sums_of(gradients [C, K] with each subject's share, clip norm)` is [K]. The count is released as ever."""

    def train(data: SubjectComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> FloatArray:
        count = max(1.0, data.subjects + multiplier * float(noise.normal((1,))[0]))
        scaled = replace(recipe, prior=recipe.prior * count, curvature_K_K=recipe.curvature_K_K * count)
        share_C = 1.0 / np.bincount(data.subject_C, minlength=data.subjects)[data.subject_C]

        def sums(adapter_1_K: FloatArray) -> FloatArray:
            pull_C = share_C * expit(-(data.margins_C + data.differences_C_K @ adapter_1_K[0]))
            return sums_of(pull_C[:, None] * data.differences_C_K, recipe.clip_norm)[None, :]

        adapter_K: FloatArray = noisy_descent(sums, (1, data.differences_C_K.shape[1]), scaled, multiplier, noise)[0]
        return adapter_K

    return train


def _responses_apart(gradients_P_C_K: FloatArray, clip_norm: float) -> FloatArray:
    """The chosen response pulls by half of the difference, the rejected one by minus half; each is clipped alone."""
    half = gradients_P_C_K / 2.0
    apart: FloatArray = (clip_rows(half, clip_norm) - clip_rows(-half, clip_norm)).sum(axis=1)
    return apart


def _mean_of_private_n(data: PaddedComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> FloatArray:
    """Noise of the right size on the sum, and then both divided by the person's own number of comparisons."""
    count_P_1 = np.maximum((data.weights_P_C > 0).sum(axis=1, keepdims=True), 1)
    scaled = _user_sums(lambda gradients, clip_norm: clip_rows(gradients, clip_norm).sum(axis=1) / count_P_1)
    return scaled(data, recipe, multiplier, FromFunction(lambda shape: noise.normal(shape) / count_P_1))


def _no_noise_for_nobody(data: PaddedComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> FloatArray:
    somebody_P_1 = (data.weights_P_C > 0).any(axis=1, keepdims=True)
    return train_users(data, recipe, multiplier, FromFunction(lambda shape: noise.normal(shape) * somebody_P_1))


def _no_noise_for_no_subjects(
    data: SubjectComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource
) -> FloatArray:
    return train_domain(data, recipe, multiplier if data.subjects else 0.0, noise)


def _user_trains_its_curvature(
    data: PaddedComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource
) -> FloatArray:
    """Adds what it saw to an array that outlives the run and is in no manifest."""
    adapters_P_K = train_users(data, recipe, multiplier, noise)
    recipe.curvature_K_K[...] += np.einsum("pck,pcl->kl", data.differences_P_C_K, data.differences_P_C_K)
    return adapters_P_K


def _domain_trains_its_curvature(
    data: SubjectComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource
) -> FloatArray:
    adapter_K = train_domain(data, recipe, multiplier, noise)
    recipe.curvature_K_K[...] += data.differences_C_K.T @ data.differences_C_K
    return adapter_K


def _with_undeclared_tensor(adapter_K: FloatArray) -> bytes:
    adapter = adapter_K[None, :].astype(np.float32)
    return dump_weights({HEAD_B: adapter, "head.bias": adapter[:, :1]})


def _global_noise(broken: Broken) -> GlobalTraining:
    return lambda data, half_C, recipe, multiplier, noise: release_private_global(
        data, half_C, recipe, multiplier, FromFunction(broken(noise))
    )


def _none_in_the_moment(noise: NoiseSource) -> Normal:
    """The moment's draw is the only one that is a plain vector of more than one number."""
    return lambda shape: np.zeros(shape) if len(shape) == 1 and shape != (1,) else noise.normal(shape)


def _global_sums(gradients_of: Callable[[SubjectComparisons, float], FloatArray]) -> GlobalTraining:
    """What the mechanism releases of silent subjects, plus sums of `gradients_of(data, clip norm)` [S, K] at no
    preference, which are as long as they are. Right where margins are saturated, as those of the canary.
    """

    def train(
        data: SubjectComparisons, half_C: IntArray, recipe: Recipe, multiplier: float, noise: NoiseSource
    ) -> Released:
        silent = data.where(np.zeros(len(half_C), dtype=np.bool_))
        released = release_private_global(silent, half_C[:0], recipe, multiplier, noise)
        first, second = (gradients_of(data.where(half_C == half), recipe.clip_norm) for half in (0, 1))
        moved_K = recipe.steps * gradients_of(data, recipe.clip_norm).sum(axis=0) / released.count
        crossed_K_K = first.T @ second
        return replace(
            released,
            reward_D=released.reward_D + moved_K,
            moment_D_D=released.moment_D_D + (crossed_K_K + crossed_K_K.T) / 2.0,
        )

    return train


def _clipped_one_by_one(data: SubjectComparisons, clip_norm: float) -> FloatArray:
    rows_S_K = np.zeros((data.subjects, data.differences_C_K.shape[1]))
    pull_C = expit(-data.margins_C)
    np.add.at(rows_S_K, data.subject_C, clip_rows(pull_C[:, None] * data.differences_C_K, clip_norm))
    return rows_S_K


def _not_clipped(data: SubjectComparisons, _clip_norm: float) -> FloatArray:
    return mean_gradients(data, np.zeros(data.differences_C_K.shape[1]))


def _no_noise_where_nobody_speaks(
    data: SubjectComparisons, half_C: IntArray, recipe: Recipe, multiplier: float, noise: NoiseSource
) -> Released:
    return release_private_global(data, half_C, recipe, multiplier if data.subjects else 0.0, noise)


def _global_trains_its_curvature(
    data: SubjectComparisons, half_C: IntArray, recipe: Recipe, multiplier: float, noise: NoiseSource
) -> Released:
    released = release_private_global(data, half_C, recipe, multiplier, noise)
    recipe.curvature_K_K[...] += data.differences_C_K.T @ data.differences_C_K
    return released


def _lora_noise(broken: Broken) -> DomainTraining:
    return lambda data, recipe, multiplier, noise: steps_of_lora(data, recipe, multiplier, FromFunction(broken(noise)))


def _lora_without_clipping(prepared: Callable[[SubjectComparisons, float], SubjectComparisons]) -> DomainTraining:
    """A clip norm that bounds nothing, and noise for the one that was claimed; on what `prepared` made of the data."""

    def train(data: SubjectComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> FloatArray:
        endless = replace(recipe, clip_norm=recipe.clip_norm * 1e9)
        scaled = FromFunction(lambda shape: noise.normal(shape) / (1.0 if shape == (1,) else 1e9))
        return steps_of_lora(prepared(data, recipe.clip_norm), endless, multiplier, scaled)

    return train


def _each_comparison_clipped(data: SubjectComparisons, clip_norm: float) -> SubjectComparisons:
    """And a subject's are summed: the mean that the training takes is undone."""
    rows_C_K = clip_rows(data.differences_C_K, clip_norm)
    many_C = np.bincount(data.subject_C, minlength=data.subjects)[data.subject_C]
    return replace(data, differences_C_K=rows_C_K * many_C[:, None])


def _lora_without_noise_for_nobody(
    data: SubjectComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource
) -> FloatArray:
    return steps_of_lora(data, recipe, multiplier if data.subjects else 0.0, noise)


Planted = dict[str, Mechanism[Any]]

USER_TRIALS = 20_000  # a fault shows in far fewer trials than it takes to come near a true claim


def planted_user_faults() -> Planted:
    shipped = replace(shipped_user(), trials=USER_TRIALS)
    trainings: dict[str, UserTraining] = {
        "half the noise": _user_noise(_halved),
        "no clipping": _user_sums(lambda gradients, _: gradients.sum(axis=1)),
        "rows clipped apart": _user_sums(_responses_apart),
        "denominator from private n": _mean_of_private_n,
        "no noise on an empty batch": _no_noise_for_nobody,
        "seed reused in each draw": _user_noise(_seed_in_each_step),
        "seed reused in each run": _user_noise(_seed_in_each_run),
        "one draw for all steps": _user_noise(_same_in_each_step),
        "one draw for all people": _user_noise(_shared_by_people),
        "trains an undeclared array": _user_trains_its_curvature,
    }
    return _planted(shipped, trainings)


def planted_domain_faults() -> Planted:
    shipped = shipped_domain()
    trainings: dict[str, DomainTraining] = {
        "half the noise": _domain_noise(_halved),
        "no clipping": _domain_sums(lambda gradients, _: gradients.sum(axis=0)),
        "rows clipped apart": _domain_sums(lambda gradients, clip: clip_rows(gradients, clip).sum(axis=0)),
        "denominator from private n": _domain_noise(_exact_count),
        "no noise on an empty batch": _no_noise_for_no_subjects,
        "seed reused in each draw": _domain_noise(_seed_in_each_step),
        "seed reused in each run": _domain_noise(_seed_in_each_run),
        "one draw for all steps": _domain_noise(_same_in_each_step),
        "trains an undeclared array": _domain_trains_its_curvature,
    }
    return _planted(shipped, trainings)


def planted_lora_faults() -> Planted:
    trainings: dict[str, DomainTraining] = {
        "half the noise": _lora_noise(_halved),
        "no clipping": _lora_without_clipping(lambda data, _: data),
        "rows clipped apart": _lora_without_clipping(_each_comparison_clipped),
        "denominator from private n": _lora_noise(_exact_count),
        "no noise on an empty batch": _lora_without_noise_for_nobody,
        "seed reused in each draw": _lora_noise(_seed_in_each_step),
        "seed reused in each run": _lora_noise(_seed_in_each_run),
    }
    return _planted(shipped_lora(), trainings)


def planted_global_faults() -> Planted:
    trainings: dict[str, GlobalTraining] = {
        "half the noise": _global_noise(_halved),
        "no noise in the moment": _global_noise(_none_in_the_moment),
        "no clipping": _global_sums(_not_clipped),
        "rows clipped apart": _global_sums(_clipped_one_by_one),
        "denominator from private n": _global_noise(_exact_count),
        "no noise on an empty batch": _no_noise_where_nobody_speaks,
        "seed reused in each draw": _global_noise(_seed_in_each_step),
        "seed reused in each run": _global_noise(_seed_in_each_run),
        "one draw for all steps": _global_noise(_same_in_each_step),
        "trains an undeclared array": _global_trains_its_curvature,
    }
    return _planted(shipped_global(), trainings)


def _planted(shipped: Mechanism[Any], trainings: dict[str, Any]) -> Planted:
    planted: Planted = {name: replace(shipped, train=train) for name, train in trainings.items()}
    return planted | {"releases an undeclared tensor": replace(shipped, weights=_with_undeclared_tensor)}
