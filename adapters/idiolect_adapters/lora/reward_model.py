"""The global model as one `torch.nn.Module`, so that ordinary LoRA tools can work on it.

    features = [pooled encoder output, what stands beside it]       score = score_layer(features - mean)

`encoder` is the Hugging Face model and `score` a linear layer [1, F] without bias. A LoRA on `score` is what Idiolect
calls a head adapter: B A (features - mean). Any adapter can name layers of both. What stands beside the encoder's
output (counts, and a text kernel where the model has one) comes from the bare model: adapters do not move it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import PreferenceModel, beside_features
from idiolect_adapters.surface import surface_features


class RowwiseLinear(nn.Linear):
    """A linear layer whose rows are summed one by one: the kernels for a single output round by the number of rows."""

    def forward(self, features_N_F: torch.Tensor) -> torch.Tensor:
        out_N_O = (features_N_F.unsqueeze(-2) * self.weight).sum(-1)
        return out_N_O if self.bias is None else out_N_O + self.bias


class RewardModel(nn.Module):
    """float32 head, on whatever encoder the backbone has."""

    mean: torch.Tensor

    def __init__(self, backbone: Backbone, mean_F: torch.Tensor, reward_F: torch.Tensor) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        self.score = RowwiseLinear(len(reward_F), 1, bias=False)
        with torch.no_grad():
            self.score.weight.copy_(reward_F)
        self.register_buffer("mean", mean_F.float())
        # Not a second submodule: the encoder must have one name.
        self._backbone = [backbone]
        self.to(backbone.device).eval()

    @staticmethod
    def of(model: PreferenceModel) -> RewardModel:
        return RewardModel(model.backbone, torch.tensor(model.head.mean_F), torch.tensor(model.head.reward_F))

    @property
    def backbone(self) -> Backbone:
        return self._backbone[0]

    def forward(
        self, ids: Sequence[Sequence[int]], beside_N_S: torch.Tensor, length: int | None = None
    ) -> torch.Tensor:
        """Scores [N] of token lists, padded to `length` (default: the longest), and what stands beside the encoder's
        output."""
        pooled_N_H = self.backbone.pooled(ids, length)
        features_N_F = torch.cat([pooled_N_H, beside_N_S.to(pooled_N_H)], dim=1)
        return cast(torch.Tensor, self.score(features_N_F - self.mean))[:, 0]


def beside_of(model: PreferenceModel, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """[N, S], float32: what stands beside the encoder's output. Runs the encoder only where there is a text kernel."""
    if model.head.kernel is None:
        return surface_of([text for _, text in pairs])
    return torch.from_numpy(beside_features(model.backbone.features(pairs), pairs, model.head.kernel))


def surface_of(texts: Sequence[str]) -> torch.Tensor:
    """[N, S], float32: all that stands beside the encoder's output where there is no text kernel."""
    return torch.from_numpy(surface_features(texts))
