"""What `training/domain_lora.py` trained, as the LoRA that is published and served."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from idiolect_adapters.lora.peft_format import SCORE
from idiolect_adapters.lora.spec import LoraAdapter, LoraPair, LoraSpec
from idiolect_adapters.lora.weights import LORA_A, LORA_B
from idiolect_adapters.preference import Head

HEAD_B = "head.lora_B.weight"
ENCODER = "encoder."


def trained_adapter(head: Head, tensors: Mapping[str, NDArray[np.float32]]) -> LoraAdapter:
    """Its layers are named as in the encoder, its head is written in the domain basis, and its scales are 1."""
    pairs = {SCORE: LoraPair(torch.from_numpy(head.domain_basis_M_F), torch.from_numpy(tensors[HEAD_B]))}
    for name in sorted(tensors):
        if name.endswith(LORA_A):
            layer = name.removesuffix(LORA_A)
            pairs[ENCODER + layer] = LoraPair(
                torch.from_numpy(tensors[name]), torch.from_numpy(tensors[layer + LORA_B])
            )
    ranks = {name: len(pair.A_R_I) for name, pair in pairs.items()}
    return LoraAdapter(LoraSpec(ranks, {name: float(rank) for name, rank in ranks.items()}), pairs)
