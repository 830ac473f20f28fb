"""Adapter weights as bytes: written once, checked in full before anything believes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from idiolect.canonical import parse_json_object
from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.signing import Verifier

INLINE_MAX_BYTES = 16 << 10  # in the row; larger ones lie in a blob
MAX_HEADER_BYTES = 1 << 20
_SAID_CHARS = 200  # most that an error repeats of what a file says

Weights = Mapping[str, NDArray[np.float32]]


def dump_weights(tensors: Weights) -> bytes:
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
    )


def bytes_of(specs: Sequence[TensorSpec]) -> int:
    """The most that a file of these tensors takes."""
    return 8 + MAX_HEADER_BYTES + sum(4 * math.prod(spec.shape) for spec in specs)


def load_weights(data: bytes, specs: Sequence[TensorSpec]) -> dict[str, NDArray[np.float32]]:
    """Exactly the declared tensors, finite and within their norm bounds, or CorruptArtifactError naming the tensor."""
    limit = bytes_of(specs)
    if len(data) > limit:
        raise CorruptArtifactError(f"weights of {len(data)} bytes are over the {limit} that were declared.")
    try:
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise CorruptArtifactError(f"weights are not valid safetensors: {str(error)[:_SAID_CHARS]}.") from error
    _check_header(data)
    _check_names(tensors.keys(), {spec.name for spec in specs})
    for spec in specs:
        _check_tensor(tensors[spec.name], spec)
    return tensors


def _check_names(found: Set[str], declared: Set[str]) -> None:
    """A file may hold any number of tensors with names of any length: the first that is wrong says enough."""
    for name in sorted(declared - found)[:1]:
        raise CorruptArtifactError(f"weights lack the tensor {name!r}, one of {len(declared)} that were declared.")
    for name in sorted(found - declared)[:1]:
        raise CorruptArtifactError(f"weights hold {_short(name)}, one of {len(found)} tensors, which was not declared.")


def _short(name: str) -> str:
    return repr(name)[:_SAID_CHARS]


def _check_header(data: bytes) -> None:
    """What safetensors itself lets pass: a tensor that is named twice, and text that belongs to no tensor."""
    header = parse_json_object(data[8 : 8 + int.from_bytes(data[:8], "little")], what="the header of the weights")
    for name, entry in header.items():
        if name == "__metadata__" or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CorruptArtifactError(f"the header of the weights says more about {_short(name)} than tensors need.")


def _check_tensor(tensor: NDArray[np.float32], spec: TensorSpec) -> None:
    if tensor.shape != spec.shape or tensor.dtype != np.float32:
        raise CorruptArtifactError(
            f"tensor {spec.name!r} is {tensor.dtype} {tensor.shape}, declared is float32 of shape {spec.shape}."
        )
    if not np.isfinite(tensor).all():
        raise CorruptArtifactError(f"tensor {spec.name!r} holds values that are not finite.")
    norm = float(np.linalg.norm(tensor.astype(np.float64)))
    if norm > spec.max_norm:
        raise CorruptArtifactError(
            f"tensor {spec.name!r} has the norm {norm:.3g}, over its bound of {spec.max_norm:g}."
        )


def verify_version(template: ReleaseTemplate, version: Version, signer: Verifier) -> dict[str, NDArray[np.float32]]:
    """Signature, digest, shapes and values: the only way from a stored row to weights that may be served."""
    what = f"version {version.id}"
    signer.verify(version.key_id, version.signature, manifest_bytes(template, version), what=what)
    if sha256_hex(version.weights) != version.weights_sha256:
        raise CorruptArtifactError(f"the weights of {what} do not match their digest.", mend="Train again.")
    return load_weights(version.weights, template.tensors)


def shared_head(files: Sequence[bytes], specs: Sequence[TensorSpec]) -> bytes:
    """What all of `files` begin with and that says no more than `specs` do: names, shapes and places of the tensors.
    Empty if there is no such thing."""
    first = files[0] if files else b""
    head = first[: 8 + int.from_bytes(first[:8], "little")]
    try:
        header = parse_json_object(head[8:], what="the header of the weights")
    except CorruptArtifactError:
        return b""
    told = set(header) == {spec.name for spec in specs} and all(_tells(header[spec.name], spec) for spec in specs)
    return head if told and all(data.startswith(head) for data in files) else b""


def _tells(entry: object, spec: TensorSpec) -> bool:
    """Whether it says just that."""
    if not isinstance(entry, dict) or not isinstance(places := entry.get("data_offsets"), list):
        return False
    numbers = len(places) == 2 and all(type(place) is int for place in places)
    return numbers and entry == {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": places}


def check_weights(files: Sequence[bytes], specs: Sequence[TensorSpec]) -> None:
    """Raises what `load_weights` raises for the first of `files` that it refuses.

    A million files of one training differ in their numbers alone, so a header is read once, and the numbers of all
    that begin with it are looked at together. Whatever that does not pass goes through `load_weights`.
    """
    start = 0
    while start < len(files):
        load_weights(files[start], specs)
        some = files[start : start + 1 + _TOGETHER_BYTES // len(files[start])]
        others = some[1:]
        for data, is_sound in zip(others, _sound(some[0], others, specs), strict=True):
            if not is_sound:
                load_weights(data, specs)
        start += len(some)


_TOGETHER_BYTES = 1 << 20
_WELL_WITHIN = 1 - 1e-9  # a sum in another order may round otherwise


def _sound(first: bytes, files: Sequence[bytes], specs: Sequence[TensorSpec]) -> Sequence[bool]:
    """Which certainly are: alike `first`, which is, and with finite numbers well within their bounds."""
    if not files:
        return []
    head = 8 + int.from_bytes(first[:8], "little")
    header = parse_json_object(first[8:head], what="the header of the weights")
    alike = [len(data) == len(first) and data.startswith(first[:head]) for data in files]
    numbers = b"".join(data[head:] if same else first[head:] for data, same in zip(files, alike, strict=True))
    with np.errstate(all="ignore"):  # what is not a number compares as False
        values_F_N = np.frombuffer(numbers, "<f4").reshape(len(files), (len(first) - head) // 4).astype(np.float64)
        sound_F = np.array(alike) & np.isfinite(values_F_N).all(axis=1)
        for spec in specs:
            begin, end = (offset // 4 for offset in header[spec.name]["data_offsets"])
            sound_F &= np.linalg.norm(values_F_N[:, begin:end], axis=1) < _WELL_WITHIN * spec.max_norm
    return [bool(one) for one in sound_F]
