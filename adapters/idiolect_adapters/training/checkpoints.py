"""What a training had done when it was killed, so that the same training goes on from there.

A checkpoint is a folder beside the models, named by everything that decides the outcome: other data, options or weights
find another one, and clear this one away. Each part is written whole or not at all, and one that can't be read is
computed again. It holds features of public texts and public constants, and goes when the model is saved.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from idiolect.canonical import canonical_json, parse_json_object
from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex, text_digest
from idiolect.signals.data import SharedData
from idiolect_adapters.backbone import Backbone

PREFIX = ".checkpoint-"
TEXTS_AT_ONCE = 512  # what a kill costs at most, of texts that were read


class Checkpoint:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def at(root: Path, identity: Mapping[str, Any]) -> Checkpoint:
        """That of `identity` under `root`; those of other trainings are removed."""
        folder = root / (PREFIX + sha256_hex(canonical_json(identity))[:32])
        for other in root.glob(f"{PREFIX}*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        return Checkpoint(folder)

    def array(self, name: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        try:
            found: NDArray[np.float32] = safetensors.numpy.load((self._folder / name).read_bytes())["array"]
            return found
        except (OSError, SafetensorError, KeyError):
            computed = compute()
            self._write(name, safetensors.numpy.save({"array": computed}))
            return computed

    def document(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        try:
            return parse_json_object((self._folder / name).read_bytes(), what=name)
        except (OSError, CorruptArtifactError):
            data = canonical_json(compute())
            self._write(name, data)
            return parse_json_object(data, what=name)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        part = self._folder / f"{name}.part"
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._folder / name)


def identity_of(backbone: Backbone, data: SharedData, options: object, before: str | None) -> dict[str, Any]:
    """Everything that the outcome of a training depends on, in digests. `options` is a dataclass; `before` the digest
    of the model whose directions are followed."""
    columns = (*_columns(data.ratings), *_columns(data.comparisons))
    texts = "\0".join(f"{item.key} {item.language} {item.task}" for item in data.items)
    return {
        "code": version("idiolect"),
        "backbone": sha256_hex("".join(_digests(backbone.encoder.state_dict())).encode()),
        "items": text_digest(texts),
        "people": text_digest("\0".join(data.people)),
        "said": sha256_hex("".join(sha256_hex(np.ascontiguousarray(column).tobytes()) for column in columns).encode()),
        "options": asdict(options),  # type: ignore[call-overload]
        "before": before,
    }


def _columns(rows: Any) -> list[NDArray[Any]]:
    return [getattr(rows, name) for name in rows.__dataclass_fields__]


def _digests(state: Mapping[str, Any]) -> list[str]:
    return [f"{name} {sha256_hex(tensor.cpu().numpy().tobytes())}" for name, tensor in sorted(state.items())]


def read_texts(
    backbone: Backbone,
    texts: list[tuple[str, str]],
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None],
    name: str = "features",
) -> NDArray[np.float32]:
    """[N, H]: the same bits as in one go, since a text's features do not depend on its neighbours. `name` is the
    encoder's in this training."""
    parts = [np.zeros((0, backbone.hidden_size), np.float32)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]

        def shown(done: int, _total: int, start: int = start) -> None:
            progress(start + done, len(texts))

        def features(some: list[tuple[str, str]] = some) -> NDArray[np.float32]:
            return backbone.features(some, shown)

        parts.append(checkpoint.array(f"{name}-{start}", features))
        progress(start + len(some), len(texts))
    return np.concatenate(parts)
