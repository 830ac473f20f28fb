"""Where adapters can act: the linear layers of a model, by name, in groups that read the same input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from idiolect_adapters.precision import LINEAR, Int8Linear, dtype_of

# Siblings that get the same tensor: one product with all their A's reads it once. That they really got the same one is
# seen again in every forward, so a model that names its layers otherwise is only slower.
FUSED = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    name: str
    group: str
    module: nn.Linear | Int8Linear

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.module)


def find_sites(model: nn.Module) -> dict[str, Site]:
    return {
        name: Site(name, _group(name), module) for name, module in model.named_modules() if isinstance(module, LINEAR)
    }


def _group(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    siblings = next((siblings for siblings in FUSED if leaf in siblings), (leaf,))
    return f"{parent}.{'+'.join(siblings)}"
