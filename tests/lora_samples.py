"""Random adapters and reward models for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from idiolect_adapters.backbone import Backbone
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LoraAdapter, LoraPair, LoraSpec, SavedLinear, linear_shapes
from idiolect_adapters.surface import NAMES


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
