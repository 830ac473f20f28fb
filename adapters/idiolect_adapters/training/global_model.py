"""The global model: what people agree on, and the few directions in which they differ, learned from declared public
data.

Votes first, text second. A Bayesian factor model finds how popular every item is and how opinions on it differ
(factors.py); crowds that share no items are turned into one another's directions (alignment.py); a kernel regression
learns to tell both from the text (kernel_fit.py). The encoder itself is not tuned: on Polis that was weaker on new
statements, alone or averaged with this (deploy/decisions/0006-items-first.md).

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
from idiolect_adapters.text_kernel import TextKernel
from idiolect_adapters.training.alignment import align, fit_averaged
from idiolect_adapters.training.factors import Factors
from idiolect_adapters.training.kernel_fit import fit_kernel, likeness, make_lens
from idiolect_adapters.training.votes import votes_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Chosen on held-out training people; see deploy/decisions/0006-items-first.md."""

    user_rank: int = 6
    domain_rank: int = 16
    seed: int = 0


def train_global(
    pooled_I_H: NDArray[np.float32],
    data: SharedData,
    keep_P: NDArray[np.bool_],
    options: GlobalOptions,
    progress: Progress | None = None,
    before_I_K: NDArray[np.float64] | None = None,
) -> Head:
    """The head that the votes of the people in `keep_P` give. `pooled_I_H`: the encoder's features of all items;
    `before_I_K`: the user directions of the model that this one is to follow, so that adapters can be carried to it."""
    rng = np.random.default_rng(options.seed)
    votes = votes_of(data, keep_P, rng)
    if not len(votes):
        raise InvalidInputError(
            f"nobody compared any two of {len(data.items)} items of one prompt, or rated two of them differently.",
            mend="Import a data set with several candidates for a prompt: idiolect import --help.",
        )
    pairs = [(item.prompt, item.text) for item in data.items]
    seen = votes.seen_items()
    lens = make_lens(pooled_I_H[seen], [pairs[item] for item in seen])
    views = lens.views(pooled_I_H, pairs)
    found = fit_averaged(votes, options.user_rank, options.seed)
    factors = _ordered(align(found, votes, likeness(views), rng, before_I_K))
    kernel = fit_kernel(views, lens, pairs, votes, factors, rng, progress or _no_progress)
    return _head(pairs, seen, pooled_I_H, kernel, options)


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
