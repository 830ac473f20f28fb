"""What a LoRA is: which linear layers it changes, how, and with which numbers.

    y = W x + scale * B (A x)        scale = alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA

A layer is named by its full path in the model (`encoder.layer.0.attention.self.query`). Every layer may have a rank and
an alpha of its own. A layer in `modules_to_save` is replaced as a whole: `y = W' x + b'`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from idiolect.errors import CorruptArtifactError
from idiolect_adapters.precision import LINEAR

MAX_RANK = 256


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Of one linear layer of the model that adapters may name."""

    outputs: int
    inputs: int
    bias: bool


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Raises CorruptArtifactError where the parts do not fit together."""

    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if set(self.rank_pattern) != set(self.alpha_pattern):
            raise CorruptArtifactError("every target needs a rank and an alpha, and nothing else may have one.")
        if not self.rank_pattern and not self.modules_to_save:
            raise CorruptArtifactError("the adapter has no target.", mend="Train it on at least one layer.")
        for target, rank in self.rank_pattern.items():
            if not 1 <= rank <= MAX_RANK:
                raise CorruptArtifactError(f"target {target!r} has the rank {rank}, allowed are 1 to {MAX_RANK}.")
            if not math.isfinite(self.alpha_pattern[target]):
                raise CorruptArtifactError(f"target {target!r} has the alpha {self.alpha_pattern[target]!r}.")
        both = set(self.rank_pattern) & set(self.modules_to_save)
        if both or len(set(self.modules_to_save)) != len(self.modules_to_save):
            raise CorruptArtifactError(f"a layer is changed twice: {sorted(both) or list(self.modules_to_save)}.")

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.rank_pattern)

    def scale(self, target: str) -> float:
        rank = self.rank_pattern[target]
        return self.alpha_pattern[target] / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    A_R_I: torch.Tensor
    B_O_R: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SavedLinear:
    """A whole layer that replaces the model's."""

    weight_O_I: torch.Tensor
    bias_O: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class LoraAdapter:
    """float32 on the CPU. The scale is not yet in B."""

    spec: LoraSpec
    pairs: Mapping[str, LoraPair]
    saved: Mapping[str, SavedLinear] = field(default_factory=dict)


def linear_shapes(model: nn.Module) -> dict[str, LinearShape]:
    """Every linear layer of `model` by its full path: all that an adapter may change."""
    return {
        name: LinearShape(module.out_features, module.in_features, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, LINEAR)
    }


def uniform_spec(targets: Mapping[str, int], alpha: float) -> LoraSpec:
    """One alpha for every target; `targets` maps to ranks."""
    return LoraSpec(dict(targets), dict.fromkeys(targets, alpha))
