"""Everything that the demo needs before it can serve: data, models and adapters. Each step is skipped if it is done.

A killed demo goes on where it stopped, because each step looks at what is there: imports and releases land whole or not
at all, and a model is a folder named by its digest.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from idiolect.errors import BudgetExceededError
from idiolect.stores.ports import ImportOptions
from idiolect_adapters.preference import PreferenceModel, load_model, read_card
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_services.datasets import import_dataset, read_dataset
from idiolect_services.demo.showcase import Showcase, choose_showcase
from idiolect_services.trainer import Trainer
from idiolect_services.training_runs import GLOBAL_OPTIONS, Stages, train_global_model
from idiolect_services.wiring import Installation

TENANT = "demo"
STATE_FILE = "demo.json"


@dataclass(frozen=True, slots=True)
class DemoSource:
    kind: str  # an import format
    path: Path

    def fingerprint(self, backbone: str) -> dict[str, Any]:
        """Changes when the data or what is asked for changes; cheap, so that a second start is fast."""
        files = sorted(path for path in self.path.glob("*") if path.is_file())
        stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return {"kind": self.kind, "path": str(self.path), "files": stamps, "backbone": backbone}


@dataclass(frozen=True, slots=True)
class Prepared:
    model: PreferenceModel
    showcase: Showcase
    reused: bool


def prepare(installation: Installation, source: DemoSource, stages: Stages) -> Prepared:
    """Raises what the steps raise; calling it again goes on from there."""
    fingerprint = source.fingerprint(installation.settings.backbone)
    done = _reusable(installation, fingerprint)
    if done is not None:
        return done
    dataset = read_dataset(source.kind, source.path, stages.stage(f"reading {source.kind}"))
    options = ImportOptions(public=True, opt_in=True)
    import_dataset(installation, TENANT, dataset, options, stages.stage("storing"))
    model = _global_model(installation, stages)
    features = FeatureCache(model, max_bytes=installation.settings.feature_cache_bytes)
    _train_adapters(installation, Trainer(installation, model, features), stages)
    showcase = choose_showcase(installation, model, features, TENANT, dataset)
    _write_state(installation.root / STATE_FILE, fingerprint, model.digest, showcase)
    return Prepared(model, showcase, reused=False)


def _reusable(installation: Installation, fingerprint: dict[str, Any]) -> Prepared | None:
    """What an earlier run finished, if it is complete, unchanged, and its two people still have their adapters."""
    try:
        state = json.loads((installation.root / STATE_FILE).read_text())
        showcase = Showcase.from_json(state["showcase"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    digest = installation.store.live_global()
    if state.get("fingerprint") != fingerprint or digest is None or state.get("model") != digest:
        return None
    subjects = [installation.pseudonym(TENANT, user) for user in showcase.users]
    if any(installation.store.resolve(TENANT, subject, showcase.domain).user is None for subject in subjects):
        return None
    return Prepared(load_model(installation.models, digest), showcase, reused=True)


def _global_model(installation: Installation, stages: Stages) -> PreferenceModel:
    """The live model if it was trained on exactly this data in this way, else a new one."""
    digest = installation.store.live_global()
    datasets = {info.name: info.digest for info in installation.store.datasets(TENANT) if info.public}
    if digest is not None and (installation.models / digest).is_dir():
        training = read_card(installation.models, digest)["training"]
        made_from = (training["datasets"], training["options"], training["backbone"])
        if made_from == (datasets, asdict(GLOBAL_OPTIONS), installation.settings.backbone):
            return load_model(installation.models, digest)
    return train_global_model(installation, TENANT, stages)


def _train_adapters(installation: Installation, trainer: Trainer, stages: Stages) -> None:
    """What is missing. Many killed or changed starts may have spent a budget: then it stays missing, as answers say."""
    store = installation.store
    domains = [name for name in store.domains(TENANT) if store.contributors(TENANT, name)]
    progress = stages.stage("domain adapters")
    for done, domain in enumerate(domains):
        if store.resolve(TENANT, None, domain).domain is None:
            with suppress(BudgetExceededError):
                trainer.train_domain(TENANT, domain)
        progress(done + 1, len(domains))
    missing = [person for person in store.trainable(TENANT) if _never_trained(installation, person)]
    if missing:
        with suppress(BudgetExceededError):
            trainer.train_users(TENANT, missing, stages.stage("user adapters"))


def _never_trained(installation: Installation, person: str) -> bool:
    """People who were reset are left in peace: only their own new feedback trains them again."""
    state = installation.store.subject(TENANT, person)
    return state.generation == 0 and installation.store.resolve(TENANT, person, None).user is None


def _write_state(path: Path, fingerprint: dict[str, Any], model: str, showcase: Showcase) -> None:
    state = {"fingerprint": fingerprint, "model": model, "showcase": showcase.to_json()}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".demo-")
    with os.fdopen(handle, "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
