"""The header of a safetensors file, checked before any tensor is believed, or even looked at.

8 bytes: length of the header | JSON: name -> dtype, shape, data_offsets | the values, without gaps
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from idiolect.canonical import parse_json_object
from idiolect.errors import CorruptArtifactError, TooLargeError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}
MAX_HEADER_BYTES = 8 << 20
MAX_FILE_BYTES = 1 << 30
MAX_DIMENSIONS = 2
MAX_TENSORS, MAX_NAME = 10_000, 512  # a large model has a thousand layers, whose names take a hundred characters


@dataclass(frozen=True, slots=True)
class Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(data: bytes, *, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Entry]:
    """Name -> entry. Raises CorruptArtifactError naming the tensor, TooLargeError over `max_bytes`."""
    if len(data) > max_bytes:
        raise TooLargeError(f"weights of {len(data)} bytes are over the limit of {max_bytes} bytes.")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise CorruptArtifactError("the weights are cut off or are not safetensors: the header is longer than they.")
    header = parse_json_object(data[8 : 8 + length], what="the header of the weights")
    _check_metadata(header.pop(METADATA, {}))
    if len(header) > MAX_TENSORS:
        raise CorruptArtifactError(f"the weights hold {len(header)} tensors, the limit is {MAX_TENSORS}.")
    for name in header:
        if len(name) > MAX_NAME:
            raise CorruptArtifactError(
                f"tensor {_short(name)} has a name of {len(name)} characters, the limit is {MAX_NAME}."
            )
    entries = {name: _entry(name, value) for name, value in header.items()}
    _check_layout(entries, len(data) - 8 - length)
    return entries


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptArtifactError("the header's metadata is not text by name.")


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != FIELDS:
        raise CorruptArtifactError(f"tensor {name!r}: the header must give exactly {', '.join(sorted(FIELDS))}.")
    if not isinstance(value["dtype"], str) or value["dtype"] not in ITEM_BYTES:
        raise CorruptArtifactError(
            f"tensor {name!r} has the dtype {_short(value['dtype'])}, allowed are {', '.join(ITEM_BYTES)}."
        )
    shape, offsets = (_sizes(name, value[field]) for field in ("shape", "data_offsets"))
    if not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape or len(offsets) != 2:
        raise CorruptArtifactError(f"tensor {name!r} has the shape {_short(list(shape))} at {_short(list(offsets))}.")
    entry = Entry(value["dtype"], shape, *offsets)
    if entry.end - entry.start != math.prod(shape) * ITEM_BYTES[entry.dtype]:
        raise CorruptArtifactError(f"tensor {name!r} does not have the bytes that its shape {list(shape)} needs.")
    return entry


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    # bool is an int to Python.
    if not isinstance(value, list) or not all(type(size) is int and 0 <= size < 1 << 48 for size in value):
        raise CorruptArtifactError(f"tensor {name!r}: {_short(value)} is no list of sizes.")
    return tuple(value)


def _short(value: Any) -> str:
    return repr(value)[:80]


def _check_layout(entries: dict[str, Entry], size: int) -> None:
    """Tensors follow each other without gap or overlap, to the last byte."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != at:
            raise CorruptArtifactError(f"tensor {name!r} starts at byte {entry.start}, expected at {at}.")
        at = entry.end
    if at != size:
        raise CorruptArtifactError(f"the weights hold {size} bytes of values, their header says {at}.")
