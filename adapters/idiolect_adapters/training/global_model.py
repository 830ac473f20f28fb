"""The global model: what people agree on, and the few directions in which they differ, learned from declared public
data.

Votes first, text second. A Bayesian factor model finds how popular every item is and how opinions on it differ
(factors.py); crowds that share no items are turned into one another's directions (alignment.py); a kernel regression
learns to tell both from the text (kernel_fit.py). If asked for, the encoder is first moved towards seeing as alike what
people judge alike (encoder_tuning.py).

The kernel's outputs join the features of a text, so adapters stay what they are: a LoRA on a linear head, whose A is
the shared basis. What was learned about single public people is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import InvalidInputError
from idiolect.signals.data import SharedData
from idiolect_adapters.basis import principal_directions
from idiolect_adapters.preference import Head, join_features
from idiolect_adapters.text_kernel import Lens, TextKernel, Views
from idiolect_adapters.training.alignment import align, fit_averaged
from idiolect_adapters.training.factors import Factors
from idiolect_adapters.training.kernel_fit import fit_kernel, fit_shapes, likeness, make_lens, targets_of
from idiolect_adapters.training.votes import Votes, votes_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Chosen on held-out training people; see deploy/decisions/0006-items-first.md."""

    user_rank: int = 6
    domain_rank: int = 16
    seed: int = 0
    tune: bool = False  # the encoder too (encoder_tuning.py)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What votes say of the items, and the shape of the kernel that tells it from how an encoder sees them."""

    pairs: list[tuple[str, str]]
    votes: Votes
    factors: Factors
    lens: Lens
    views: Views
    theta_O_A: NDArray[np.float64]


def train_global(
    pooled_I_H: NDArray[np.float32],
    data: SharedData,
    keep_P: NDArray[np.bool_],
    options: GlobalOptions,
    progress: Progress | None = None,
    before_I_K: NDArray[np.float64] | None = None,
    tuned_I_H: NDArray[np.float32] | None = None,
) -> Head:
    """The head that the votes of the people in `keep_P` give. `pooled_I_H`: the encoder's features of all items;
    `before_I_K`: the user directions of the model that this one is to follow, so that adapters can be carried to it;
    `tuned_I_H`: features of the same encoder, tuned, where the head is to read those."""
    lesson = learn_votes(pooled_I_H, data, keep_P, options, progress, before_I_K)
    return learn_texts(lesson, pooled_I_H if tuned_I_H is None else tuned_I_H, options, progress)


def learn_votes(
    pooled_I_H: NDArray[np.float32],
    data: SharedData,
    keep_P: NDArray[np.bool_],
    options: GlobalOptions,
    progress: Progress | None = None,
    before_I_K: NDArray[np.float64] | None = None,
) -> Lesson:
    rng = np.random.default_rng(options.seed)
    votes = votes_of(data, keep_P, rng)
    if not len(votes):
        raise InvalidInputError(
            f"nobody compared any two of {len(data.items)} items of one prompt, or rated two of them differently.",
            mend="Import a data set with several candidates for a prompt: idiolect import --help.",
        )
    pairs = [(item.prompt, item.text) for item in data.items]
    lens = _lens(votes, pooled_I_H, pairs)
    views = lens.views(pooled_I_H, pairs)
    found = fit_averaged(votes, options.user_rank, options.seed)
    factors = _ordered(align(found, votes, likeness(views), rng, before_I_K))
    theta_O_A = fit_shapes(views, targets_of(votes, factors), rng, progress or _no_progress)
    return Lesson(pairs, votes, factors, lens, views, theta_O_A)


def learn_texts(
    lesson: Lesson, pooled_I_H: NDArray[np.float32], options: GlobalOptions, progress: Progress | None = None
) -> Head:
    """`pooled_I_H` may be those of a tuned encoder, not those that the lesson was learned with. The kernel keeps the
    shape that fits the encoder before: fitted anew, it takes what tuning learned by heart for what texts say."""
    lens = _lens(lesson.votes, pooled_I_H, lesson.pairs)
    views, rng = lens.views(pooled_I_H, lesson.pairs), np.random.default_rng(options.seed)
    kernel = fit_kernel(
        views, lens, lesson.pairs, lesson.votes, lesson.factors, lesson.theta_O_A, rng, progress or _no_progress
    )
    return _head(lesson.pairs, lesson.votes.seen_items(), pooled_I_H, kernel, options)


def _lens(votes: Votes, pooled_I_H: NDArray[np.float32], pairs: list[tuple[str, str]]) -> Lens:
    seen = votes.seen_items()
    return make_lens(pooled_I_H[seen], [pairs[item] for item in seen])


def _no_progress(_done: int, _total: int) -> None:
    """For callers who watch nothing."""


def _ordered(factors: Factors) -> Factors:
    """Directions in order of how much opinions differ along them."""
    taste = factors.item_mean_I_O[:, :-1]
    order = np.append(np.argsort(-(taste**2).sum(axis=0), kind="stable"), factors.rank)
    return Factors(
        factors.item_mean_I_O[:, order],
        factors.item_cov_I_O_O[:, order][:, :, order],
        factors.person_mean_P_O[:, order],
        factors.person_cov_P_O_O[:, order][:, :, order],
        factors.bias_variance,
    )


def _head(
    pairs: list[tuple[str, str]],
    seen: NDArray[np.int64],
    pooled_I_H: NDArray[np.float32],
    kernel: TextKernel,
    options: GlobalOptions,
) -> Head:
    """Reward and taste read the kernel's outputs; a domain may also use what the encoder and the counts say."""
    known = [pairs[item] for item in seen]
    features_N_F = join_features(pooled_I_H[seen], known, kernel)
    plain = features_N_F.shape[1] - kernel.outputs
    mean_F = features_N_F.mean(axis=0)
    pick_O_F = np.zeros((kernel.outputs, features_N_F.shape[1]), dtype=np.float32)
    pick_O_F[:, plain:] = np.eye(kernel.outputs, dtype=np.float32)
    rest = max(options.domain_rank - options.user_rank, 0)
    spread_R_F = np.zeros((rest, features_N_F.shape[1]), dtype=np.float32)
    spread_R_F[:, :plain] = principal_directions((features_N_F - mean_F)[:, :plain], rest)
    return Head(
        mean_F=mean_F.astype(np.float32),
        reward_F=pick_O_F[-1],
        user_basis_K_F=pick_O_F[:-1],
        domain_basis_M_F=np.vstack([pick_O_F[:-1], spread_R_F])[: options.domain_rank],
        kernel=kernel,
    )
