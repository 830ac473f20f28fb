"""Adapters to and from folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

What is exported loads with plain `peft.PeftModel.from_pretrained(base, folder)`, where `base` is a module whose layers
have the names in the adapter: a `RewardModel` (lora/reward_model.py) for everything that Idiolect trains. A user's
adapter is then an ordinary LoRA on the linear layer `score`: A is the shared basis, B the person's own numbers.

What is imported may come from anywhere. It is read as data: no pickle, no code, no path or address in it is followed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from numpy.typing import ArrayLike

from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError, TooLargeError
from idiolect_adapters.lora.header import MAX_FILE_BYTES
from idiolect_adapters.lora.peft_config import PeftLora, matches, read_config
from idiolect_adapters.lora.spec import LinearShape, LoraAdapter, LoraPair, LoraSpec, uniform_spec
from idiolect_adapters.lora.weights import BIAS, LORA_A, LORA_B, WEIGHT, adapter_from, read_tensors, tensors_of

CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG_BYTES = 1 << 20
PREFIX = "base_model.model."
SCORE = "score"

Model = Mapping[str, LinearShape]


def head_adapter(basis_K_F: ArrayLike, B_K: ArrayLike, alpha: float) -> LoraAdapter:
    """A user's or domain's numbers on the reward head, as the LoRA that they are. `B_K` is not yet scaled."""
    A_K_F, B_1_K = torch.tensor(basis_K_F), torch.tensor(B_K).reshape(1, -1)
    spec = uniform_spec({SCORE: len(A_K_F)}, alpha)
    return LoraAdapter(spec, {SCORE: LoraPair(A_K_F.float(), B_1_K.float())})


def export_peft(adapter: LoraAdapter, folder: Path, model: Model) -> None:
    """Write the folder, which must not exist yet. `model` is the one it will be loaded on.

    Raises ConflictError if the folder exists, CorruptArtifactError if the adapter does not fit the model,
    InvalidInputError if PEFT would also change a layer that the adapter does not.
    """
    files = peft_files(adapter, model)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConflictError(f"{folder} exists already.", mend="Name a new folder.") from error
    for name, data in files.items():
        (folder / name).write_bytes(data)


def peft_files(adapter: LoraAdapter, model: Model) -> dict[str, bytes]:
    """What `export_peft` writes, by name. Raises as it does, but for the folder."""
    tensors = tensors_of(adapter)
    adapter_from(tensors, adapter.spec, model)
    _check_alone(adapter.spec, model)
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    return {
        WEIGHTS_FILE: safetensors.torch.save(named, metadata={"format": "pt"}),
        CONFIG_FILE: (json.dumps(_config(adapter.spec), indent=2) + "\n").encode(),
    }


def _check_alone(spec: LoraSpec, model: Model) -> None:
    """PEFT matches the ends of names too."""
    ours = {*spec.targets, *spec.modules_to_save}
    for listed in ours:
        other = next((layer for layer in model if layer not in ours and matches(listed, layer)), None)
        if other is not None:
            raise InvalidInputError(f"PEFT would take {listed!r} for {other!r} as well.", mend="Rename the layer.")


def _config(spec: LoraSpec) -> dict[str, object]:
    """Patterns only where layers differ: then for every layer, the longest names first, for PEFT takes the first that
    fits."""
    ranks, alphas = spec.rank_pattern, spec.alpha_pattern
    longest_first = sorted(spec.targets, key=lambda name: (-len(name), name))

    def pattern(values: Mapping[str, float]) -> dict[str, float]:
        return {name: values[name] for name in longest_first} if len(set(values.values())) > 1 else {}

    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "auto_mapping": None,
        "inference_mode": True,
        "r": Counter(ranks.values()).most_common(1)[0][0] if ranks else 8,
        "lora_alpha": _whole(Counter(alphas.values()).most_common(1)[0][0]) if alphas else 8,
        "rank_pattern": pattern(ranks),
        "alpha_pattern": pattern({name: _whole(alpha) for name, alpha in alphas.items()}),
        "use_rslora": spec.use_rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "target_modules": list(spec.targets),
        "modules_to_save": list(spec.modules_to_save) or None,
    }


def _whole(alpha: float) -> float:
    """8 rather than 8.0: PEFT declares it as an integer."""
    return int(alpha) if alpha == int(alpha) else alpha


def import_peft(folder: Path, model: Model, *, base_prefixes: tuple[str, ...] = ()) -> LoraAdapter:
    """The LoRA of a PEFT folder: each file is read once, and what was read is what is checked. Raises as `read_peft`,
    and InvalidInputError for a pickle."""
    return read_peft(*peft_bytes(folder), model, base_prefixes=base_prefixes)


def peft_bytes(folder: Path, max_bytes: int = MAX_FILE_BYTES) -> tuple[bytes, bytes]:
    """(config, weights) of a folder, not checked yet. Raises TooLargeError, InvalidInputError, CorruptArtifactError."""
    return _read(folder, CONFIG_FILE, MAX_CONFIG_BYTES), _read(folder, WEIGHTS_FILE, max_bytes)


def read_peft(config_json: bytes, weights: bytes, model: Model, *, base_prefixes: tuple[str, ...] = ()) -> LoraAdapter:
    """The LoRA that the two files of a PEFT folder hold, for the layers of `model`.

    PEFT names layers as they were called where it was trained. A name that is no layer of `model` is tried again with
    each of `base_prefixes` in front, and with its first part replaced by it: `bert.encoder.layer.0...` of a
    classification model is `encoder.encoder.layer.0...` of a RewardModel with `base_prefixes=("encoder.",)`.

    Raises CorruptArtifactError with the tensor or field and the reason, TooLargeError.
    """
    config = read_config(config_json)
    tensors = read_tensors(weights)
    renamed: dict[str, torch.Tensor] = {}
    pairs: dict[str, str] = {}  # our name of a layer -> PEFT's
    saved: list[str] = []
    for name, tensor in tensors.items():
        layer, ending = _split(name)
        ours = _resolve(layer, model, base_prefixes)
        if ours + ending in renamed:
            raise CorruptArtifactError(f"tensor {name!r} is there twice, under another name.")
        renamed[ours + ending] = tensor
        if ending in (LORA_A, LORA_B):
            pairs[ours] = layer
        elif not any(layer == listed or f".{listed}." in f".{layer}." for listed in config.modules_to_save):
            raise CorruptArtifactError(f"tensor {name!r} belongs to no LoRA and is not in modules_to_save.")
        elif ours not in saved:
            saved.append(ours)
    _check_targets(config, list(pairs.values()))
    return adapter_from(renamed, _spec(config, pairs, saved), model)


def _spec(config: PeftLora, pairs: Mapping[str, str], saved: list[str]) -> LoraSpec:
    return LoraSpec(
        {ours: config.rank_of(theirs) for ours, theirs in pairs.items()},
        {ours: config.alpha_of(theirs) for ours, theirs in pairs.items()},
        config.use_rslora,
        tuple(saved),
    )


def _split(name: str) -> tuple[str, str]:
    """(layer, ending) of a tensor's name."""
    for ending in (LORA_A, LORA_B, WEIGHT, BIAS):
        if name.startswith(PREFIX) and name.endswith(ending) and len(name) > len(PREFIX) + len(ending):
            return name[len(PREFIX) : -len(ending)], ending
    raise CorruptArtifactError(f"tensor {name!r} is no part of a LoRA on linear layers.")


def _resolve(layer: str, model: Model, base_prefixes: tuple[str, ...]) -> str:
    inner = layer.partition(".")[2]
    tried = [layer, *(prefix + rest for prefix in base_prefixes for rest in (layer, inner) if rest)]
    found = next((name for name in tried if name in model), None)
    if found is None:
        raise CorruptArtifactError(
            f"target {layer!r} matches no linear layer of the model.", mend="Use an adapter of this base model."
        )
    return found


def _check_targets(config: PeftLora, layers: list[str]) -> None:
    for listed in config.targets or ():
        if not any(matches(listed, layer) for layer in layers):
            raise CorruptArtifactError(f"target_modules names {listed!r}, for which there are no weights.")


def _read(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    if not path.is_file() or path.is_symlink():
        if name == WEIGHTS_FILE and (folder / PICKLE_FILE).exists():
            raise InvalidInputError(
                f"{folder} holds its weights as a pickle, which can run code.", mend="Save it as safetensors."
            )
        raise CorruptArtifactError(f"{folder} has no file {name}.", mend="Name a folder that PEFT has saved.")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLargeError(f"{path} is over the limit of {limit} bytes.")
    return data
