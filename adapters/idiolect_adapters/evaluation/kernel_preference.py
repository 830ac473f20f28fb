"""A preference model for up to a few thousand texts, without tuning any encoder: Gaussian processes over items.

    utility of item i for person p = g(i) + h_p(i)      g ~ GP(0, K)      h_p ~ GP(0, K_p), independently per person
    K_p = c (s s^T + l l^T + K)      s: the shared score g itself, l: how long the text is (both standardised)

The first term of K_p lets a person follow what all share more or less closely (their reliability), the second like
length more or less, the last differ in anything that the kernel sees. Both parts are Laplace approximations; a
stated probability averages over what remains uncertain, which is what keeps cross-entropy low for people with few
labels. They are fitted in turns: g sees each label through the person's h_p and the uncertainty of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import pdist, squareform
from scipy.special import expit

from idiolect.signals.data import Comparisons

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DIRECTIONS = 200  # of the shared kernel: the rest of its spectrum is far below the noise of any label
SURFACE_SHARE = 0.18
MATERN_SCALE = 3.0  # in median distances: almost linear, and bounded far away
ROUNDS = 2
NEWTON_STEPS = 8
LEAST_CURVATURE = 1e-4


@dataclass(frozen=True, slots=True)
class ItemKernels:
    """`kernel_I_I` [I, I] and `length_I`, standardised."""

    kernel_I_I: FloatArray
    length_I: FloatArray


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """`shared` scales K, `personal` is c; 0 leaves the personal part out."""

    shared: float = 1.0
    personal: float = 0.1


def item_kernels(layers_I_F: NDArray[np.floating], surface_I_S: NDArray[np.floating]) -> ItemKernels:
    """A Matern 3/2 kernel over the encoder's features plus a linear one over what is counted in the texts, whose
    first column is the length."""
    surface = _standardised(surface_I_S)
    linear_I_I = surface @ surface.T / max(surface.shape[1], 1)
    return ItemKernels(_matern(_standardised(layers_I_F)) + SURFACE_SHARE * linear_I_I, surface[:, 0])


def _matern(points_I_F: FloatArray) -> FloatArray:
    distances = pdist(points_I_F)
    scaled_I_I = np.sqrt(3.0) * squareform(distances) / max(MATERN_SCALE * float(np.median(distances)), 1e-9)
    kernel_I_I: FloatArray = (1.0 + scaled_I_I) * np.exp(-scaled_I_I)
    return kernel_I_I


def _standardised(features_I_F: NDArray[np.floating]) -> FloatArray:
    centred = features_I_F.astype(np.float64) - features_I_F.mean(axis=0)
    scaled: FloatArray = centred / np.maximum(centred.std(axis=0), 1e-9)
    return scaled


def predict(kernels: ItemKernels, train: Comparisons, test: Comparisons, options: KernelOptions) -> FloatArray:
    """[C]: the probability that each person of `test` prefers what they chose, learned from `train` alone."""
    directions_I_R = _directions(options.shared * kernels.kernel_I_I)
    train = _by_person(train)
    seen_C_R, asked_C_R = (directions_I_R[pairs.chosen_C] - directions_I_R[pairs.rejected_C] for pairs in (train, test))
    personal_C, doubt_C = np.zeros(len(train)), np.zeros(len(train))
    head_R = np.zeros(directions_I_R.shape[1])
    for turn in range(ROUNDS if options.personal else 1):
        head_R, covariance_R_R = _shared(seen_C_R, personal_C, doubt_C, head_R)
        mean_C, variance_C = asked_C_R @ head_R, ((asked_C_R @ covariance_R_R) * asked_C_R).sum(axis=1)
        if options.personal:
            kernel_I_I = _personal_kernel(kernels, directions_I_R @ head_R, options.personal)
            parts = _PersonalParts(kernel_I_I, train, seen_C_R @ head_R)
            if turn + 1 < ROUNDS:
                personal_C, doubt_C = parts.fitted()
            else:
                more_C, own_C = parts.predicted(test)
                mean_C, variance_C = mean_C + more_C, variance_C + own_C
    probability_C: FloatArray = expit(mean_C * _damping(variance_C))
    return probability_C


def _directions(kernel_I_I: FloatArray) -> FloatArray:
    """[I, R] with directions @ directions.T close to the kernel."""
    values, vectors = np.linalg.eigh(kernel_I_I)
    kept = np.argsort(values)[::-1][:DIRECTIONS]
    directions_I_R: FloatArray = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
    return directions_I_R


def _by_person(pairs: Comparisons) -> Comparisons:
    order = np.argsort(pairs.person_C, kind="stable")
    return Comparisons(pairs.person_C[order], pairs.chosen_C[order], pairs.rejected_C[order], pairs.weight_C[order])


def _damping(variance_C: FloatArray) -> FloatArray:
    """E[sigmoid(x)] over a Gaussian x is close to sigmoid(mean * damping) (MacKay 1992)."""
    damping_C: FloatArray = 1.0 / np.sqrt(1.0 + np.pi * variance_C / 8.0)
    return damping_C


def _shared(
    seen_C_R: FloatArray, personal_C: FloatArray, doubt_C: FloatArray, head_R: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """MAP head [R] under a unit prior and its covariance; each label is read through the person's own part."""
    damping_C = _damping(doubt_C)
    for _ in range(NEWTON_STEPS):
        wrong_C = expit(-damping_C * (personal_C + seen_C_R @ head_R))
        slope_R = seen_C_R.T @ (damping_C * wrong_C) - head_R
        curve_C = damping_C**2 * wrong_C * (1.0 - wrong_C)
        factor = cho_factor((seen_C_R * curve_C[:, None]).T @ seen_C_R + np.eye(len(head_R)))
        step_R = cho_solve(factor, slope_R)
        head_R = head_R + step_R
        if np.abs(step_R).max(initial=0.0) < 1e-3:
            break
    return head_R, cho_solve(factor, np.eye(len(head_R)))


def _personal_kernel(kernels: ItemKernels, score_I: FloatArray, scale: float) -> FloatArray:
    score_I = (score_I - score_I.mean()) / max(float(score_I.std()), 1e-9)
    likings = np.outer(score_I, score_I) + np.outer(kernels.length_I, kernels.length_I)
    kernel_I_I: FloatArray = scale * (likings + kernels.kernel_I_I)
    return kernel_I_I


class _PersonalParts:
    """h_p of every person in `train` (sorted by person), given the shared margins of their labels."""

    def __init__(self, kernel_I_I: FloatArray, train: Comparisons, shared_C: FloatArray) -> None:
        self._kernel_I_I = kernel_I_I
        self._train = train
        people, starts = np.unique(train.person_C, return_index=True)
        ends = np.append(starts[1:], len(train))[: len(starts)]
        self._rows = {p: slice(s, e) for p, s, e in zip(people.tolist(), starts, ends, strict=True)}
        self._fits = {person: _laplace(self._among(rows, rows), shared_C[rows]) for person, rows in self._rows.items()}

    def fitted(self) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of the personal margin of every label in `train`."""
        mean_C, variance_C = np.zeros(len(self._train)), np.zeros(len(self._train))
        for person, rows in self._rows.items():
            pull_C, precision_C_C = self._fits[person]
            kernel_C_C = self._among(rows, rows)
            mean_C[rows] = kernel_C_C @ pull_C
            variance_C[rows] = np.diag(kernel_C_C) - ((kernel_C_C @ precision_C_C) * kernel_C_C).sum(axis=1)
        return mean_C, np.maximum(variance_C, 0.0)

    def predicted(self, test: Comparisons) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of the personal margin of every pair in `test`; someone new has their prior."""
        mean_C = np.zeros(len(test))
        variance_C = _prior_variance(self._kernel_I_I, test)
        for person in np.intersect1d(test.person_C, self._train.person_C).tolist():
            pull_C, precision_C_C = self._fits[person]
            asked = np.flatnonzero(test.person_C == person)
            across = self._across(test.where(test.person_C == person), self._rows[person])
            mean_C[asked] = across @ pull_C
            variance_C[asked] -= ((across @ precision_C_C) * across).sum(axis=1)
        return mean_C, np.maximum(variance_C, 0.0)

    def _among(self, rows: slice, others: slice) -> FloatArray:
        train = self._train
        own = Comparisons(train.person_C[rows], train.chosen_C[rows], train.rejected_C[rows], train.weight_C[rows])
        return self._across(own, others)

    def _across(self, pairs: Comparisons, rows: slice) -> FloatArray:
        """[pairs, rows]: covariance of personal margins."""
        chosen, rejected = self._train.chosen_C[rows], self._train.rejected_C[rows]
        kernel = self._kernel_I_I
        return (
            kernel[np.ix_(pairs.chosen_C, chosen)]
            - kernel[np.ix_(pairs.chosen_C, rejected)]
            - kernel[np.ix_(pairs.rejected_C, chosen)]
            + kernel[np.ix_(pairs.rejected_C, rejected)]
        )


def _prior_variance(kernel_I_I: FloatArray, pairs: Comparisons) -> FloatArray:
    """[C]: prior variance of each pair's personal margin."""
    variance_C: FloatArray = (
        kernel_I_I[pairs.chosen_C, pairs.chosen_C]
        + kernel_I_I[pairs.rejected_C, pairs.rejected_C]
        - 2.0 * kernel_I_I[pairs.chosen_C, pairs.rejected_C]
    )
    return variance_C


def laplace_mode(kernel_C_C: FloatArray, shared_C: FloatArray, weight_C: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(a, S): at the mode one person's margins are kernel @ a; the posterior takes kernel @ inverse(S) @ kernel off the
    prior (Rasmussen & Williams 2006, algorithm 3.1)."""
    pull_C = np.zeros(len(shared_C))
    for _ in range(NEWTON_STEPS):
        margin_C = kernel_C_C @ pull_C
        wrong_C = expit(-(shared_C + margin_C))
        curve_C = np.maximum(weight_C * wrong_C * (1.0 - wrong_C), LEAST_CURVATURE)
        system_C_C: FloatArray = kernel_C_C + np.diag(1.0 / curve_C)
        before = pull_C
        pull_C = np.linalg.solve(system_C_C, margin_C + weight_C * wrong_C / curve_C).astype(np.float64)
        if np.abs(pull_C - before).max() < 1e-4:
            break
    return pull_C, system_C_C


def _laplace(kernel_C_C: FloatArray, shared_C: FloatArray) -> tuple[FloatArray, FloatArray]:
    pull_C, system_C_C = laplace_mode(kernel_C_C, shared_C, np.ones(len(shared_C)))
    return pull_C, np.linalg.inv(system_C_C).astype(np.float64)
