"""From what a private training released to a finished global model on disk: public arithmetic, no private data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.contrasts import choose_contrasts
from idiolect_adapters.preference import Head, PreferenceModel, Recipes, join_features, project_features, save_model
from idiolect_adapters.training.build import DOMAIN_PRIOR, DOMAIN_STEPS
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.private_global import PrivateGlobal
from idiolect_adapters.training.public_space import CLIP_SHARE, PublicSpace, public_pairs
from idiolect_adapters.training.tuning import (
    TYPICAL_COMPARISONS,
    UserRecipes,
    recipe_of,
    typical_curvature,
    user_curvature,
)

FloatArray = NDArray[np.float64]

# How adapters are trained where no model before says it: the clip norm as a share of a typical gradient, how far a step
# goes for one comparison, and the steps. From the middle of what is tried on public people (tuning.py).
USER_CONSTANTS: Mapping[float | None, tuple[float, float, int]] = {
    None: (0.5, 0.2, 8),
    0.5: (0.25, 0.05, 2),
    1.0: (0.25, 0.08, 2),
    2.0: (0.25, 0.13, 2),
    4.0: (0.5, 0.13, 4),
    8.0: (0.5, 0.2, 4),
}


def build_private_global(
    root: Path,
    backbone: Backbone,
    public: Sequence[Item],
    pooled_I_H: NDArray[np.float32],
    space: PublicSpace,
    released: PrivateGlobal,
    domain_rank: int,
    described: Mapping[str, Any],
    before: Recipes | None,
) -> PreferenceModel:
    """`public` are the texts that `space` was chosen from, with the encoder's features of them; `before` are the
    recipes of the model before, which go on where there is one. `described` goes into the model's card."""
    head = head_of(space, released, domain_rank)
    texts = [(item.prompt, item.text) for item in public]
    projected_I_P = project_features(join_features(pooled_I_H, texts, head.kernel), head)
    user_rank = len(head.user_basis_K_F)
    recipes = _recipes(projected_I_P, user_rank, public_pairs(public), before)
    contrasts = choose_contrasts(projected_I_P, user_rank, texts, np.ones(len(texts)))
    return save_model(root, backbone, head, recipes, temperature=1.0, training=described, contrasts=contrasts)


def head_of(space: PublicSpace, released: PrivateGlobal, domain_rank: int) -> Head:
    """A domain may also use the public directions themselves, in their order."""
    before_F = np.zeros_like(space.mean_F) if space.before is None else space.before.reward_F
    directions_D_F = space.directions_D_F.astype(np.float64)
    user_basis_K_F = (released.basis_K_D @ directions_D_F).astype(np.float32)
    rest = max(domain_rank - len(user_basis_K_F), 0)
    return Head(
        mean_F=space.mean_F,
        reward_F=(before_F + released.reward_D @ directions_D_F).astype(np.float32),
        user_basis_K_F=user_basis_K_F,
        domain_basis_M_F=np.vstack([user_basis_K_F, space.directions_D_F[:rest]])[:domain_rank],
        kernel=space.kernel,
    )


def _recipes(projected_I_P: FloatArray, user_rank: int, pairs: Comparisons, before: Recipes | None) -> Recipes:
    """Scales from public pairs; which of two texts is the better one plays no part."""
    user_K_K = user_curvature(projected_I_P, user_rank, pairs)
    domain_I_M = projected_I_P[:, 1 + user_rank :]
    margin_C = projected_I_P[pairs.chosen_C, 0] - projected_I_P[pairs.rejected_C, 0]
    domain_M_M = typical_curvature(domain_I_M[pairs.chosen_C] - domain_I_M[pairs.rejected_C], margin_C)
    domain = Recipe(CLIP_SHARE * _typical(domain_M_M), DOMAIN_PRIOR, DOMAIN_STEPS, domain_M_M)
    if before is not None and len(before.user.typical_K_K) == user_rank:
        return Recipes(replace(before.user, typical_K_K=user_K_K), domain)
    norm = _typical(user_K_K / TYPICAL_COMPARISONS)
    chosen = {
        epsilon: recipe_of(share * norm, reach, steps, user_rank)
        for epsilon, (share, reach, steps) in USER_CONSTANTS.items()
    }
    return Recipes(UserRecipes(chosen, user_K_K), domain)


def _typical(curvature_K_K: FloatArray) -> float:
    """The root mean square of a comparison's gradient, whose outer product at no preference is the curvature."""
    return max(float(np.sqrt(np.trace(curvature_K_K))), 1e-3)
