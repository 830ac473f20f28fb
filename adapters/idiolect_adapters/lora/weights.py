"""LoRA weights from bytes: everything is checked before anything is returned.

Files hold `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, and for replaced layers `<layer>.weight` and
`<layer>.bias`. They are read from memory, never mapped: a file that changes later can't change what was checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError

from idiolect.errors import CorruptArtifactError
from idiolect_adapters.lora.header import MAX_FILE_BYTES, read_header
from idiolect_adapters.lora.spec import LinearShape, LoraAdapter, LoraPair, LoraSpec, SavedLinear

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
WEIGHT, BIAS = ".weight", ".bias"

Tensors = Mapping[str, torch.Tensor]


def read_tensors(data: bytes, *, max_bytes: int = MAX_FILE_BYTES) -> dict[str, torch.Tensor]:
    """float32 tensors, all finite. Raises CorruptArtifactError naming the tensor, TooLargeError."""
    read_header(data, max_bytes=max_bytes)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CorruptArtifactError(f"the weights are not valid safetensors: {error}.") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CorruptArtifactError(f"tensor {name!r} holds values that are not finite.", mend="Train it again.")
    return {name: tensor.float() for name, tensor in tensors.items()}


def load_lora(
    data: bytes, spec: LoraSpec, model: Mapping[str, LinearShape], *, max_bytes: int = MAX_FILE_BYTES
) -> LoraAdapter:
    """The adapter that `data` holds, if it is exactly what `spec` declares and fits the layers of `model`."""
    return adapter_from(read_tensors(data, max_bytes=max_bytes), spec, model)


def adapter_from(tensors: Tensors, spec: LoraSpec, model: Mapping[str, LinearShape]) -> LoraAdapter:
    """Raises CorruptArtifactError: a target that is no layer, A without B, a wrong shape or rank, an unknown tensor."""
    pairs = {
        target: _pair(tensors, target, spec.rank_pattern[target], _layer(target, model)) for target in spec.targets
    }
    saved = {name: _saved(tensors, name, _layer(name, model)) for name in spec.modules_to_save}
    unknown = sorted(set(tensors) - set(names_of(spec, model)))
    if unknown:
        raise CorruptArtifactError(f"tensor {unknown[0]!r} belongs to no target of the adapter.")
    return LoraAdapter(spec, pairs, saved)


def names_of(spec: LoraSpec, model: Mapping[str, LinearShape]) -> list[str]:
    names = [target + half for target in spec.targets for half in (LORA_A, LORA_B)]
    for name in spec.modules_to_save:
        names += [name + WEIGHT] + [name + BIAS] * model[name].bias
    return names


def tensors_of(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for target, pair in adapter.pairs.items():
        tensors |= {target + LORA_A: pair.A_R_I, target + LORA_B: pair.B_O_R}
    for name, saved in adapter.saved.items():
        tensors[name + WEIGHT] = saved.weight_O_I
        if saved.bias_O is not None:
            tensors[name + BIAS] = saved.bias_O
    return {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}


def dump_lora(adapter: LoraAdapter) -> bytes:
    return safetensors.torch.save(tensors_of(adapter))


def _layer(name: str, model: Mapping[str, LinearShape]) -> LinearShape:
    if name not in model:
        raise CorruptArtifactError(
            f"target {name!r} matches no linear layer of the model.", mend="Train the adapter on this model."
        )
    return model[name]


def _pair(tensors: Tensors, target: str, rank: int, layer: LinearShape) -> LoraPair:
    A_R_I = _tensor(tensors, target + LORA_A, (rank, layer.inputs))
    return LoraPair(A_R_I, _tensor(tensors, target + LORA_B, (layer.outputs, rank)))


def _saved(tensors: Tensors, name: str, layer: LinearShape) -> SavedLinear:
    weight_O_I = _tensor(tensors, name + WEIGHT, (layer.outputs, layer.inputs))
    return SavedLinear(weight_O_I, _tensor(tensors, name + BIAS, (layer.outputs,)) if layer.bias else None)


def _tensor(tensors: Tensors, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise CorruptArtifactError(f"tensor {name!r} is missing.", mend="An adapter needs all its halves.")
    if tuple(tensor.shape) != shape:
        raise CorruptArtifactError(f"tensor {name!r} has the shape {list(tensor.shape)}, expected is {list(shape)}.")
    return tensor
