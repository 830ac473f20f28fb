"""Leaks that need no statistics: a release with more than it declares, a training that writes where it may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np

from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.registry.manifest import TensorSpec
from idiolect.registry.weights import load_weights
from idiolect_adapters.audit.canary import FloatArray
from idiolect_adapters.runtime.bank import HEAD_B


def undeclared_weights(weights: Callable[[FloatArray], bytes]) -> list[str]:
    """What a loader has against the file of an adapter; it must hold the one declared tensor and no other."""
    adapter_K = np.linspace(-1.0, 1.0, 4)
    try:
        load_weights(weights(adapter_K), [TensorSpec(HEAD_B, (1, len(adapter_K)))])
    except CorruptArtifactError as error:
        return [error.message]
    return []


def changed_inputs(data: object, recipe: object, train: Callable[[], object]) -> list[str]:
    """Names the arrays of the two dataclasses whose digest `train()` changed: trained, but in no manifest."""
    before = _digests(data) | _digests(recipe)
    train()
    after = _digests(data) | _digests(recipe)
    return [
        f"the training changed {name}, which no manifest declares." for name in before if before[name] != after[name]
    ]


def _digests(value: object) -> dict[str, str]:
    named = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    return {name: sha256_hex(array.tobytes()) for name, array in named.items() if isinstance(array, np.ndarray)}
