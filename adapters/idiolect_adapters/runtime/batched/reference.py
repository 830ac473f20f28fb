"""The slow and obvious way: one row at a time, one adapter after the other. What the fast way is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from idiolect_adapters.lora.spec import LoraAdapter
from idiolect_adapters.precision import LINEAR


@torch.inference_mode()
def run_row(
    model: nn.Module, stack: Sequence[tuple[LoraAdapter, float]], call: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """`call()`, which runs one row through `model`, with the stack's adapters and strengths."""
    hooks = [
        module.register_forward_hook(_adding(name, stack))
        for name, module in model.named_modules()
        if isinstance(module, LINEAR)
    ]
    try:
        return call()
    finally:
        for hook in hooks:
            hook.remove()


def _adding(name: str, stack: Sequence[tuple[LoraAdapter, float]]) -> Any:
    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x, y = inputs[0], output
        for adapter, strength in stack:
            saved = adapter.saved.get(name)
            if saved is not None and strength > 0.0:
                bias = None if saved.bias_O is None else saved.bias_O.to(x)
                y = y + strength * (nn.functional.linear(x, saved.weight_O_I.to(x), bias) - y)
        for adapter, strength in stack:
            pair = adapter.pairs.get(name)
            if pair is not None and strength > 0.0:
                scale = strength * adapter.spec.scale(name)
                y = y + scale * (x @ pair.A_R_I.to(x).T @ pair.B_O_R.to(x).T)
        return y

    return hook
