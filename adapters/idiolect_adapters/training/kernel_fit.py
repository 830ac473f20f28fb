"""Fits the text kernel: a Gaussian process per output, observed at the items that people voted on.

An item's factor is known up to the variance that its votes leave, so that items with few votes count less; what no
text explains is one more variance, learned. Amplitudes, width and that variance maximise the marginal likelihood
(Rasmussen and Williams 2006, ch. 5) under a weak prior, on at most FIT_ITEMS items. Then all items are used: exactly
up to MAX_LANDMARKS of them, with random landmarks beyond (subset of regressors, ibid. 8.3.1).

Cost: FIT_ITEMS^3 for each of some 20 steps and each output; then items x landmarks^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from idiolect_adapters.lexical import count_matrix, inverse_frequencies
from idiolect_adapters.surface import surface_features
from idiolect_adapters.text_kernel import AMPLITUDES, ItemMemory, Lens, TextKernel, Views, combine, short_hash
from idiolect_adapters.training.factors import Factors, ItemPrior, refine_factors
from idiolect_adapters.training.votes import Votes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Pairs = Sequence[tuple[str, str]]

MAX_LANDMARKS, FIT_ITEMS, FIT_STEPS = 2048, 600, 18
# Logarithms of: six amplitudes, width, unexplained variance; for a target of variance 1.
START = np.array([-1.2, -1.4, -1.6, -2.0, -3.0, -3.5, 0.05, -0.7])
PRIOR_SPREAD, REACH_DOWN, REACH_UP = 2.0, 4.0, 3.0
ROWS = 512


@dataclass(frozen=True, slots=True)
class Parts:
    """The four parts of the kernel between N rows and M columns."""

    cosine: FloatArray
    letters: FloatArray
    surface: FloatArray
    same: FloatArray

    def kernel(self, theta: FloatArray) -> FloatArray:
        return combine(theta, self.cosine, self.letters, self.surface, self.same)


def parts_between(rows: Views, columns: Views, row: IntArray, column: IntArray) -> Parts:
    return Parts(
        rows.meaning_N_H[row] @ columns.meaning_N_H[column].T,
        (rows.letters_N_V[row] @ columns.letters_N_V[column].T).toarray(),
        rows.surface_N_S[row] @ columns.surface_N_S[column].T,
        (rows.prompt_N[row][:, None] == columns.prompt_N[column][None, :]).astype(np.float64),
    )


def make_lens(pooled_N_H: NDArray[np.float32], pairs: Pairs) -> Lens:
    texts = [text for _, text in pairs]
    counted = surface_features(texts)
    return Lens(
        mean_H=pooled_N_H.mean(axis=0).astype(np.float32),
        frequency_V=inverse_frequencies(count_matrix(texts)),
        surface_mean_S=counted.mean(axis=0).astype(np.float32),
        surface_scale_S=np.maximum(counted.std(axis=0), 1e-3).astype(np.float32),
    )


def likeness(views: Views) -> Callable[[IntArray, IntArray], FloatArray]:
    """The kernel as it is before anything is fitted, without what only holds within one prompt: for alignment.py."""

    def between(row: IntArray, column: IntArray) -> FloatArray:
        parts = parts_between(views, views, row, column)
        mixed: FloatArray = 0.7 * np.exp((parts.cosine - 1.0) / 0.8) + 0.2 * parts.letters + 0.1 * parts.surface
        return mixed

    return between


@dataclass(frozen=True, slots=True)
class Targets:
    """What votes say of N items, each output scaled to variance 1: `mean_N_O`, known up to the variance `noise_N_O`."""

    item_N: IntArray
    mean_N_O: FloatArray
    noise_N_O: FloatArray
    scale_O: FloatArray


def targets_of(votes: Votes, factors: Factors) -> Targets:
    """Of the items with votes."""
    seen = votes.seen_items()
    mean_N_O, variance_N_O = factors.item_mean_I_O[seen], factors.item_variances()[seen]
    scale_O = np.maximum(mean_N_O.std(axis=0), 1e-6)
    return Targets(seen, mean_N_O / scale_O, variance_N_O / scale_O**2, scale_O)


def fit_shapes(
    views: Views, targets: Targets, rng: np.random.Generator, progress: Callable[[int, int], None]
) -> FloatArray:
    """[O, 8]: logarithms of each output's amplitudes, width and unexplained variance. The last step of `progress` is
    left to `fit_kernel`."""
    outputs = len(targets.scale_O)
    sample = np.sort(rng.permutation(len(targets.item_N))[:FIT_ITEMS])
    small = parts_between(views, views, targets.item_N[sample], targets.item_N[sample])
    fitted = []
    for output in range(outputs):
        fitted.append(_maximise(small, targets.mean_N_O[sample, output], targets.noise_N_O[sample, output]))
        progress(output + 1, outputs + 1)
    return np.stack(fitted)


def fit_kernel(
    views: Views,
    lens: Lens,
    pairs: Pairs,
    votes: Votes,
    factors: Factors,
    theta_O_A: FloatArray,
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> TextKernel:
    """`pairs`, `views` and `factors` are of the same items; only those with votes are learned from."""
    targets = targets_of(votes, factors)
    seen, scale_O = targets.item_N, targets.scale_O
    landmark = np.sort(rng.permutation(len(seen))[:MAX_LANDMARKS])
    solved = [
        _regress(views, seen, landmark, theta_O_A[output], targets.mean_N_O[:, output], targets.noise_N_O[:, output])
        for output in range(len(scale_O))
    ]
    weight_M_O = np.column_stack([one.weight_M for one in solved]) * scale_O
    kernel = _kernel(views, lens, seen[landmark], theta_O_A, weight_M_O)
    prior = ItemPrior(np.zeros_like(factors.item_mean_I_O), np.ones_like(factors.item_mean_I_O))
    prior.mean_I_O[seen] = np.column_stack([one.left_out_N for one in solved]) * scale_O
    prior.variance_I_O[seen] = np.column_stack([one.left_out_variance_N for one in solved]) * scale_O**2
    refined = refine_factors(votes, factors, prior)
    fitted_N_O = np.column_stack([one.fitted_N for one in solved]) * scale_O
    progress(len(scale_O) + 1, len(scale_O) + 1)
    return _with_memory(kernel, [pairs[item] for item in seen], refined.item_mean_I_O[seen] - fitted_N_O)


def _kernel(views: Views, lens: Lens, item_M: IntArray, theta_O_A: FloatArray, weight_M_O: FloatArray) -> TextKernel:
    letters = views.letters_N_V[item_M].astype(np.float32)
    return TextKernel(
        lens=lens,
        landmark_M_H=views.meaning_N_H[item_M].astype(np.float32),
        letters_M_V=letters,
        surface_M_S=views.surface_N_S[item_M].astype(np.float32),
        prompt_M=views.prompt_N[item_M],
        theta_O_A=theta_O_A[:, : AMPLITUDES + 1].astype(np.float32),
        weight_M_O=weight_M_O.astype(np.float32),
        memory=ItemMemory(np.zeros(0, np.uint64), np.zeros((0, weight_M_O.shape[1]), np.float32)),
    )


def _with_memory(kernel: TextKernel, pairs: Pairs, extra_N_O: FloatArray) -> TextKernel:
    hashes = np.array([short_hash(prompt, text) for prompt, text in pairs], dtype=np.uint64)
    unique, first = np.unique(hashes, return_index=True)
    memory = ItemMemory(unique, extra_N_O[first].astype(np.float32))
    return TextKernel(
        kernel.lens,
        kernel.landmark_M_H,
        kernel.letters_M_V,
        kernel.surface_M_S,
        kernel.prompt_M,
        kernel.theta_O_A,
        kernel.weight_M_O,
        memory,
    )


def _maximise(parts: Parts, target_N: FloatArray, noise_N: FloatArray) -> FloatArray:
    """[8] logarithms that maximise the marginal likelihood of `target_N`, whose known noise is `noise_N`."""
    bounds = [(value - REACH_DOWN, value + REACH_UP) for value in START]
    found = scipy.optimize.minimize(
        lambda theta: negative_log_likelihood(theta, parts, target_N, noise_N),
        START,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": FIT_STEPS},
    )
    theta: FloatArray = found.x
    return theta


def negative_log_likelihood(
    theta: FloatArray, parts: Parts, target_N: FloatArray, noise_N: FloatArray
) -> tuple[float, FloatArray]:
    """With its gradient; both include the weak Gaussian prior around START."""
    a, width, unexplained = np.exp(theta[:AMPLITUDES]), np.exp(theta[AMPLITUDES]), np.exp(theta[AMPLITUDES + 1])
    meaning = np.exp((parts.cosine - 1.0) / width**2)
    terms = [
        a[0] * meaning,
        a[1] * meaning * parts.same,
        a[2] * parts.letters,
        a[3] * parts.letters * parts.same,
        a[4] * parts.surface,
        a[5] * parts.same,
    ]
    whole = sum(terms) + np.diag(unexplained + noise_N)
    off = (theta - START) / PRIOR_SPREAD**2
    try:
        factor = cho_factor(whole, lower=True)
    except LinAlgError:  # not positive definite in float64: as unlikely as can be
        return 1e10, off
    inverse = cho_solve(factor, np.eye(len(target_N)))
    solved = inverse @ target_N
    pull = 0.5 * (inverse - np.outer(solved, solved))
    by_width = (terms[0] + terms[1]) * (1.0 - parts.cosine) * 2.0 / width**2
    gradient = [float((pull * term).sum()) for term in (*terms, by_width)] + [float(unexplained * np.trace(pull))]
    value = 0.5 * target_N @ solved + np.log(np.diag(factor[0])).sum() + 0.5 * ((theta - START) * off).sum()
    return float(value), np.array(gradient) + off


@dataclass(frozen=True, slots=True)
class _Regression:
    """Weights of the landmarks; what they fit at the N items; and mean and variance there as if each item's own
    votes had not been seen."""

    weight_M: FloatArray
    fitted_N: FloatArray
    left_out_N: FloatArray
    left_out_variance_N: FloatArray


def _regress(
    views: Views, item_N: IntArray, landmark: IntArray, theta: FloatArray, target_N: FloatArray, noise_N: FloatArray
) -> _Regression:
    """`landmark` are positions in `item_N`."""
    unexplained = float(np.exp(theta[AMPLITUDES + 1]))
    total_N = unexplained + noise_N
    item_M = item_N[landmark]
    inner = parts_between(views, views, item_M, item_M).kernel(theta)
    rows = [slice(start, start + ROWS) for start in range(0, len(item_N), ROWS)]

    def cross(part: slice) -> FloatArray:
        return parts_between(views, views, item_N[part], item_M).kernel(theta)

    normal = inner + 1e-6 * np.eye(len(item_M))
    moment = np.zeros(len(item_M))
    for part in rows:
        block = cross(part)
        normal += block.T @ (block / total_N[part, None])
        moment += block.T @ (target_N[part] / total_N[part])
    factor = cho_factor(normal, lower=True)
    weight_M = cho_solve(factor, moment)
    fitted_N, leverage_N = np.empty(len(item_N)), np.empty(len(item_N))
    for part in rows:
        block = cross(part)
        fitted_N[part] = block @ weight_M
        leverage_N[part] = (block * cho_solve(factor, block.T).T).sum(axis=1) / total_N[part]
    # Leave-one-out of a linear smoother: the item's own weight taken out of its fit.
    rest_N = np.maximum(1.0 - leverage_N, 1e-3)
    left_out_N = target_N - (target_N - fitted_N) / rest_N
    variance_N = np.maximum(total_N / rest_N - noise_N, 1e-3)
    return _Regression(weight_M, fitted_N, left_out_N, variance_N)
