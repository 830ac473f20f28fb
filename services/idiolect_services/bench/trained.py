"""Global models that benchmarks have trained, so that the same training is not paid for twice.

Beside the models lies one small file per training, named by a digest of everything that decides its outcome: data,
options, backbone and the code that trains.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import idiolect_adapters
from idiolect.canonical import canonical_json
from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.signals.data import SharedData
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import PreferenceModel, load_model
from idiolect_adapters.training.build import build_global
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_services.training_runs import Stages

MAX_NOTE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Trained:
    """`seconds`: what the training took, then or now."""

    model: PreferenceModel
    seconds: float
    reused: bool


def trained_model(
    root: Path,
    backbone: Path,
    data: SharedData,
    data_digest: str,
    options: GlobalOptions,
    stages: Stages,
    *,
    before: PreferenceModel | None = None,
) -> Trained:
    """The model of this training under `root`, trained now unless it is there and intact. `before`: the model whose
    directions it follows."""
    root.mkdir(parents=True, exist_ok=True)
    note = root / f"{training_key(backbone, data_digest, options, before)}.json"
    known = _known(root, note)
    if known is not None:
        return known
    started = time.monotonic()
    described = {"privacy": "declared public data", "datasets": {"benchmark": data_digest}}
    model = build_global(root, Backbone.load(backbone), data, options, described, stages, before)
    seconds = time.monotonic() - started
    _write(note, {"model": model.digest, "seconds": seconds})
    return Trained(model, seconds, reused=False)


def training_key(
    backbone: Path, data_digest: str, options: GlobalOptions, before: PreferenceModel | None = None
) -> str:
    decides = {
        "before": None if before is None else before.digest,
        "data": data_digest,
        "options": asdict(options),
        "backbone": _digest(sorted(path for path in backbone.iterdir() if path.is_file())),
        "code": _digest(_training_code()),
    }
    return sha256_hex(canonical_json(decides))


def _training_code() -> list[Path]:
    folder = Path(idiolect_adapters.__path__[0])
    return sorted([*folder.glob("*.py"), *(folder / "training").glob("*.py")])


def _digest(files: list[Path]) -> str:
    return sha256_hex("".join(f"{path.name} {sha256_hex(path.read_bytes())}\n" for path in files).encode())


def _known(root: Path, note: Path) -> Trained | None:
    """None if there is no such training, or what is left of it is not whole."""
    try:
        said = json.loads(note.read_bytes()[:MAX_NOTE_BYTES])
        return Trained(load_model(root, str(said["model"])), float(said["seconds"]), reused=True)
    except (OSError, ValueError, KeyError, TypeError, CorruptArtifactError):
        return None


def _write(note: Path, said: dict[str, object]) -> None:
    """Whole or not at all."""
    staging = note.with_name(f".{note.name}.{os.getpid()}")
    staging.write_text(json.dumps(said), encoding="utf-8")
    staging.replace(note)
