"""Moves an encoder towards seeing as alike the texts that people judge alike.

The loss is that of the text kernel itself: how surprising the items' factors are to a Gaussian process whose kernel
reads the encoder's features, batch by batch (deep kernel learning; Wilson, Hu, Salakhutdinov and Xing 2016). Letters,
counts and prompts stay in the kernel, so the encoder learns only what those do not say.

A few thousand texts are soon learned by heart. What helps new texts is the middle between the encoder before and after
(Wortsman et al. 2022): as good as averaging two kernels, with one encoder to serve. Measured on Polis:
deploy/decisions/0023-words-of-new-items.md.

Only embeddings stay as they are. Cost: EPOCHS passes forward and back over the judged texts, cut to MAX_TOKENS.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from idiolect.errors import ConfigurationError
from idiolect_adapters.backbone import Backbone, Tokens
from idiolect_adapters.text_kernel import AMPLITUDES
from idiolect_adapters.training.global_model import Lesson
from idiolect_adapters.training.kernel_fit import Parts, Targets, parts_between, targets_of

EPOCHS, BATCH, RATE, DECAY, WARMING = 4, 96, 1e-4, 0.01, 0.1
KEPT = 0.5  # of the way that the weights went
MAX_TOKENS = 64
LEAST_SHARE = 0.1  # of a direction's part in the loss, beside popularity's 1: they differ by their variance otherwise

IntArray = NDArray[np.int64]


def check_tunable(backbone: Backbone) -> None:
    """Raises ConfigurationError for an encoder that can't be tuned."""
    if backbone.precision != "float32":
        raise ConfigurationError(
            f"an encoder that computes in {backbone.precision} can't be tuned.",
            mend="Set IDIOLECT_PRECISION=float32, or leave --tune out.",
        )


def tuned_weights(
    backbone: Backbone, lesson: Lesson, seed: int, progress: Callable[[int, int], None]
) -> NDArray[np.float32]:
    """All weights of the encoder's layers as one vector, for `with_weights`. `lesson` read this encoder's features."""
    targets = targets_of(lesson.votes, lesson.factors)
    tokens = backbone.tokenize([lesson.pairs[item] for item in targets.item_N], MAX_TOKENS)
    pupil = Backbone(copy.deepcopy(backbone.encoder), backbone.tokenizer)
    surprise = Surprise(targets, lesson.theta_O_A, backbone.device)
    mean_H = torch.from_numpy(lesson.lens.mean_H).to(backbone.device)
    batches = list(_batches(len(tokens), np.random.default_rng(seed)))
    weights = _layers(pupil.encoder)
    optimiser = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step, len(batches)))
    with torch.random.fork_rng(devices=[] if backbone.device.type == "cpu" else [backbone.device]):
        torch.manual_seed(seed)
        pupil.encoder.train().requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        for step, rows in enumerate(batches):
            item = targets.item_N[rows]
            parts = parts_between(lesson.views, lesson.views, item, item)
            loss = surprise(rows, _read(pupil, tokens, rows) - mean_H, parts)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            progress(step + 1, len(batches))
    before_W, after_W = (nn.utils.parameters_to_vector(_layers(one.encoder)).detach() for one in (backbone, pupil))
    middle: NDArray[np.float32] = torch.lerp(before_W, after_W, KEPT).cpu().numpy()
    return middle


def with_weights(backbone: Backbone, weights_W: NDArray[np.float32]) -> Backbone:
    """A copy of `backbone` whose layers have these weights."""
    encoder = copy.deepcopy(backbone.encoder)
    rest_W = torch.tensor(weights_W)
    with torch.no_grad():
        for weight in _layers(encoder):
            weight.copy_(rest_W[: weight.numel()].view_as(weight))
            rest_W = rest_W[weight.numel() :]
    return Backbone(encoder.eval(), backbone.tokenizer)


class Surprise:
    """Minus the log likelihood of a batch of items' factors under the kernel (Rasmussen and Williams 2006, 5.8), up to
    a constant: per item, and summed over outputs by how much each matters."""

    def __init__(self, targets: Targets, theta_O_A: NDArray[np.float64], device: torch.device) -> None:
        self._device = device
        self._mean_N_O, self._noise_N_O = self._tensor(targets.mean_N_O), self._tensor(targets.noise_N_O)
        self._shape_O_A = self._tensor(np.exp(theta_O_A))[:, :, None, None]
        share_O = np.maximum((targets.scale_O / targets.scale_O[-1]) ** 2, LEAST_SHARE)
        self._share_O = self._tensor(share_O / share_O.sum())

    def __call__(self, rows: IntArray, centred_B_H: torch.Tensor, parts: Parts) -> torch.Tensor:
        """`rows` of the targets, the encoder's features of them, and their other parts of the kernel."""
        unit_B_H = nn.functional.normalize(centred_B_H.double(), dim=1, eps=1e-9)
        letters, surface, same = (self._tensor(part) for part in (parts.letters, parts.surface, parts.same))
        a = self._shape_O_A
        meaning = torch.exp((unit_B_H @ unit_B_H.T - 1.0) / a[:, AMPLITUDES] ** 2)
        kernel_O_B_B = (a[:, 0] + a[:, 1] * same) * meaning + (a[:, 2] + a[:, 3] * same) * letters
        kernel_O_B_B = kernel_O_B_B + a[:, 4] * surface + a[:, 5] * same
        place = torch.from_numpy(rows).to(self._device)
        noise_O_B = (self._noise_N_O[place] + a[:, AMPLITUDES + 1, 0, 0]).T
        target_O_B_1 = self._mean_N_O[place].T[:, :, None]
        factor = torch.linalg.cholesky(kernel_O_B_B + torch.diag_embed(noise_O_B))
        solved = torch.cholesky_solve(target_O_B_1, factor)
        half_O = 0.5 * (target_O_B_1 * solved).sum((1, 2)) + factor.diagonal(dim1=1, dim2=2).log().sum(1)
        total: torch.Tensor = (half_O * self._share_O).sum() / len(rows)
        return total

    def _tensor(self, array: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _read(backbone: Backbone, tokens: Tokens, rows: IntArray) -> torch.Tensor:
    """[B, H], in the order of `rows`."""
    some = [tokens.ids[row] for row in rows]
    read, order = [], []
    for length, places in backbone.padding.batches(some):
        read.append(backbone.pooled([some[place] for place in places], length))
        order += places
    back = torch.from_numpy(np.argsort(order)).to(backbone.device)
    return torch.cat(read)[back]


def _layers(encoder: nn.Module) -> Sequence[nn.Parameter]:
    """The weights of its longest stack of layers, in order."""
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    return list(max(stacks, key=len, default=nn.ModuleList()).parameters())


def _batches(texts: int, rng: np.random.Generator) -> Iterator[IntArray]:
    size = min(BATCH, texts)
    for _ in range(EPOCHS):
        order = rng.permutation(texts)
        for start in range(0, texts - size + 1, size):
            yield order[start : start + size]


def _pace(step: int, steps: int) -> float:
    """Share of RATE: up, then down to nothing."""
    warm = max(1.0, WARMING * steps)
    return min((step + 1) / warm, (steps - step) / max(1.0, steps - warm))
