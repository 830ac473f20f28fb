"""One stack on one part of held-out comparisons, looked at from every side.

Slices count people within the slice; biases compare what the model prefers with what people preferred on the same
pairs, so that a taste for long texts that people share is no bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons
from idiolect_adapters.evaluation.accuracy import Accuracy, bootstrap_mean, person_accuracies
from idiolect_adapters.evaluation.calibration import chance_calibration_error, expected_calibration_error

FloatArray = NDArray[np.float64]

WORST_SHARE = 0.1
LENGTH_BORDERS = (15, 60)  # mean words of the two texts
ACTIVITY_BORDERS = (10, 30)  # held-out pairs of the person
CURVE_BINS = 10
MAX_SLICES = 40  # per kind, the largest: a data set can have thousands of domains


@dataclass(frozen=True, slots=True)
class Bias:
    """How often the model, and how often people, preferred the text that has something more (longer; listed first)."""

    name: str
    model: float
    people: float
    pairs: int

    @property
    def excess(self) -> float:
        return self.model - self.people


@dataclass(frozen=True, slots=True)
class SliceScore:
    kind: str
    value: str
    pairs: int
    accuracy: Accuracy
    calibration_error: float


@dataclass(frozen=True, slots=True)
class Judged:
    """`gain` is over `gain_over`, person by person; None for the lowest stack. `worst` is the mean accuracy of the
    worst tenth of people. `chance_error`: what the calibration error would be if what is stated held. `curve`: (stated
    probability, how often it held) per bin.
    """

    part: str
    stack: str
    pairs: int
    accuracy: Accuracy
    worst: float
    calibration_error: float
    chance_error: float
    biases: tuple[Bias, ...]
    slices: tuple[SliceScore, ...]
    curve: tuple[tuple[float, float], ...]
    gain: Accuracy | None = None
    gain_over: str | None = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Held-out pairs of one part with the items that they point into."""

    part: str
    items: Sequence[Item]
    comparisons: Comparisons


def judge(
    pairs: Pairs,
    stack: str,
    margins: FloatArray,
    temperature: float,
    *,
    below: tuple[str, FloatArray] | None = None,
) -> Judged:
    """`margins`: chosen minus rejected [C], or [D, C] of D draws of a training's noise, over which all figures are
    means; `below`: name and margins [C] of the stack to measure the gain over.
    """
    person_C, margin_D_C = pairs.comparisons.person_C, np.atleast_2d(margins)
    shares_D_P = _shares(margin_D_C, person_C)
    gain = None
    if below is not None:
        # The same people in the same order: the difference is taken within each person.
        gain = bootstrap_mean(shares_D_P.mean(axis=0) - person_accuracies(below[1], person_C))
    return Judged(
        part=pairs.part,
        stack=stack,
        pairs=len(person_C),
        accuracy=bootstrap_mean(shares_D_P.mean(axis=0)),
        worst=float(np.mean([worst_mean(shares_P) for shares_P in shares_D_P])),
        calibration_error=_calibration_error(margin_D_C, temperature),
        chance_error=chance_calibration_error(margin_D_C[0], temperature),
        biases=biases(pairs, margin_D_C),
        slices=tuple(slice_scores(pairs, margin_D_C, temperature)),
        curve=_mean_curve(margin_D_C, temperature),
        gain=gain,
        gain_over=None if below is None else below[0],
    )


def _shares(margin_D_C: FloatArray, person_C: NDArray[np.int32]) -> FloatArray:
    """[D, P] of people with enough pairs."""
    return np.stack([person_accuracies(margin_C, person_C) for margin_C in margin_D_C])


def _calibration_error(margin_D_C: FloatArray, temperature: float) -> float:
    return float(np.mean([expected_calibration_error(margin_C, temperature) for margin_C in margin_D_C]))


def _mean_curve(margin_D_C: FloatArray, temperature: float) -> tuple[tuple[float, float], ...]:
    """Bin by bin."""
    curves_D_B_2 = [reliability_curve(margin_C, temperature) for margin_C in margin_D_C]
    return tuple((float(stated), float(held)) for stated, held in np.mean(curves_D_B_2, axis=0))


def worst_mean(shares_P: FloatArray) -> float:
    """Mean accuracy of the worst tenth of people (at least one person); NaN without people."""
    if not len(shares_P):
        return float("nan")
    count = max(1, round(WORST_SHARE * len(shares_P)))
    return float(np.sort(shares_P)[:count].mean())


def biases(pairs: Pairs, margin_D_C: FloatArray) -> tuple[Bias, ...]:
    """Verbosity and position: `items` are in the order of their data set, which lists first what was shown first. A
    score never sees it, so an excess over people tells of order that leaked into the texts."""
    words_I = np.array([len(item.text.split()) for item in pairs.items], dtype=np.float64)
    chosen, rejected = pairs.comparisons.chosen_C, pairs.comparisons.rejected_C
    return (
        _bias("longer wins", words_I[chosen] - words_I[rejected], margin_D_C),
        _bias("listed first wins", (rejected - chosen).astype(np.float64), margin_D_C),
    )


def _bias(name: str, ahead_C: FloatArray, margin_D_C: FloatArray) -> Bias:
    """`ahead_C`: how far the chosen text is ahead in the quality in question; pairs that are level say nothing."""
    unlike_C = ahead_C != 0
    ahead_C, margin_D_C = ahead_C[unlike_C], margin_D_C[:, unlike_C]
    if not len(ahead_C):
        return Bias(name, float("nan"), float("nan"), 0)
    model_D_C = np.where(margin_D_C == 0, 0.5, (margin_D_C > 0) == (ahead_C > 0))
    return Bias(name, float(model_D_C.mean()), float((ahead_C > 0).mean()), len(ahead_C))


def slice_scores(pairs: Pairs, margin_D_C: FloatArray, temperature: float) -> list[SliceScore]:
    """By domain, language, task, length of the texts and activity of the person; largest slices first."""
    comparisons, found = pairs.comparisons, []
    for kind, value_C in slice_values(pairs).items():
        for value, count in Counter(value_C).most_common(MAX_SLICES):
            inside_C = np.array([each == value for each in value_C])
            within_D_C = margin_D_C[:, inside_C]
            accuracy = bootstrap_mean(_shares(within_D_C, comparisons.person_C[inside_C]).mean(axis=0))
            error = _calibration_error(within_D_C, temperature)
            found.append(SliceScore(kind, value, count, accuracy, error))
    return found


def slice_values(pairs: Pairs) -> Mapping[str, list[str]]:
    """Per kind of slice the value of every pair."""
    items, comparisons = pairs.items, pairs.comparisons
    chosen = [items[index] for index in comparisons.chosen_C]
    words_I = np.array([len(item.text.split()) for item in items], dtype=np.float64)
    words_C = (words_I[comparisons.chosen_C] + words_I[comparisons.rejected_C]) / 2
    activity_C = np.bincount(comparisons.person_C)[comparisons.person_C] if len(comparisons) else np.zeros(0)
    return {
        "domain": [item.domain for item in chosen],
        "language": [item.language for item in chosen],
        "task": [item.task or "not said" for item in chosen],
        "length": _bucketed(words_C, LENGTH_BORDERS, "words"),
        "activity": _bucketed(activity_C.astype(np.float64), ACTIVITY_BORDERS, "pairs"),
    }


def _bucketed(amount_C: FloatArray, borders: tuple[int, int], unit: str) -> list[str]:
    low, high = borders
    names = (f"under {low} {unit}", f"{low} to {high} {unit}", f"over {high} {unit}")
    return [names[0 if amount < low else 1 if amount <= high else 2] for amount in amount_C]


def reliability_curve(margin_C: FloatArray, temperature: float) -> tuple[tuple[float, float], ...]:
    """(stated, observed) of the likelier side of each pair, in bins of equal mass."""
    if not len(margin_C):
        return ()
    stated_C = expit(np.abs(margin_C) / temperature)
    held_C = (margin_C > 0) + 0.5 * (margin_C == 0)
    parts = np.array_split(np.argsort(stated_C, kind="stable"), CURVE_BINS)
    return tuple((float(stated_C[part].mean()), float(held_C[part].mean())) for part in parts if len(part))
