"""The training benchmark: how many private user adapters are trained in a second, beside Opacus on the same work.

The work: simulated people with 50 comparisons among 28 of the sample's texts each (the median on Polis of those who
have 50), 20 noisy full-batch steps at epsilon 2, k = 16. Ours reads features that are computed once for all people and
starts from a table of comparisons. There are two peers, one person at a time:

  - PEFT and Opacus: a LoRA of rank 4 on queries, values and head of the same encoder, which reads the texts;
  - Opacus on our cached features, with nothing but our k numbers to train.

Rounds go by turns, so that whatever else the machine does hits all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.signals.data import Comparisons
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.basis import principal_directions
from idiolect_adapters.evaluation.peer_lora import LoraPeer, LoraRecipe, PersonPairs, train_head
from idiolect_adapters.preference import Head, text_features
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import TYPICAL_COMPARISONS, typical_curvature
from idiolect_adapters.training.user import PEOPLE_AT_ONCE, pad_comparisons, train_users
from idiolect_services.bench import noise_cost
from idiolect_services.bench.form import Measured
from idiolect_services.bench.noise_cost import by_turns, measure_noise, rates
from idiolect_services.datasets import read_dataset, sample_folder
from idiolect_services.training_runs import Stages

RATE, RATIO, HEAD_RATIO = "user_adapters_per_second", "user_adapters_over_lora", "user_adapters_over_head_only"
METRICS = (RATE, RATIO, HEAD_RATIO, *noise_cost.METRICS)
LORA, HEAD_ONLY = "Opacus + PEFT", "Opacus, head only"
EPSILON = 2.0


@dataclass(frozen=True, slots=True)
class Work:
    """`people` is ours in one round; of the peers it is 1 and `head_people`."""

    people: int = 4 * PEOPLE_AT_ONCE
    head_people: int = 10
    comparisons: int = TYPICAL_COMPARISONS
    texts: int = 28
    rank: int = 16
    steps: int = 20
    rounds: int = 5


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that is ready before a clock starts."""

    work: Work
    taste_I_K: NDArray[np.float64]
    comparisons: Comparisons
    recipe: Recipe
    multiplier: float

    def train(self, noise: NoiseSource) -> None:
        for start in range(0, self.work.people, PEOPLE_AT_ONCE):
            people = np.arange(start, min(start + PEOPLE_AT_ONCE, self.work.people))
            margins_C = np.zeros(len(self.comparisons))
            padded = pad_comparisons(self.comparisons, people, self.taste_I_K, margins_C, limit=self.work.comparisons)
            train_users(padded, self.recipe, self.multiplier, noise)

    def pairs_of(self, person: int) -> PersonPairs:
        rows = slice(person * self.work.comparisons, (person + 1) * self.work.comparisons)
        chosen, rejected = (getattr(self.comparisons, name)[rows] for name in ("chosen_C", "rejected_C"))
        return PersonPairs(chosen.astype(np.int64), rejected.astype(np.int64), np.zeros(self.work.comparisons))


def measure(backbone_folder: Path, work: Work, stages: Stages) -> Iterable[Measured]:
    backbone = Backbone.load(backbone_folder)
    dataset = read_dataset("sample", sample_folder(), stages.stage("reading the sample"))
    texts = [(item.prompt, item.text) for item in dataset.items]
    features_I_F = text_features(backbone, texts, None, stages.stage("reading all texts"))
    basis_K_F = principal_directions(features_I_F - features_I_F.mean(axis=0), work.rank)
    workload = workload_of((features_I_F - features_I_F.mean(axis=0)) @ basis_K_F.T.astype(np.float64), work)
    head = Head(features_I_F.mean(axis=0), basis_K_F[0], basis_K_F, basis_K_F)
    yield from against_opacus(workload, LoraPeer(backbone, head, texts), stages)
    yield from measure_noise(workload.train, work.people, work.rounds)


def against_opacus(workload: Workload, peer: LoraPeer, stages: Stages) -> Iterable[Measured]:
    work = workload.work
    recipe = LoraRecipe(learning_rate=1e-3, clip_norm=workload.recipe.clip_norm, steps=work.steps)
    first = workload.pairs_of(0)
    rows_C_K = workload.taste_I_K[first.chosen_C] - workload.taste_I_K[first.rejected_C]

    def heads() -> None:
        for _ in range(work.head_people):
            train_head(rows_C_K, first.offsets_C, recipe, workload.multiplier)

    progress, done = stages.stage("trainings by turns"), 0

    def lora() -> None:
        nonlocal done
        peer.train(first, recipe, workload.multiplier)
        done += 1
        progress(done, work.rounds + 1)

    ours, head_only, loras = by_turns([lambda: workload.train(SecureNoise()), heads, lora], work.rounds)
    rate = rates(RATE, "adapters/s", work.people, ours, LORA, 1, loras)
    yield rate
    ratios = [work.people / mine * its for mine, its in zip(ours, loras, strict=True)]
    yield Measured(RATIO, "x peer", median(ratios), min(ratios), max(ratios), LORA)
    small = [work.people / mine * its / work.head_people for mine, its in zip(ours, head_only, strict=True)]
    its_rate = work.head_people / median(head_only)
    yield Measured(HEAD_RATIO, "x peer", median(small), min(small), max(small), HEAD_ONLY, its_rate, median(small))


def workload_of(taste_I_K: NDArray[np.float64], work: Work, seed: int = 0) -> Workload:
    """People who each rated `work.texts` items and compare some two of them again and again."""
    rng = np.random.default_rng(seed)
    shape = (work.people, work.comparisons)
    rated_P_T = np.argsort(rng.random((work.people, len(taste_I_K))), axis=1)[:, : work.texts]
    first_P_C = rng.integers(0, work.texts, shape)
    second_P_C = (first_P_C + rng.integers(1, work.texts, shape)) % work.texts
    chosen_C, rejected_C = (
        np.take_along_axis(rated_P_T, index, axis=1).ravel().astype(np.int32) for index in (first_P_C, second_P_C)
    )
    person_C = np.repeat(np.arange(work.people, dtype=np.int32), work.comparisons)
    comparisons = Comparisons(person_C, chosen_C, rejected_C, np.ones(len(person_C), np.float32))
    differences_C_K = taste_I_K[chosen_C[:10_000]] - taste_I_K[rejected_C[:10_000]]
    curvature_K_K = work.comparisons * typical_curvature(differences_C_K, np.zeros(len(differences_C_K)))
    clip_norm = float(np.median(np.linalg.norm(differences_C_K, axis=1))) / 2.0  # the pull at the start is a half
    recipe = Recipe(clip_norm, 4.0, work.steps, curvature_K_K)
    return Workload(work, taste_I_K, comparisons, recipe, noise_multiplier_for(EPSILON, DEFAULT_DELTA, work.steps))
