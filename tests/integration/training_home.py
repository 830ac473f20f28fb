"""A home with a real store, a tiny global model trained in it, and ways to watch and break what a trainer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from idiolect.ids import text_digest
from idiolect.privacy.events import GaussianEvent
from idiolect.settings import Settings
from idiolect.signals.events import DerivedComparison, Inference
from idiolect.stores.ports import FeedbackSignal, ImportOptions
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache, digested
from idiolect_services import training_runs
from idiolect_services.datasets import import_dataset
from idiolect_services.scorer import Scorer, ScoreRequest, ScoreResult
from idiolect_services.trainer import Trainer
from idiolect_services.wiring import Installation, open_installation
from tasteful_world import World, as_dataset, make_world

TENANT = "acme"
TRAINING, NEW = list(range(20)), list(range(20, 26))
RANK, DOMAIN_RANK = 6, 16  # those of GlobalOptions


class Quiet:
    def stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: None


class RecordedNoise:
    """Zeros; remembers the shapes that were asked for."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return np.zeros(shape)


class WatchedStore:
    """Passes every call on, remembers its name, and calls `before[name](*arguments)` first."""

    def __init__(self, store: Any, before: dict[str, Callable[..., None]] | None = None) -> None:
        self._store = store
        self._before = before or {}
        self.calls: list[str] = []
        self.arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self.arguments[name] = (args, kwargs)
            if name in self._before:
                self._before[name](*args, **kwargs)
            return method(*args, **kwargs)

        return watched


@dataclass
class Home:
    installation: Installation
    model: PreferenceModel
    world: World

    @property
    def store(self) -> Any:
        return self.installation.store

    def person(self, number: int) -> str:
        return self.installation.pseudonym(TENANT, f"person {number}")

    @property
    def new_people(self) -> list[str]:
        return sorted(self.person(number) for number in NEW)

    def features(self) -> FeatureCache:
        return FeatureCache(self.model, max_bytes=1 << 20)

    def trainer(self, *, store: Any = None, noise: Any = None, **settings: Any) -> Trainer:
        installation = replace(
            self.installation,
            store=store or self.store,
            settings=self.installation.settings.model_copy(update=settings),
        )
        return Trainer(installation, self.model, self.features(), noise)

    def spent(self, person: str, unit: Any = "comparison") -> float:
        return float(self.store.account(TENANT, unit, person).spent_rho)

    def overspend(self, person: str, unit: Any = "comparison") -> None:
        self.store.reserve(TENANT, unit, "earlier", GaussianEvent(0.1, 1), [person], 1e9, self.installation.clock.now())

    def live(self, person: str) -> str | None:
        resolved = self.store.resolve(TENANT, person, None).user
        return None if resolved is None else str(resolved.id)

    def scorer(self) -> Scorer:
        store = self.store
        return Scorer(
            store, self.features(), AdapterBank(self.model, store.version, self.installation.signer, max_adapters=1_000)
        )

    def scored(self, scorer: Scorer, person: str | None, **fields: Any) -> ScoreResult:
        pairs = tuple((digested(item.prompt), digested(item.text)) for item in self.world.items[:8])
        return scorer.score(ScoreRequest(TENANT, pairs, subject=person, **fields))

    def say(self, person: str, name: str, *, chosen: int = 1) -> None:
        """One choice among the four candidates of the first prompt: three comparisons."""
        now = self.installation.clock.now()
        items = self.world.items[:4]
        texts = [items[0].prompt, *(item.text for item in items)]
        query, *documents = [text_digest(text) for text in texts]
        inference = Inference(f"i-{name}", person, None, query, tuple(documents), (0, 1, 2, 3), now)
        derived = tuple(DerivedComparison(chosen, other, 1.0) for other in range(4) if other != chosen)
        self.store.record_inference(TENANT, inference, texts)
        self.store.add_feedback(
            TENANT, person, FeedbackSignal(f"s-{name}", inference, "choice", chosen, now, derived), now
        )


def settings_at(root: Path, backbone: Path) -> Settings:
    return Settings(home=root, backbone=str(backbone), retrain_after=3)


def prepare(root: Path, backbone: Path) -> None:
    """Import a public data set and train the global model, as `idiolect train global` does."""
    world = make_world(len(TRAINING) + len(NEW), prompts=8)
    with open_installation(settings_at(root, backbone)) as installation:
        options = ImportOptions(public=True, opt_in=True)
        import_dataset(installation, TENANT, as_dataset(world, TRAINING, NEW), options, lambda *_: None)
        training_runs.train_global_model(installation, TENANT, Quiet())


@contextmanager
def opened(root: Path, backbone: Path) -> Iterator[Home]:
    with open_installation(settings_at(root, backbone)) as installation:
        world = make_world(len(TRAINING) + len(NEW), prompts=8)
        yield Home(installation, installation.load_live_model(), world)
