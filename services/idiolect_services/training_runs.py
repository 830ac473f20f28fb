"""Trainings as whole runs: what the commands, the demo and the server start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError
from idiolect.signals.comparison import Item
from idiolect.signals.importers.sample import load_sample
from idiolect.stores.rollout_ports import StagedModel
from idiolect_adapters.backbone import Backbone, find_backbone
from idiolect_adapters.carrying import PROBES
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_adapters.training.build import build_global
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_adapters.training.public_space import MIN_TEXTS
from idiolect_services.carrying import Carrier
from idiolect_services.datasets import sample_folder
from idiolect_services.passage import ACTOR, CarryReport
from idiolect_services.private_global import PrivateGlobalTrainer, PrivateTraining, Source
from idiolect_services.trainer import Trainer
from idiolect_services.wiring import Installation

GLOBAL_OPTIONS = GlobalOptions()


class Stages(Protocol):
    """Shows long work: `stage(name)` gives a callback for (done, total)."""

    def stage(self, name: str) -> Callable[[int, int], None]: ...


def _told_nobody(_report: CarryReport) -> None:
    """For callers who don't show it."""


def train_global_model(
    installation: Installation,
    tenant: str,
    stages: Stages,
    *,
    tune: bool = False,
    carry: bool = True,
    staged: bool = False,
    on_carried: Callable[[CarryReport], None] = _told_nobody,
) -> PreferenceModel:
    """Train on the tenant's public data sets and make the result live, with everybody's adapters carried to it.
    `tune`: the encoder too.

    The old model keeps serving until then. A kill at any point leaves it so, and the same call again goes on. A
    `staged` one stays live for nobody: it waits for a rollout.
    """
    _check_staged(installation, staged)
    data = installation.store.shared_data(tenant, public_only=True)
    if not data.ratings and not data.comparisons:
        raise InvalidInputError(
            f"tenant {tenant!r} has no data set that was declared public.",
            mend="Import one with --public, or train privately on people who opted in: add --private.",
        )
    installation.models.mkdir(parents=True, exist_ok=True)
    settings = installation.settings
    backbone = Backbone.load(find_backbone(settings.backbone), settings.precision, settings.device)
    described = {
        "backbone": settings.backbone,
        "privacy": "declared public data",
        "datasets": {info.name: info.digest for info in installation.store.datasets(tenant) if info.public},
    }
    before = _before(installation) if carry else None
    options = replace(GLOBAL_OPTIONS, tune=tune)
    model = build_global(installation.models, backbone, data, options, described, stages, before)
    _put_out(installation, model, data.items, stages, carry, staged, on_carried)
    return model


def train_private_global_model(
    installation: Installation,
    tenant: str,
    sources: Sequence[Source],
    stages: Stages,
    *,
    carry: bool = True,
    staged: bool = False,
    on_carried: Callable[[CarryReport], None] = _told_nobody,
) -> PrivateTraining:
    """Train on the people of `sources` who opted in, on top of the live model if that has the same encoder, tuned or
    not, and make the result live.

    Public texts are those of the tenant's data sets that were declared public, or of the sample that ships where
    those are too few. A kill anywhere leaves the charge and the old model.
    """
    _check_staged(installation, staged)
    installation.models.mkdir(parents=True, exist_ok=True)
    public = _public_texts(installation, tenant)
    before = _before(installation)
    if before is not None and _is_tuned(before, installation.settings.backbone):
        backbone = before.backbone
    else:
        backbone = Backbone.load(find_backbone(installation.settings.backbone))
        probe = [(item.prompt, item.text) for item in public[:PROBES]]
        if before is not None and not np.array_equal(before.backbone.features(probe), backbone.features(probe)):
            before = None
    trainer = PrivateGlobalTrainer(installation, backbone, public, before)
    training = trainer.train(sources, GLOBAL_OPTIONS, stages)
    _put_out(installation, training.model, public, stages, carry, staged, on_carried)
    trainer.settle(training)
    return training


def _is_tuned(model: PreferenceModel, backbone: str) -> bool:
    """Whether its encoder is `backbone`, tuned, and computes as trainings on people do. A private training on top of a
    tuned one says so again."""
    training = model.card["training"]
    same = training.get("backbone") == backbone and model.backbone.precision == "float32"
    return same and bool(training.get("tuned"))


def _public_texts(installation: Installation, tenant: str) -> Sequence[Item]:
    declared = installation.store.shared_data(tenant, public_only=True).items
    return declared if len(declared) >= MIN_TEXTS else load_sample(sample_folder()).items


def _check_staged(installation: Installation, staged: bool) -> None:
    if staged and installation.store.live_global() is None:
        raise ConflictError(
            "no global model is live, so there is nothing to try a staged one against.", mend="Leave --staged out."
        )


def _put_out(
    installation: Installation,
    model: PreferenceModel,
    anchors: Sequence[Item],
    stages: Stages,
    carry: bool,
    staged: bool,
    on_carried: Callable[[CarryReport], None],
) -> None:
    """The old model keeps serving until its adapters have been written anew."""
    carrier = Carrier(installation, model, anchors)
    if staged:
        on_carried(_stage(installation, carrier, model, stages, "training of the global model", carry=carry))
        return
    waiting, report = carrier.stage(stages.stage("carrying adapters")) if carry else ([], CarryReport())
    installation.share_model(model.digest)
    installation.store.set_global(
        model.digest, installation.clock.now(), reason="training of the global model", actor="trainer"
    )
    carrier.make_live(waiting)
    on_carried(report)


def _stage(
    installation: Installation,
    carrier: Carrier,
    model: PreferenceModel,
    stages: Stages,
    reason: str,
    *,
    carry: bool = True,
) -> CarryReport:
    """Adapters first, the word that the model can be rolled out last. Again only what is missing is carried."""
    store = installation.store
    live = store.live_global()
    if live is None or live == model.digest:
        raise ConflictError(f"global model {model.digest[:12]} is live already.", mend="Train on other data.")
    passage, report = None, CarryReport()
    if carry:
        passage = carrier.passage_from(live)
        _, report = carrier.stage(stages.stage("carrying adapters"), missing=True)
    installation.share_model(model.digest)
    base, data = (None, None) if passage is None else (live, passage.to_bytes())
    store.stage_model(StagedModel(model.digest, base, data, installation.clock.now(), reason, ACTOR))
    return report


def _before(installation: Installation) -> PreferenceModel | None:
    """The model that is live now, if it is intact: a damaged one must not keep a new one from being trained."""
    try:
        return installation.load_live_model()
    except (NotFoundError, CorruptArtifactError):
        return None


def carry_adapters(installation: Installation, tenant: str, stages: Stages, to: str | None = None) -> CarryReport:
    """Carry what is still bound to older models to the live one; or `to` another, which is staged thereby. The tenant's
    public data give the anchors; the adapters are those of all tenants, since the global model is everybody's."""
    model = installation.load_live_model() if to is None else _model_to_stage(installation, to)
    items = installation.store.shared_data(tenant, public_only=True).items
    if not items:
        raise InvalidInputError(
            f"tenant {tenant!r} has no data set that was declared public.",
            mend="Name the tenant whose data the global model was trained on (--tenant).",
        )
    carrier = Carrier(installation, model, items)
    if to is not None:
        return _stage(installation, carrier, model, stages, "carrying to a model that is to be rolled out")
    waiting, report = carrier.stage(stages.stage("carrying adapters"))
    carrier.make_live(waiting)
    return report


def _model_to_stage(installation: Installation, digest: str) -> PreferenceModel:
    """Raises NotFoundError for one that was never here, CorruptArtifactError."""
    staged = installation.store.staged_model(digest)
    known = digest if staged is None else staged.digest
    if staged is None and known not in installation.store.referenced_models():
        raise NotFoundError(
            f"there is no global model {digest[:80]!r}.", mend="Train one: idiolect train global --staged."
        )
    return installation.load_model(known)


def open_trainer(installation: Installation) -> Trainer:
    """A trainer on the live global model."""
    model = installation.load_live_model()
    return Trainer(installation, model, FeatureCache(model, max_bytes=installation.settings.feature_cache_bytes))
