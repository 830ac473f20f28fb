"""`adapter_config.json` of PEFT, read as data: what it says about a LoRA is taken, everything else is refused by name.

Nothing in it is followed or run. `base_model_name_or_path` and `auto_mapping` are ignored, patterns are compared
character by character and never compiled (a pattern can be built so that it never ends).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idiolect.canonical import parse_json_object
from idiolect.errors import CorruptArtifactError

# What changes the output in a way that is not W x + scale * B A x, by what it may say if it is not used.
UNSUPPORTED: Mapping[str, str] = {
    "use_dora": "DoRA (a magnitude beside the LoRA)",
    "lora_bias": "a bias on B",
    "fan_in_fan_out": "transposed weights (Conv1D)",
    "layer_replication": "repeated layers",
    "megatron_config": "Megatron layers",
    "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "target_parameters": "LoRA on bare parameters",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
# What was true of the training, or of where the file came from, and not of the result.
IGNORED = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",  # but for those that are not in INITIAL
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# Where a training may have begun and left the model's own weights as they are. Others (PiSSA, OLoRA, CorDA, LoRA-GA,
# LoftQ) take their part out of those first, so that B A alone is not what was trained.
INITIAL = frozenset({None, True, False, "gaussian", "eva", "orthogonal", "mica"})
_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_-]|\\?\.){1,512}")
_PLACES = re.compile(r"\\?.")
MAX_ENTRIES = 10_000
MAX_NUMBER = 1e30
MAX_PATTERNS = 1_000  # each is held against each layer


@dataclass(frozen=True, slots=True)
class PeftLora:
    """`targets` None: PEFT was given a pattern, so only the tensors say which layers it met."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    targets: tuple[str, ...] | None
    modules_to_save: tuple[str, ...]

    def rank_of(self, layer: str) -> int:
        return self.rank_pattern.get(_first_match(self.rank_pattern, layer), self.rank)

    def alpha_of(self, layer: str) -> float:
        return self.alpha_pattern.get(_first_match(self.alpha_pattern, layer), self.alpha)


def read_config(data: bytes) -> PeftLora:
    """Raises CorruptArtifactError with the field's name: another type of adapter, an option that is not supported."""
    config = parse_json_object(data, what="adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise CorruptArtifactError(f"the adapter is of the PEFT type {_short(config.get('peft_type'))}, not LORA.")
    if config.get("bias", "none") != "none":
        raise CorruptArtifactError(f"bias {_short(config['bias'])} is not supported.", mend="Train with bias='none'.")
    for field, value in config.items():
        if field in UNSUPPORTED and value not in (None, False, [], {}):
            raise CorruptArtifactError(f"{field}: {UNSUPPORTED[field]} is not supported.", mend="Train a plain LoRA.")
        if field not in UNSUPPORTED and field not in IGNORED and value not in (None, False, [], {}):
            raise CorruptArtifactError(f"adapter_config.json says {_short(field)}, which is not known here.")
    _check_initial(config.get("init_lora_weights"))
    if not isinstance(config.get("use_rslora", False), bool):
        raise CorruptArtifactError("use_rslora must be true or false.")
    return PeftLora(
        rank=_rank("r", config.get("r", 8)),
        alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
        rank_pattern={key: _rank(key, value) for key, value in _patterns(config, "rank_pattern").items()},
        alpha_pattern={key: _number(key, value) for key, value in _patterns(config, "alpha_pattern").items()},
        use_rslora=config.get("use_rslora", False),
        targets=_targets(config),
        modules_to_save=_names(config, "modules_to_save") or (),
    )


def _check_initial(value: Any) -> None:
    if not isinstance(value, str | bool | None) or value not in INITIAL:
        raise CorruptArtifactError(
            f"init_lora_weights {_short(value)} is not supported: such a training may change the model's own weights.",
            mend="Save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it.",
        )


def matches(listed: str, layer: str) -> bool:
    """Whether PEFT's list entry names this layer: its full path, or the end of it after a dot."""
    return layer == listed or layer.endswith(f".{listed}")


def _first_match(patterns: Mapping[str, Any], layer: str) -> str:
    """PEFT takes the first of its patterns that matches a layer's full path, or the end of it after a dot."""
    return next((pattern for pattern in patterns if _fits(pattern, layer)), "")


def _fits(pattern: str, layer: str) -> bool:
    """A dot of a pattern stands for any character, as in PEFT, unless a backslash is before it."""
    places = _PLACES.findall(pattern.removeprefix("^"))
    start = len(layer) - len(places)
    if start < 0 or (start and (pattern.startswith("^") or layer[start - 1] != ".")):
        return False
    return all(place == "." or place[-1] == there for place, there in zip(places, layer[start:], strict=True))


def _patterns(config: Mapping[str, Any], field: str) -> dict[str, Any]:
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        raise CorruptArtifactError(f"{field} is no table of at most {MAX_PATTERNS} entries.")
    for pattern in patterns:
        if not _PLAIN.fullmatch(pattern):
            raise CorruptArtifactError(
                f"{field} has the key {_short(pattern)}: only names of layers are supported, no other patterns.",
                mend="List the layers by name.",
            )
    return patterns


def _names(config: Mapping[str, Any], field: str) -> tuple[str, ...] | None:
    value = config.get(field)
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, Sequence) or len(value) > MAX_ENTRIES or not all(isinstance(name, str) for name in value):
        raise CorruptArtifactError(f"{field} is no list of at most {MAX_ENTRIES} names.")
    return tuple(value)


def _targets(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Without what PEFT was told to leave out."""
    listed, excluded = _names(config, "target_modules"), _names(config, "exclude_modules") or ()
    if listed is None or isinstance(config.get("exclude_modules"), str):
        return None
    return tuple(name for name in listed if not any(matches(left_out, name) for left_out in excluded))


def _rank(field: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise CorruptArtifactError(f"{field} has the rank {_short(value)}, expected is a whole number from 1.")
    return value


def _number(field: str, value: Any) -> float:
    # Larger than any scale, and whole numbers of JSON may be larger than any float.
    if type(value) not in (int, float) or not abs(value) <= MAX_NUMBER:
        raise CorruptArtifactError(f"{field} is {_short(value)}, expected is a number.")
    return float(value)


def _short(value: Any) -> str:
    return repr(value)[:80]
