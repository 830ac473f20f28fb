"""A small installation to serve from: a random model, a few people who opted in, and their published adapters.

What the model says does not matter here, only what it costs to say it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from idiolect.ids import new_id
from idiolect.settings import Settings, load_settings
from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.stores.ports import ImportOptions, no_progress
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_adapters.evaluation.random_model import random_model
from idiolect_services.datasets import import_dataset
from idiolect_services.training_runs import open_trainer
from idiolect_services.wiring import Installation, open_installation

TENANT, DOMAIN, COLLEAGUE = "bench", "bench", "colleague"
USERS = tuple(f"person-{number}" for number in range(8))
QUERY = "How do I get my order replaced?"
DOCUMENTS = tuple(
    f"Answer {number}: write to us within {number} days, and a new one is on its way to you the day after."
    for number in range(10)
)


@dataclass(frozen=True, slots=True)
class BenchHome:
    """`secret` is a key that may rerank."""

    settings: Settings
    secret: str


def home_settings(root: Path) -> Settings:
    """With a database inside `root`, wherever that of the real installation is."""
    return load_settings(home=root, database_url=f"sqlite:///{root.resolve() / 'idiolect.db'}")


def make_home(root: Path) -> BenchHome:
    settings = home_settings(root)
    with open_installation(settings) as installation:
        now = installation.clock.now()
        model = random_model(installation.models)
        installation.store.set_global(model.digest, now, reason="benchmark", actor="benchmark")
        options = ImportOptions(public=True, opt_in=True)
        import_dataset(installation, TENANT, _preferences(), options, no_progress)
        trainer = open_trainer(installation)
        trainer.train_domain(TENANT, DOMAIN)
        trainer.train_users(TENANT)
        return BenchHome(settings, _new_key(installation))


def _new_key(installation: Installation) -> str:
    secret = new_secret()
    installation.store.create_key(TENANT, [Scope.INFER], hash_secret(secret), installation.clock.now())
    return secret


def _preferences() -> PreferenceDataset:
    """A colleague who trains the domain adapter, and the people whose adapters are served."""
    pairs = list(combinations(range(len(DOCUMENTS)), 2))
    return PreferenceDataset(
        name="bench",
        digest=new_id(),
        items=tuple(Item(DOMAIN, QUERY, text) for text in DOCUMENTS),
        comparisons=tuple(Comparison(COLLEAGUE, a, b) for a, b in pairs),
        new_people=frozenset(USERS),
        adaptation=tuple(Comparison(user, a, b) for user in USERS for a, b in pairs),
    )
