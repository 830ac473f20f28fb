"""Accuracy and calibration of every stack on people whom the shared models never saw.

The stacks are those that are served: the global model; with the domain adapter of each pair's domain; with a user
adapter from a person's first n adaptation pairs on top. Adapters are trained here in memory, with the same functions
and public constants as in production. A stack is private throughout or not at all: a user adapter with noise sits on
domain adapters at `DOMAIN_EPSILON`, one without noise on domain adapters without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.evaluation.accuracy import Accuracy, bootstrap_noisy_mean, person_accuracies
from idiolect_adapters.evaluation.baselines import item_means
from idiolect_adapters.evaluation.calibration import expected_calibration_error
from idiolect_adapters.evaluation.splits import NewPeople
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.domain import SubjectComparisons, releases, train_domain
from idiolect_adapters.training.pairs import groups, person_pairs
from idiolect_adapters.training.user import pad_comparisons, train_users

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int], None]
Epsilon = float | None  # None: without noise
StackKind = Literal["item_mean", "global", "domain", "user"]

KNOWN_ITEMS = "test_known"  # the part whose items others have judged

DOMAIN_EPSILON = 4.0
USER_EPSILONS: tuple[Epsilon, ...] = (None, 8.0, 2.0, 1.0)
NOISE_DRAWS = 5
PAIRS_PER_SUBJECT = 60


@dataclass(frozen=True, slots=True)
class StackId:
    """`pairs` 0: without a user adapter. `epsilon` is that of the topmost adapter."""

    kind: StackKind
    pairs: int = 0
    epsilon: Epsilon = None

    @property
    def name(self) -> str:
        noise = "no_noise" if self.epsilon is None else f"eps{self.epsilon:g}"
        return {"domain": f"domain_{noise}", "user": f"user_n{self.pairs}_{noise}"}.get(self.kind, str(self.kind))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected calibration error over all pairs: the median over noise draws, with the smallest and largest."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class StackScore:
    stack: StackId
    part: str
    accuracy: Accuracy
    calibration: Calibration | None  # None where margins are no log odds
    gain: Accuracy | None = None  # of a user adapter over the stack below it, within each person and noise draw


def stacks_of(part: str, sizes: Sequence[int], epsilons: Sequence[Epsilon] = USER_EPSILONS) -> tuple[StackId, ...]:
    """What `StackEvaluation.evaluate` yields for a part, in its order. Only known items have a mean to compare with."""
    means = [StackId("item_mean")] if part == KNOWN_ITEMS else []
    domains = [StackId("domain", 0, epsilon) for epsilon in (None, DOMAIN_EPSILON)]
    users = [StackId("user", size, epsilon) for size in sizes for epsilon in epsilons]
    return (*means, StackId("global"), *domains, *users)


class StackEvaluation:
    """`projected_I_P` is `model.project` of all items of `data`, which `new` points into as well."""

    def __init__(
        self,
        model: PreferenceModel,
        projected_I_P: FloatArray,
        data: SharedData,
        new: NewPeople,
        noise: NoiseSource,
    ) -> None:
        self._recipes = model.recipes
        self._temperature = model.temperature
        self._data = data
        self._new = new
        self._noise = noise
        self._score_I = projected_I_P[:, 0]
        self._taste_I_K = projected_I_P[:, 1 : 1 + model.user_rank]
        self._directions_I_M = projected_I_P[:, 1 + model.user_rank :]
        self._domain_I = np.array([item.domain for item in data.items], dtype=object)
        self._people = np.arange(len(new.people))

    def evaluate(
        self, sizes: Sequence[int], progress: Progress, epsilons: Sequence[Epsilon] = USER_EPSILONS
    ) -> Iterator[StackScore]:
        """Every part of `new` under each of its stacks."""
        stacks = stacks_of(KNOWN_ITEMS, sizes, epsilons)
        domain = {epsilon: self.domain_scores(epsilon) for epsilon in (None, DOMAIN_EPSILON)}
        for done, stack in enumerate(stacks):
            yield from self._scores(stack, domain)
            progress(done + 1, len(stacks))

    def _scores(self, stack: StackId, domain: dict[Epsilon, list[FloatArray]]) -> Iterator[StackScore]:
        if stack.kind == "user":
            yield from self._user_scores(stack, domain[None if stack.epsilon is None else DOMAIN_EPSILON])
            return
        draws = domain[stack.epsilon] if stack.kind == "domain" else [self._impersonal(stack.kind)]
        for part, pairs in self._new.parts.items():
            if stack in stacks_of(part, ()):
                yield self._judged(stack, part, pairs, [margins(score_I, pairs) for score_I in draws])

    def _impersonal(self, kind: StackKind) -> FloatArray:
        return item_means(self._data) if kind == "item_mean" else self._score_I

    def _user_scores(self, stack: StackId, below: list[FloatArray]) -> Iterator[StackScore]:
        trained = [(score_I, self._train_users(stack, score_I)) for score_I in below]
        for part, pairs in self._new.parts.items():
            difference_C_K = self._taste_I_K[pairs.chosen_C] - self._taste_I_K[pairs.rejected_C]
            under = [margins(score_I, pairs) for score_I, _ in trained]
            draws = [
                below_C + (difference_C_K * adapters_P_K[pairs.person_C]).sum(axis=1)
                for below_C, (_, adapters_P_K) in zip(under, trained, strict=True)
            ]
            gains_N_P = _shares(draws, pairs) - _shares(under, pairs)
            yield replace(self._judged(stack, part, pairs, draws), gain=bootstrap_noisy_mean(gains_N_P))

    def _train_users(self, stack: StackId, score_I: FloatArray) -> FloatArray:
        recipe = self._recipes.user.at(stack.epsilon)
        adaptation = self._new.adaptation
        padded = pad_comparisons(
            adaptation, self._people, self._taste_I_K, margins(score_I, adaptation), limit=stack.pairs
        )
        return train_users(padded, recipe, _multiplier(stack.epsilon, recipe.steps), self._noise)

    def _judged(self, stack: StackId, part: str, pairs: Comparisons, draws: Sequence[FloatArray]) -> StackScore:
        accuracy = bootstrap_noisy_mean(_shares(draws, pairs))
        if stack.kind == "item_mean":
            return StackScore(stack, part, accuracy, None)
        errors = [expected_calibration_error(draw, self._temperature) for draw in draws]
        return StackScore(
            stack, part, accuracy, Calibration(float(np.median(errors)), float(min(errors)), float(max(errors)))
        )

    def domain_scores(self, epsilon: Epsilon) -> list[FloatArray]:
        """Per noise draw: [I], the score of each item with its domain's adapter."""
        recipe = self._recipes.domain
        multiplier = _multiplier(epsilon, releases(recipe))
        draws = [self._score_I.copy() for _ in range(1 if epsilon is None else NOISE_DRAWS)]
        for domain in sorted(set(self._domain_I)):
            mask_I = self._domain_I == domain
            said = self._said_in(mask_I)
            if said.subjects:
                for score_I in draws:
                    adapter_M = train_domain(said, recipe, multiplier, self._noise)
                    score_I[mask_I] += self._directions_I_M[mask_I] @ adapter_M
        return draws

    def _said_in(self, mask_I: NDArray[np.bool_]) -> SubjectComparisons:
        """Everything that anybody has said about the items of one domain."""
        ratings, comparisons = self._data.ratings, self._data.comparisons
        inside_R = mask_I[ratings.item_R]
        pairs = person_pairs(
            Ratings(ratings.person_R[inside_R], ratings.item_R[inside_R], ratings.value_R[inside_R]),
            comparisons.where(mask_I[comparisons.chosen_C]),
            groups(self._data.items),
            limit=PAIRS_PER_SUBJECT,
            rng=np.random.default_rng(0),
        )
        contributors = np.union1d(ratings.person_R[inside_R], pairs.person_C)
        return SubjectComparisons(
            subjects=len(contributors),
            subject_C=np.searchsorted(contributors, pairs.person_C),
            differences_C_K=self._directions_I_M[pairs.chosen_C] - self._directions_I_M[pairs.rejected_C],
            margins_C=margins(self._score_I, pairs),
            weights_C=pairs.weight_C.astype(np.float64),
        )


def _shares(draws: Sequence[FloatArray], pairs: Comparisons) -> FloatArray:
    """[N, P] of people with enough pairs."""
    return np.array([person_accuracies(draw, pairs.person_C) for draw in draws])


def margins(score_I: FloatArray, pairs: Comparisons) -> FloatArray:
    """[C]: how far the chosen item is above the rejected one."""
    margin_C: FloatArray = score_I[pairs.chosen_C] - score_I[pairs.rejected_C]
    return margin_C


def _multiplier(epsilon: Epsilon, steps: int) -> float:
    return 0.0 if epsilon is None else noise_multiplier_for(epsilon, DEFAULT_DELTA, steps)
