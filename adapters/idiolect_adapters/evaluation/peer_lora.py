"""The peer: an ordinary LoRA per person, on the encoder and the head, made by PEFT and trained by Opacus.

The same promise as a user adapter's: full-batch steps on a person's comparisons, each of which forms one clipped
contribution. Opacus takes gradients of single texts, and the gradient of a comparison is a difference of two of them,
so a text that stands in many comparisons is read once a step; and texts of like length run together. Both make the
peer several times as fast as reading the two texts of every comparison.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from peft import LoraConfig, inject_adapter_in_model
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader, TensorDataset

from idiolect_adapters.backbone import Backbone
from idiolect_adapters.evaluation.peer_kernel import DifferentiableKernel
from idiolect_adapters.padding import LENGTH_STEP
from idiolect_adapters.preference import Head
from idiolect_adapters.surface import surface_features

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Queries and values, which PEFT adapts by default, under the names that the supported encoders and decoders give them.
TARGETS = r"(.*\.)?(query|value|q_proj|v_proj|Wqkv|head)"
RANK = 4
# A text joins a batch if it is at most this much longer than the shortest there.
PADDING_RATIO = 1.3


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """Steps of Adam on the noisy sum of comparisons clipped to `clip_norm`."""

    learning_rate: float
    clip_norm: float
    steps: int


@dataclass(frozen=True, slots=True)
class PersonPairs:
    """C comparisons of one person, C > 0, as indices of texts; `offsets_C` is added to the margin of each."""

    chosen_C: IntArray
    rejected_C: IntArray
    offsets_C: FloatArray


class _Scorer(torch.nn.Module):
    """The global model's reward of known texts, as one module."""

    def __init__(self, backbone: Backbone, head: Head, texts: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.encoder = deepcopy(backbone.encoder)
        self.head = torch.nn.Linear(len(head.reward_F), 1, bias=False)
        self.head.weight.data[0] = torch.from_numpy(head.reward_F)
        self._mean_F = torch.from_numpy(head.mean_F)
        self._read = Backbone(self.encoder, backbone.tokenizer)
        self._surface_I_S = torch.from_numpy(surface_features([text for _, text in texts]))
        self._kernel = None if head.kernel is None else DifferentiableKernel(head.kernel, texts)

    def forward(self, ids: Sequence[Sequence[int]], rows_N: torch.Tensor) -> torch.Tensor:
        """[N]: the scores of the texts `rows_N`, which have these tokens."""
        features = [self._read.pooled(ids), self._surface_I_S[rows_N]]
        if self._kernel is not None:
            features.append(self._kernel.outputs_of(features[0], rows_N))
        scores_N: torch.Tensor = self.head(torch.cat(features, dim=1) - self._mean_F)[:, 0]
        return scores_N


class LoraPeer:
    """One LoRA at a time on a copy of the global model; `train` starts each from nothing."""

    def __init__(self, backbone: Backbone, head: Head, texts: Sequence[tuple[str, str]], *, seed: int = 0) -> None:
        self._ids = backbone.tokenize(texts).ids
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=TARGETS)
            scorer: torch.nn.Module = inject_adapter_in_model(config, _Scorer(backbone, head, texts))
            _only_adapters_in_training(scorer)
            self._module: Any = GradSampleModule(scorer, loss_reduction="sum")
        self.parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        self._start = [parameter.detach().clone() for parameter in self.parameters]

    def train(self, pairs: PersonPairs, recipe: LoraRecipe, noise_multiplier: float) -> None:
        """The noise is torch's default generator: Opacus's secure mode needs a package that no longer installs."""
        for parameter, start in zip(self.parameters, self._start, strict=True):
            parameter.data.copy_(start)
        items_L, index = np.unique(np.concatenate([pairs.chosen_C, pairs.rejected_C]), return_inverse=True)
        chosen_C, rejected_C = (torch.from_numpy(part) for part in np.split(index, 2))
        offsets_C = torch.from_numpy(pairs.offsets_C).float()
        with _quiet():
            optimizer, loader = self._private(pairs, recipe, noise_multiplier)
            for _ in range(recipe.steps):
                for (rows,) in loader:  # one batch: all of them
                    optimizer.zero_grad()
                    scores_L, gradients = self._text_gradients(items_L)
                    better, worse = chosen_C[rows], rejected_C[rows]
                    pull_C = torch.sigmoid(-(scores_L[better] - scores_L[worse] + offsets_C[rows]))
                    for parameter, gradient_L in zip(self.parameters, gradients, strict=True):
                        parameter.grad_sample = _times(-pull_C, gradient_L[better] - gradient_L[worse])
                    optimizer.step()

    @torch.no_grad()
    def scores(self, items_N: IntArray) -> FloatArray:
        """[N]: what the LoRA that was trained last gives each text."""
        scores_N = np.zeros(len(items_N))
        for part in self._parts(items_N):
            scores_N[part] = self._forward(items_N[part]).numpy()
        return scores_N

    def gradient_norms(self, pairs: PersonPairs) -> FloatArray:
        """[C]: how long the gradient of each comparison is at the start, before any clipping."""
        self.train(pairs, LoraRecipe(0.0, 1e9, 1), 0.0)
        norms_C = torch.stack([parameter.grad_sample.flatten(1).norm(dim=1) for parameter in self.parameters]).norm(
            dim=0
        )
        lengths_C: FloatArray = norms_C.numpy().astype(np.float64)
        return lengths_C

    def _private(self, pairs: PersonPairs, recipe: LoraRecipe, noise_multiplier: float) -> tuple[Any, Any]:
        rows = TensorDataset(torch.arange(len(pairs.chosen_C)))
        _, optimizer, loader = PrivacyEngine(accountant="rdp").make_private(
            module=self._module,
            optimizer=torch.optim.Adam(self.parameters, lr=recipe.learning_rate),
            data_loader=DataLoader(rows, batch_size=len(rows)),
            noise_multiplier=noise_multiplier,
            max_grad_norm=recipe.clip_norm,
            poisson_sampling=False,
            loss_reduction="sum",
        )
        return optimizer, loader

    def _text_gradients(self, items_L: IntArray) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Scores [L] of the texts, and for each parameter the gradients [L, ...] of these scores."""
        scores_L = torch.zeros(len(items_L))
        gradients = [torch.zeros(len(items_L), *parameter.shape) for parameter in self.parameters]
        for part in self._parts(items_L):
            scores_N = self._forward(items_L[part])
            torch.autograd.backward(scores_N.sum())
            scores_L[part] = scores_N.detach()
            for parameter, gradient_L in zip(self.parameters, gradients, strict=True):
                gradient_L[part] = parameter.grad_sample
                parameter.grad_sample = None
        return scores_L, gradients

    def _forward(self, items_N: IntArray) -> torch.Tensor:
        scores_N: torch.Tensor = self._module([self._ids[item] for item in items_N], torch.from_numpy(items_N))
        return scores_N

    def _parts(self, items_N: IntArray) -> Iterator[list[int]]:
        """Rows of `items_N` by length: none is padded to much more than it has."""
        part: list[int] = []
        for row in sorted(range(len(items_N)), key=lambda row: len(self._ids[items_N[row]])):
            if part and len(self._ids[items_N[row]]) > PADDING_RATIO * len(self._ids[items_N[part[0]]]) + LENGTH_STEP:
                yield part
                part = []
            part.append(row)
        if part:
            yield part


def train_head(
    differences_C_K: FloatArray, margins_C: FloatArray, recipe: LoraRecipe, noise_multiplier: float
) -> FloatArray:
    """[K]: what a user adapter is, trained by Opacus on the same features: the least it can be asked for."""
    with _quiet():
        head = torch.nn.Linear(differences_C_K.shape[1], 1, bias=False)
        torch.nn.init.zeros_(head.weight)
        data = TensorDataset(torch.from_numpy(differences_C_K).float(), torch.from_numpy(margins_C).float())
        module, optimizer, loader = PrivacyEngine(accountant="rdp").make_private(
            module=head,
            optimizer=torch.optim.Adam(head.parameters(), lr=recipe.learning_rate),
            data_loader=DataLoader(data, batch_size=len(data)),
            noise_multiplier=noise_multiplier,
            max_grad_norm=recipe.clip_norm,
            poisson_sampling=False,
            loss_reduction="sum",
        )
        for _ in range(recipe.steps):
            for rows_C_K, offsets_C in loader:
                optimizer.zero_grad()
                torch.autograd.backward(-logsigmoid(module(rows_C_K)[:, 0] + offsets_C).sum())
                optimizer.step()
    adapter_K: FloatArray = head.weight.detach().numpy()[0].astype(np.float64)
    return adapter_K


def _only_adapters_in_training(module: torch.nn.Module) -> None:
    """Opacus records only modules in training mode; in the rest that mode would switch dropout on."""
    module.eval()
    module.training = True
    for part in module.modules():
        if any(parameter.requires_grad for parameter in part.parameters(recurse=False)):
            part.train()


def _times(weight_C: torch.Tensor, rows_C: torch.Tensor) -> torch.Tensor:
    return weight_C.reshape(-1, *[1] * (rows_C.dim() - 1)) * rows_C


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus reminds of its secure mode, and torch of hooks on modules whose inputs need no gradient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
