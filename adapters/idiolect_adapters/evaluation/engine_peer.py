"""PEFT as the peer of the batched runtime: one model, an adapter for every row, the same weights.

PEFT walks over a batch's adapters in Python, in every layer, and can apply one per row.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from idiolect_adapters.lora.spec import LoraAdapter


def peft_model(model: nn.Module, adapters: Sequence[LoraAdapter]) -> Any:
    """`model` itself is changed. Adapter i is called `a<i>`; all of them have the targets and ranks of the first."""
    spec = adapters[0].spec
    config = LoraConfig(
        r=next(iter(spec.rank_pattern.values())),
        lora_alpha=int(next(iter(spec.alpha_pattern.values()))),
        target_modules=list(spec.targets),
    )
    with warnings.catch_warnings():  # PEFT still reads an attribute that transformers is about to drop
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, config, adapter_name="a0")
    for number in range(1, len(adapters)):
        wrapped.add_adapter(f"a{number}", config)
    modules = dict(wrapped.base_model.model.named_modules())
    for number, adapter in enumerate(adapters):
        for target, pair in adapter.pairs.items():
            modules[target].lora_A[f"a{number}"].weight.data.copy_(pair.A_R_I)
            modules[target].lora_B[f"a{number}"].weight.data.copy_(pair.B_O_R)
    return wrapped.eval()


def run_peft(wrapped: Any, ids_N_T: torch.Tensor, mask_N_T: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Hidden states [N, T, H] with adapter `rows[i]` on row i."""
    names = [f"a{number}" for number in rows]
    with torch.inference_mode():
        hidden: torch.Tensor = wrapped(
            input_ids=ids_N_T, attention_mask=mask_N_T, adapter_names=names
        ).last_hidden_state
    return hidden
