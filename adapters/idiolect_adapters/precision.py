"""The numbers that a backbone computes in: float32, bfloat16, or 8-bit integers in its linear layers.

It is part of a global model's identity (its card says it, and its digest covers the card), so features and adapters of
one precision never meet those of another.
"""

from __future__ import annotations

import torch
from torch import nn

from idiolect.errors import ConfigurationError
from idiolect.settings import Precision

LEVELS = 127
ROWS = 256  # at a time, so that what is between the products stays in the processor's cache
SMALLEST = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Module):
    """y = W x + b, with one scale for each output of W and one for each token of x, chosen from that token alone.

    Sums of integers are exact whatever order a kernel takes them in, so a token has the same bits in any company. The
    usual dynamic quantisation has one scale for a whole batch instead: there a text's neighbours change its score.
    """

    weight_I_O: torch.Tensor
    scale_O: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight_O_I = layer.weight.detach().float()
        scale_O = weight_O_I.abs().amax(1).clamp_min(SMALLEST) / LEVELS
        rounded_O_I = torch.round(weight_O_I / scale_O[:, None]).to(torch.int8)
        self.register_buffer("weight_I_O", rounded_O_I.T.contiguous())
        self.register_buffer("scale_O", scale_O)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_N_I = x.reshape(-1, self.in_features)
        y_N_O = x.new_empty(len(x_N_I), self.out_features)
        for start in range(0, len(x_N_I), ROWS):
            self._multiply(x_N_I[start : start + ROWS], y_N_O[start : start + ROWS])
        return y_N_O.view(*x.shape[:-1], self.out_features)

    def _multiply(self, x_N_I: torch.Tensor, y_N_O: torch.Tensor) -> None:
        scale_N_1 = x_N_I.abs().amax(1, keepdim=True).clamp_min_(SMALLEST) / LEVELS
        rounded_N_I = (x_N_I / scale_N_1).round_().to(torch.int8)
        torch.mul(torch._int_mm(rounded_N_I, self.weight_I_O), scale_N_1, out=y_N_O)
        # Not in one call with the bias: a fused multiply-add would round by where in the batch a number stands.
        y_N_O *= self.scale_O
        if self.bias is not None:
            y_N_O += self.bias


LINEAR = (nn.Linear, Int8Linear)  # what adapters can be put on


def dtype_of(layer: nn.Linear | Int8Linear) -> torch.dtype:
    """Of the layer's outputs."""
    return torch.float32 if isinstance(layer, Int8Linear) else layer.weight.dtype


def check_device(device: str, precision: Precision) -> None:
    """Raises ConfigurationError."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"torch sees no GPU, so {device!r} can't be used.", mend="Set IDIOLECT_DEVICE=cpu.")
    if device != "cpu" and precision == "int8":
        raise ConfigurationError("int8 is computed on CPUs only.", mend="Train the global model in another precision.")


def convert(encoder: nn.Module, precision: Precision) -> nn.Module:
    """`encoder` in that precision, changed in place. Raises ConfigurationError where it can't be had."""
    if precision == "bfloat16":
        return encoder.to(torch.bfloat16)
    if precision == "int8":
        check_exact()
        for module in list(encoder.modules()):
            for name, child in module.named_children():
                if (
                    isinstance(child, nn.Linear) and child.in_features > 1
                ):  # torch 2.13 multiplies single columns wrongly
                    setattr(module, name, Int8Linear(child))
    return encoder


def check_exact() -> None:
    """Raises ConfigurationError unless products of the largest 8-bit integers come out exact on this processor: some
    older ones add pairs of them up in 16 bits, which overflow."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 2, shape, generator=generator) * 2 * LEVELS - LEVELS for shape in ((33, 1024), (1024, 40)))
    a[0], b[:, 0] = LEVELS, LEVELS
    if not torch.equal(torch._int_mm(a.to(torch.int8), b.to(torch.int8)).long(), a @ b):
        raise ConfigurationError(
            "this processor does not multiply 8-bit integers exactly.", mend="Use IDIOLECT_PRECISION=float32."
        )
