"""What a private LoRA of inner layers trains, and the gradient of every text's score in it.

    y = W x + U C V x    V [R, I], U [O, R]: the largest singular directions of W, frozen; C [R, R]: trained, 0 at first

Between two frozen factors noise enters once, and linearly: with both factors noisy their product would carry noise
times noise. So few numbers are trained that the noise of a domain's people does not drown them (LoRA-XS, Balazy et al.
2024, without privacy; Fed-SB, Singhal et al. 2025, with it). Published, it is an ordinary LoRA: A = V and B = U C.

A text's score depends on no other text, so one backward pass of a sum of scores gives the gradient of each: that of C
is `sum_l g_l (V x_l)'`, g being the gradient at C's output. Layers below the first adapted one read nothing that is
trained: what they give is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from idiolect.errors import ConfigurationError
from idiolect_adapters.backbone import Backbone, Tokens

FloatArray = NDArray[np.float64]

# ModernBERT's are one matrix, with the keys; MPNet calls them q and v.
QUERY_AND_VALUE = ("query", "value", "q_proj", "v_proj", "q", "v", "Wqkv")
KEPT_BYTES = 1 << 30  # of what the layers below give; texts beyond it are read anew in each step


class CoreLinear(nn.Module):
    """`base(x) + U C V x`; keeps what the last forward gave for `C`'s gradient."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        u_O_K, s_K, v_K_I = torch.linalg.svd(base.weight.detach(), full_matrices=False)
        rank = min(rank, len(s_K))
        self.base = base
        self.v_R_I = nn.Buffer(v_K_I[:rank].clone())
        self.u_O_R = nn.Buffer(u_O_K[:, :rank] * s_K[:rank])  # so that an entry of C is a share of W
        self.core_R_R = nn.Parameter(torch.zeros(rank, rank, device=base.weight.device))
        self.low_N_L_R = self.given_N_L_R = torch.empty(0)

    def forward(self, x_N_L_I: torch.Tensor) -> torch.Tensor:
        self.low_N_L_R = x_N_L_I @ self.v_R_I.T
        self.given_N_L_R = self.low_N_L_R @ self.core_R_R.T
        y_N_L_O: torch.Tensor = self.base(x_N_L_I) + self.given_N_L_R @ self.u_O_R.T
        return y_N_L_O


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Texts of one padded length; `below` is what the last layer that is not adapted gives for them, if it is kept."""

    rows: list[int]
    length: int
    below: Any = None


class InnerLayers:
    """The adapted layers of one encoder, and the texts that are trained on. Build it with `attached`."""

    def __init__(
        self, backbone: Backbone, cores: dict[str, CoreLinear], below: Sequence[nn.Module], tokens: Tokens
    ) -> None:
        self._backbone, self._cores, self._below, self._tokens = backbone, cores, below, tokens
        self._batches = list(self._read())

    @property
    def size(self) -> int:
        """D, the trained numbers."""
        return sum(core.core_R_R.numel() for core in self._cores.values())

    def gradients(self, readout_H: FloatArray) -> tuple[FloatArray, NDArray[np.float32]]:
        """Of each of the I texts: what `readout_H` reads from its pooled features [I], and the gradient of that in all
        cores [I, D]."""
        weights_H = torch.from_numpy(readout_H).float().to(self._backbone.device)
        read_I = np.zeros(len(self._tokens))
        gradient_I_D = np.zeros((len(self._tokens), self.size), np.float32)
        for batch in self._batches:
            with _given(self._below, batch.below):
                read_N = self._pooled(batch) @ weights_H
            cores = self._cores.values()
            found = torch.autograd.grad(read_N.sum(), [core.given_N_L_R for core in cores])
            parts = [
                torch.einsum("nlq,nlr->nqr", gradient, core.low_N_L_R).flatten(1)
                for core, gradient in zip(cores, found, strict=True)
            ]
            read_I[batch.rows] = read_N.detach().cpu().double().numpy()
            gradient_I_D[batch.rows] = torch.cat(parts, dim=1).detach().cpu().numpy()
        return read_I, gradient_I_D

    def move(self, step_D: FloatArray) -> None:
        """Add to the cores; D in the order of `gradients`."""
        start = 0
        with torch.no_grad():
            for core_R_R in (core.core_R_R for core in self._cores.values()):
                part = step_D[start : start + core_R_R.numel()].reshape(tuple(core_R_R.shape))
                core_R_R.add_(torch.from_numpy(part).to(core_R_R))
                start += core_R_R.numel()

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """A and B of every adapted layer, named as in the encoder."""
        found = {}
        for name, core in self._cores.items():
            found[f"{name}.lora_A.weight"] = _numpy(core.v_R_I)
            found[f"{name}.lora_B.weight"] = _numpy(core.u_O_R @ core.core_R_R)
        return found

    def _pooled(self, batch: _Batch) -> torch.Tensor:
        return self._backbone.pooled([self._tokens.ids[row] for row in batch.rows], batch.length)

    def _read(self) -> Iterator[_Batch]:
        """All texts in batches, with what the layers below give as far as KEPT_BYTES reach."""
        kept = 0
        for length, rows in self._backbone.padding.batches(self._tokens.ids):
            batch = _Batch(rows, length)
            if self._below and kept < KEPT_BYTES:
                with torch.no_grad(), _watched(self._below[-1]) as seen:
                    self._pooled(batch)
                batch = _Batch(rows, length, seen[0])
                kept += sum(tensor.nbytes for tensor in _tensors(seen[0]))
            yield batch


@contextmanager
def attached(backbone: Backbone, tokens: Tokens, *, layers: int, rank: int) -> Iterator[InnerLayers]:
    """Query and value of the last `layers` layers get a core; `tokens` are the texts'. Afterwards the backbone is as
    it was, bit for bit.

    Not for two threads at once on one backbone. Raises ConfigurationError as `adapted_layers`.
    """
    encoder = backbone.encoder
    flags = {name: parameter.requires_grad for name, parameter in encoder.named_parameters()}
    training = encoder.training
    bases, below = adapted_layers(backbone, layers)
    encoder.requires_grad_(False).eval()
    cores = {name: CoreLinear(base, rank) for name, base in bases.items()}
    try:
        for name, core in cores.items():
            _put(encoder, name, core)
        yield InnerLayers(backbone, cores, below, tokens)
    finally:
        for name, base in bases.items():
            _put(encoder, name, base)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(flags[name])
        encoder.train(training)


def adapted_layers(backbone: Backbone, layers: int) -> tuple[dict[str, nn.Linear], list[nn.Module]]:
    """Query and value projections of the last layers, by name, and the layers below those, in order.

    Raises ConfigurationError for a backbone whose layers are not known, that has fewer, or that does not compute in
    float32.
    """
    encoder = backbone.encoder
    if backbone.precision != "float32":
        raise ConfigurationError(
            f"inner layers are trained in float32, and the global model computes in {backbone.precision}.",
            mend="Train the head only, or a global model with IDIOLECT_PRECISION=float32.",
        )
    found: dict[int, dict[str, nn.Linear]] = {}
    stack = ""
    for name, module in encoder.named_modules():
        *path, last = name.split(".")
        numbers = [at for at, part in enumerate(path) if part.isdigit()]
        if last in QUERY_AND_VALUE and numbers and isinstance(module, nn.Linear):
            found.setdefault(int(path[numbers[0]]), {})[name] = module
            stack = ".".join(path[: numbers[0]])
    if len(found) < layers:
        raise ConfigurationError(
            f"{type(encoder).__name__} has {len(found)} layers whose query and value are known, not {layers}.",
            mend="Use fewer layers, or a BERT-, MPNet-, ModernBERT-, Llama- or Qwen-type backbone.",
        )
    adapted = sorted(found)[-layers:]
    every: Any = encoder.get_submodule(stack)
    targets = {name: module for layer in adapted for name, module in found[layer].items()}
    return targets, [every[number] for number in range(adapted[0])]


@contextmanager
def _watched(layer: nn.Module) -> Iterator[list[Any]]:
    """What it gives in the forwards inside."""
    seen: list[Any] = []
    hook = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _given(layers: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Inside, each of `layers` gives `output` without computing anything, so the layer after them reads it."""
    with ExitStack() as undo:
        for layer in layers if output is not None else ():
            undo.callback(layer.__dict__.pop, "forward", None)
            layer.__dict__["forward"] = lambda *_args, **_kwargs: output
        yield


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in output if part is not None for tensor in _tensors(part)]


def _put(encoder: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(encoder.get_submodule(parent), last, module)


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy().copy()
    return array
