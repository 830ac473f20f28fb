"""The global preference model: backbone, reward head, and the two frozen bases that adapters are written in.

    z(x, y) = [ w . f,  A f,  C f ]     f = [encoder's features, counts, text kernel's outputs] - mean
    score   = z[0] + a_d * B_d . z_domain + a_u * B_u . z_user

A user adapter is a LoRA on the head whose A is the shared `user_basis`; a domain adapter the same on `domain_basis`.
One projection per text serves every person, so a warm score is k multiply-adds. On disk a model is one folder, named
by its digest.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from idiolect.canonical import canonical_json, parse_json_object
from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.settings import PRECISIONS, Precision
from idiolect.staging import staged_folder
from idiolect_adapters.backbone import Backbone, check_digest
from idiolect_adapters.contrasts import CONTRASTS_FILE, Contrasts
from idiolect_adapters.surface import surface_features
from idiolect_adapters.text_kernel import TextKernel
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import UserRecipes

FORMAT = "idiolect-global/1"
CARD = "model.json"
HEAD_FILE = "preference.safetensors"
PROJECT_ROWS = 64

FloatMatrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Head:
    """What training adds to the backbone. float32, finite. F = hidden size + surface features + kernel outputs.

    Without a `kernel` the features end with the counted ones.
    """

    mean_F: NDArray[np.float32]
    reward_F: NDArray[np.float32]
    user_basis_K_F: NDArray[np.float32]
    domain_basis_M_F: NDArray[np.float32]
    kernel: TextKernel | None = None

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {
            "mean": self.mean_F,
            "reward": self.reward_F,
            "user_basis": self.user_basis_K_F,
            "domain_basis": self.domain_basis_M_F,
            **(self.kernel.tensors() if self.kernel is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class Recipes:
    """How adapters on this model are trained: public constants, chosen with it (training/tuning.py)."""

    user: UserRecipes
    domain: Recipe

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        return {
            "user_curvature": self.user.typical_K_K.astype(np.float32),
            "domain_curvature": self.domain.curvature_K_K.astype(np.float32),
        }

    def to_json(self) -> dict[str, Any]:
        domain = {"clip_norm": self.domain.clip_norm, "prior": self.domain.prior, "steps": self.domain.steps}
        return {"user": self.user.to_json(), "domain": domain}

    @staticmethod
    def from_json(data: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> Recipes:
        user = UserRecipes.from_json(data["user"], tensors["user_curvature"].astype(np.float64))
        return Recipes(user, Recipe(curvature_K_K=tensors["domain_curvature"].astype(np.float64), **data["domain"]))


def basis_digest(basis_K_F: NDArray[np.float32]) -> str:
    """Identity of a basis: what every adapter written in it is bound to."""
    return sha256_hex(repr(basis_K_F.shape).encode() + np.ascontiguousarray(basis_K_F, dtype="<f4").tobytes())


class PreferenceModel:
    """One immutable global model. `digest` covers every byte of it."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        recipes: Recipes,
        *,
        temperature: float,
        digest: str,
        card: Mapping[str, Any],
        contrasts: Contrasts | None = None,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.recipes = recipes
        self.temperature = temperature
        self.digest = digest
        self.card = card
        self.contrasts = contrasts or Contrasts()
        self.user_rank = len(head.user_basis_K_F)
        self.domain_rank = len(head.domain_basis_M_F)
        self.kernel_outputs = 0 if head.kernel is None else head.kernel.outputs
        self.user_basis_digest = basis_digest(head.user_basis_K_F)
        self.domain_basis_digest = basis_digest(head.domain_basis_M_F)

    def project(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[int, int], None] | None = None
    ) -> FloatMatrix:
        """[N, 1 + k + m] for N (prompt, text) pairs: the global score, A f and C f. Same pair, same bits."""
        return project_features(self.features(pairs, progress), self.head)

    def features(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """[N, F] of N (prompt, text) pairs."""
        return text_features(self.backbone, pairs, self.head.kernel, progress)


def text_features(
    backbone: Backbone,
    pairs: Sequence[tuple[str, str]],
    kernel: TextKernel | None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """[N, F]: the backbone's features of each (prompt, text), what can be counted in the text, and what the kernel
    makes of both."""
    return join_features(backbone.features(pairs, progress), pairs, kernel)


def join_features(
    pooled_N_H: NDArray[np.float32], pairs: Sequence[tuple[str, str]], kernel: TextKernel | None
) -> NDArray[np.float32]:
    """As `text_features`, where the encoder's part is known already."""
    return np.concatenate([pooled_N_H, beside_features(pooled_N_H, pairs, kernel)], axis=1)


def beside_features(
    pooled_N_H: NDArray[np.float32], pairs: Sequence[tuple[str, str]], kernel: TextKernel | None
) -> NDArray[np.float32]:
    """[N, F - H]: the features that are not the encoder's own."""
    counted_N_S = surface_features([text for _, text in pairs])
    if kernel is None:
        return counted_N_S
    return np.concatenate([counted_N_S, kernel.outputs_of(pooled_N_H, pairs).astype(np.float32)], axis=1)


def project_features(features_N_F: NDArray[np.float32], head: Head) -> FloatMatrix:
    """Rows are summed one by one in float64, never through BLAS, whose rounding depends on the number of rows."""
    weights_P_F = np.vstack([head.reward_F[None, :], head.user_basis_K_F, head.domain_basis_M_F]).astype(np.float64)
    out_N_P = np.empty((len(features_N_F), len(weights_P_F)))
    for start in range(0, len(features_N_F), PROJECT_ROWS):
        rows = slice(start, start + PROJECT_ROWS)
        centred = features_N_F[rows].astype(np.float64) - head.mean_F
        out_N_P[rows] = (centred[:, None, :] * weights_P_F[None, :, :]).sum(axis=2)
    return out_N_P


def save_model(
    root: Path,
    backbone: Backbone,
    head: Head,
    recipes: Recipes,
    *,
    temperature: float,
    training: Mapping[str, Any],
    contrasts: Contrasts | None = None,
) -> PreferenceModel:
    """Write the model under `root`/<digest>, whole or not at all, and return it.

    One that is there already and intact stays as it is: it may be the live one, and must not be gone for a moment.
    """
    with staged_folder(root) as staging:
        try:
            backbone.save(staging)
            (staging / HEAD_FILE).write_bytes(safetensors.numpy.save(head.tensors() | recipes.tensors()))
            if contrasts is not None:
                (staging / CONTRASTS_FILE).write_bytes(contrasts.dump())
            files = {name: sha256_hex((staging / name).read_bytes()) for name in _files(staging)}
            card = {
                "format": FORMAT,
                "files": files,
                "features": len(head.mean_F),
                "kernel": head.kernel is not None,
                "user_rank": len(head.user_basis_K_F),
                "domain_rank": len(head.domain_basis_M_F),
                **({} if backbone.precision == "float32" else {"precision": backbone.precision}),
                "temperature": temperature,
                "recipes": recipes.to_json(),
                "training": dict(training),
            }
            data = canonical_json(card)
            (staging / CARD).write_bytes(data)
            digest = sha256_hex(data)
            if not _is_intact(root, digest):
                _sync(staging)
                target = root / digest
                if target.exists():
                    target.rename(staging.with_name(staging.name + "-old"))
                staging.rename(target)
                _sync_path(root)
        except SafetensorError as error:
            raise _as_os_error(error, staging) from error
        finally:
            shutil.rmtree(staging.with_name(staging.name + "-old"), ignore_errors=True)
    return PreferenceModel(
        backbone, head, recipes, temperature=temperature, digest=digest, card=card, contrasts=contrasts
    )


def _is_intact(root: Path, digest: str) -> bool:
    try:
        _checked_card(root, digest)
    except CorruptArtifactError:
        return False
    return True


def _as_os_error(error: SafetensorError, folder: Path) -> OSError:
    """safetensors reports a full disk as text in an error of its own."""
    found = re.search(r"os error (\d+)", str(error))
    code = int(found.group(1)) if found else errno.EIO
    return OSError(code, os.strerror(code), str(folder))


def _sync(folder: Path) -> None:
    """Bytes first, then the folder: after the rename a power cut can't leave a model with holes."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def load_model(root: Path, digest: str, device: str = "cpu") -> PreferenceModel:
    """Every byte is checked against `digest` before any of it is used. Raises CorruptArtifactError, and
    ConfigurationError where the model's precision or the device can't be had.

    A file more than the model has is refused too: transformers reads some by their name alone (added tokens, adapters).
    """
    card = _checked_card(root, digest)
    folder = root / digest
    tensors = _load_tensors(folder / HEAD_FILE, card)
    head = Head(
        tensors["mean"],
        tensors["reward"],
        tensors["user_basis"],
        tensors["domain_basis"],
        _kernel(folder, card, tensors),
    )
    recipes = Recipes.from_json(card["recipes"], tensors)
    backbone = Backbone.load(folder, _precision(card), device)
    _checked_card(root, digest)  # again: what was read lies in memory now, and was still what the digest says
    return PreferenceModel(
        backbone,
        head,
        recipes,
        temperature=float(card["temperature"]),
        digest=digest,
        card=card,
        contrasts=_contrasts(folder, card),
    )


def _checked_card(root: Path, digest: str) -> dict[str, Any]:
    """The card of a model of which every byte is as its digest says. Raises CorruptArtifactError."""
    folder = root / digest
    mend = "Train it again: idiolect train global."
    try:
        data = (folder / CARD).read_bytes()
    except OSError as error:
        raise CorruptArtifactError(
            f"global model {digest[:12]} is not in {root}: {error.strerror}.", mend=mend
        ) from error
    if sha256_hex(data) != digest:
        raise CorruptArtifactError(f"{CARD} of global model {digest[:12]} does not match its digest.", mend=mend)
    card = parse_json_object(data, what=CARD)
    for name, expected in card["files"].items():
        check_digest(folder / name, expected)
    strange = sorted(set(_files(folder)) - {CARD, *card["files"]})
    if strange:
        raise CorruptArtifactError(
            f"the folder of global model {digest[:12]} holds {strange[0]!r}, which is not part of it.",
            mend=f"Remove it from {folder}.",
        )
    return card


def _load_tensors(path: Path, card: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except SafetensorError as error:
        raise CorruptArtifactError(f"{path} is not valid safetensors: {error}.") from error
    features, user, domain = int(card["features"]), int(card["user_rank"]), int(card["domain_rank"])
    shapes = {
        "mean": (features,),
        "reward": (features,),
        "user_basis": (user, features),
        "domain_basis": (domain, features),
        "user_curvature": (user, user),
        "domain_curvature": (domain, domain),
    }
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape or not np.isfinite(tensor).all():
            raise CorruptArtifactError(f"tensor {name!r} of {path} is missing, misshapen or not finite.")
    return tensors


def _precision(card: Mapping[str, Any]) -> Precision:
    """Models from before there was a choice say none."""
    named = card.get("precision", "float32")
    found = next((precision for precision in PRECISIONS if precision == named), None)
    if found is None:
        raise CorruptArtifactError(
            f"the global model's precision {str(named)[:40]!r} is not known.",
            mend="Update Idiolect, or train it again.",
        )
    return found


def _kernel(folder: Path, card: Mapping[str, Any], tensors: dict[str, NDArray[Any]]) -> TextKernel | None:
    if not card.get("kernel", False):
        return None
    try:
        return TextKernel.from_tensors(tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise CorruptArtifactError(f"the text kernel of {folder / HEAD_FILE} is damaged: {error}.") from error


def _contrasts(folder: Path, card: Mapping[str, Any]) -> Contrasts | None:
    """None for a model that was trained before there were any."""
    if CONTRASTS_FILE not in card["files"]:
        return None
    return Contrasts.load((folder / CONTRASTS_FILE).read_bytes(), int(card["user_rank"]), int(card["domain_rank"]))


def read_card(root: Path, digest: str) -> dict[str, Any]:
    """The description of a model, without loading it."""
    return dict(json.loads((root / digest / CARD).read_text()))
