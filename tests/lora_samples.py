"""Random adapters and reward models for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from idiolect_adapters.backbone import Backbone
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LoraAdapter, LoraPair, LoraSpec, SavedLinear, linear_shapes
from idiolect_adapters.preference import Head, PreferenceModel, Recipes
from idiolect_adapters.surface import NAMES
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import EPSILONS, UserRecipes

USER_RANK, DOMAIN_RANK = 4, 3


def reward_model(folder: Path, seed: int = 0) -> RewardModel:
    backbone = Backbone.load(folder)
    generator = torch.Generator().manual_seed(seed)
    features = backbone.hidden_size + len(NAMES)
    mean_F, reward_F = torch.randn(2, features, generator=generator)
    return RewardModel(backbone, mean_F, reward_F / features**0.5)


def random_adapter(
    model: nn.Module,
    ranks: Mapping[str, int],
    *,
    seed: int = 0,
    alpha: float | Mapping[str, float] = 8.0,
    rslora: bool = False,
    saved: tuple[str, ...] = (),
    size: float = 0.3,
) -> LoraAdapter:
    generator, shapes = torch.Generator().manual_seed(seed), linear_shapes(model)

    def draw(*shape: int) -> torch.Tensor:
        return size * torch.randn(shape, generator=generator)

    pairs = {
        name: LoraPair(draw(rank, shapes[name].inputs), draw(shapes[name].outputs, rank))
        for name, rank in ranks.items()
    }
    whole = {
        name: SavedLinear(
            draw(shapes[name].outputs, shapes[name].inputs), draw(shapes[name].outputs) if shapes[name].bias else None
        )
        for name in saved
    }
    alphas = dict(alpha) if isinstance(alpha, Mapping) else dict.fromkeys(ranks, alpha)
    return LoraAdapter(LoraSpec(dict(ranks), alphas, rslora, saved), pairs, whole)


class PooledKernel:
    """In place of a text kernel: what stands beside the pooled output, and depends on it."""

    outputs = 2

    def outputs_of(self, pooled_N_H: np.ndarray, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.stack([[pooled_H[0] * 2.0, pooled_H[1] + len(pairs[0])] for pooled_H in pooled_N_H])

    def tensors(self) -> dict[str, np.ndarray]:
        return {}


def preference_model(
    folder: Path,
    *,
    kernel: bool = True,
    seed: int = 0,
    user_rank: int = USER_RANK,
    domain_rank: int = DOMAIN_RANK,
) -> PreferenceModel:
    """On the tiny backbone of `folder`, which is loaded anew: models share nothing."""
    backbone = Backbone.load(folder)
    rng = np.random.default_rng(seed)
    features = backbone.hidden_size + len(NAMES) + (PooledKernel.outputs if kernel else 0)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / features**0.5).astype(np.float32)

    beside: Any = PooledKernel() if kernel else None
    head = Head(draw(features), draw(features), draw(user_rank, features), draw(domain_rank, features), beside)
    recipe = Recipe(clip_norm=1.0, prior=1.0, steps=2, curvature_K_K=np.eye(user_rank))
    of_domain = Recipe(clip_norm=1.0, prior=1.0, steps=2, curvature_K_K=np.eye(domain_rank))
    recipes = Recipes(UserRecipes(dict.fromkeys((None, *EPSILONS), recipe), np.eye(user_rank)), of_domain)
    return PreferenceModel(backbone, head, recipes, temperature=1.5, digest="a" * 64, card={})
