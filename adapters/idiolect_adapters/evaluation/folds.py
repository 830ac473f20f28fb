"""The published protocol of UKPConvArg: leave one topic-side out, predict each worker's own labels there.

Accuracy and cross-entropy are averaged over a worker's labels, over the workers of a fold, and over the folds (Simpson
& Gurevych 2020, "Scalable Bayesian preference learning for crowds"). Workers count who have more than N labels outside
the fold ("equal" counted) and at least two decided labels in it.

Constants are chosen without the fold that they are used on: the folds are dealt into groups, and the constants for a
group are those that predict a few folds outside of it best from the others outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons
from idiolect.signals.importers.ukpconvarg import CrowdLabels

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int], None]
# (what people said elsewhere, pairs of other items) -> the probability that each pair is as its person chose
Predictor = Callable[[Comparisons, Comparisons], FloatArray]

MIN_TEST_LABELS = 2
GROUPS = 4
LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True, slots=True)
class FoldProtocol:
    """All labels as columns; the decided ones also as comparisons, with the fold of each."""

    items: tuple[Item, ...]
    people: int
    label_person_L: NDArray[np.int32]
    label_fold_L: NDArray[np.int64]
    decided: Comparisons
    fold_C: NDArray[np.int64]
    folds: int

    def outside(self, folds: Sequence[int]) -> Comparisons:
        """What may be trained on when `folds` are predicted. A text compared with itself teaches nothing."""
        different_C = self.decided.chosen_C != self.decided.rejected_C
        return self.decided.where(~np.isin(self.fold_C, folds) & different_C)

    def inside(self, folds: Sequence[int]) -> Comparisons:
        return self.decided.where(np.isin(self.fold_C, folds))

    def counted_people(self, fold: int, more_than: int) -> NDArray[np.bool_]:
        elsewhere_P = np.bincount(self.label_person_L[self.label_fold_L != fold], minlength=self.people)
        here_P = np.bincount(self.decided.person_C[self.fold_C == fold], minlength=self.people)
        return (elsewhere_P > more_than) & (here_P >= MIN_TEST_LABELS)


def fold_protocol(crowd: CrowdLabels) -> FoldProtocol:
    people = {name: index for index, name in enumerate(sorted({label.person for label in crowd.labels}))}
    domains = {name: index for index, name in enumerate(sorted({item.domain for item in crowd.items}))}
    person_L = np.array([people[label.person] for label in crowd.labels], np.int32)
    fold_L = np.array([domains[crowd.items[label.first].domain] for label in crowd.labels], np.int64)
    first_L = np.array([label.first for label in crowd.labels], np.int32)
    second_L = np.array([label.second for label in crowd.labels], np.int32)
    value_L = np.array([label.value for label in crowd.labels])
    decided_L = value_L != 0.5
    chosen_L, rejected_L = np.where(value_L == 1.0, first_L, second_L), np.where(value_L == 1.0, second_L, first_L)
    decided = Comparisons(
        person_L[decided_L], chosen_L[decided_L], rejected_L[decided_L], np.ones(int(decided_L.sum()), np.float32)
    )
    return FoldProtocol(crowd.items, len(people), person_L, fold_L, decided, fold_L[decided_L], len(domains))


@dataclass(frozen=True, slots=True)
class FoldScores:
    """Per fold that anybody counts in; and of all pairs of people who count, the probability of what was chosen."""

    accuracy_F: FloatArray
    cross_entropy_F: FloatArray
    probability_C: FloatArray


def fold_scores(protocol: FoldProtocol, predicted: Mapping[int, FloatArray], *, more_than: int) -> FoldScores:
    """`predicted[fold]` belongs to `protocol.inside([fold])`."""
    accuracies, entropies, kept = [], [], [np.zeros(0)]
    for fold, probability_C in predicted.items():
        counted_P = protocol.counted_people(fold, more_than)
        person_C = protocol.inside([fold]).person_C
        if counted_P.any():
            right_C = (probability_C > 0.5) + 0.5 * (probability_C == 0.5)
            accuracies.append(_mean_over_people(right_C, person_C, counted_P))
            entropy_C = -np.log(np.maximum(probability_C, LEAST_PROBABILITY))
            entropies.append(_mean_over_people(entropy_C, person_C, counted_P))
            kept.append(probability_C[counted_P[person_C]])
    return FoldScores(np.array(accuracies), np.array(entropies), np.concatenate(kept))


def _mean_over_people(value_C: FloatArray, person_C: NDArray[np.int32], counted_P: NDArray[np.bool_]) -> float:
    sums_P = np.bincount(person_C, value_C, minlength=len(counted_P))
    counts_P = np.bincount(person_C, minlength=len(counted_P))
    return float((sums_P[counted_P] / counts_P[counted_P]).mean())


def cross_validated(
    protocol: FoldProtocol, candidates: Sequence[Predictor], progress: Progress, *, seed: int = 0
) -> dict[int, FloatArray]:
    """For every fold the predictions of the candidate that was chosen without it, trained on all other folds."""
    groups = np.array_split(np.random.default_rng(seed).permutation(protocol.folds), min(GROUPS, protocol.folds))
    predicted: dict[int, FloatArray] = {}
    for group in groups:
        chosen = candidates[_best(protocol, candidates, group)]
        for fold in group.tolist():
            predicted[fold] = chosen(protocol.outside([fold]), protocol.inside([fold]))
            progress(len(predicted), protocol.folds)
    return predicted


def _best(protocol: FoldProtocol, candidates: Sequence[Predictor], group: NDArray[np.int64]) -> int:
    """By cross-entropy over people on a third of the folds outside `group`, trained on the other two thirds."""
    usable = np.setdiff1d(np.arange(protocol.folds), group)
    if len(candidates) == 1 or len(usable) < 3:
        return 0
    validation = usable[::3]
    train, test = protocol.outside([*group.tolist(), *validation.tolist()]), protocol.inside(validation.tolist())
    counted_P = np.bincount(train.person_C, minlength=protocol.people) > 0
    counted_P &= np.bincount(test.person_C, minlength=protocol.people) >= MIN_TEST_LABELS
    if not counted_P.any():
        return 0
    losses = [
        _mean_over_people(-np.log(np.maximum(candidate(train, test), LEAST_PROBABILITY)), test.person_C, counted_P)
        for candidate in candidates
    ]
    return int(np.argmin(losses))
