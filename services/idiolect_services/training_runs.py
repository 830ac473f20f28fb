"""Trainings as whole runs: what the commands, the demo and the server start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from idiolect.errors import InvalidInputError
from idiolect_adapters.backbone import Backbone, find_backbone
from idiolect_adapters.preference import PreferenceModel, remove_staging
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_adapters.training.build import build_global
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_services.trainer import Trainer
from idiolect_services.wiring import Installation

# Chosen on held-out training people: deploy/decisions/0003-global-training.md.
QUICK_EPOCHS = 4
SAMPLE_EPOCHS = 6  # the shipped sample has few texts, so an epoch is few steps
FULL_EPOCHS = 10


class Stages(Protocol):
    """Shows long work: `stage(name)` gives a callback for (done, total)."""

    def stage(self, name: str) -> Callable[[int, int], None]: ...


def train_global_model(installation: Installation, tenant: str, epochs: int, stages: Stages) -> PreferenceModel:
    """Train on the tenant's public data sets and make the result live. The old model keeps serving until then."""
    data = installation.store.shared_data(tenant, public_only=True)
    if not data.ratings and not data.comparisons:
        raise InvalidInputError(
            f"tenant {tenant!r} has no data set that was declared public.",
            mend="Import one with --public. Training the global model on private data is not offered yet.",
        )
    installation.models.mkdir(parents=True, exist_ok=True)
    remove_staging(installation.models)
    backbone = Backbone.load(find_backbone(installation.settings.backbone))
    described = {
        "backbone": installation.settings.backbone,
        "privacy": "declared public data",
        "datasets": {info.name: info.digest for info in installation.store.datasets(tenant) if info.public},
    }
    model = build_global(installation.models, backbone, data, GlobalOptions(epochs=epochs), described, stages)
    installation.store.set_global(
        model.digest, installation.clock.now(), reason="training of the global model", actor="trainer"
    )
    return model


def open_trainer(installation: Installation) -> Trainer:
    """A trainer on the live global model."""
    model = installation.load_live_model()
    return Trainer(installation, model, FeatureCache(model, max_bytes=installation.settings.feature_cache_bytes))
