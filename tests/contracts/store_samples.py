"""Small values that the contract tests store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection

from idiolect.consent import ConsentChange
from idiolect.ids import text_digest
from idiolect.privacy.budget import PrivacyStatement
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version
from idiolect.registry.weights import dump_weights
from idiolect.signals.comparison import Comparison, Item, PreferenceDataset, Rating
from idiolect.signals.events import DerivedComparison, Inference
from idiolect.stores.ports import FeedbackSignal, ImportOptions, PublishOutcome, Store
from idiolect.stores.sql import SqlStore
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, stand_behind

TENANT = "acme"
GLOBAL = "g" * 64
T0 = datetime(2026, 5, 1, 12, tzinfo=UTC)
EVENT = GaussianEvent(noise_multiplier=2.0, steps=8)  # rho = 1
OPTED_IN = ImportOptions(public=False, opt_in=True)
PUBLIC = ImportOptions(public=True, opt_in=False)


@contextmanager
def tampering(store: SqlStore) -> Iterator[Connection]:
    """A transaction of somebody who reads and changes the database beside the store."""
    with store._database.engine.begin() as connection:
        stand_behind(connection, ALL_TENANTS)
        yield connection


def at(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


def items(count: int = 4, domain: str = "chat", prompt: str = "how?") -> tuple[Item, ...]:
    return tuple(Item(domain, prompt, f"answer {index} to {prompt}") for index in range(count))


def dataset(name: str = "votes", digest: str = "1", **parts: Any) -> PreferenceDataset:
    parts.setdefault("items", items())
    return PreferenceDataset(name=name, digest=digest, **parts)


def pairs(person: str, count: int, **fields: Any) -> tuple[Comparison, ...]:
    """`count` comparisons whose weights are 1, 2, 3...: a weight names its comparison."""
    return tuple(Comparison(person, 0, 1, weight=float(number + 1), **fields) for number in range(count))


def rating(person: str, item: int = 0, value: float = 1.0) -> Rating:
    return Rating(person, item, value)


def opt_in(store: Store, *people: str, minutes: float = 0.0) -> None:
    for person in people:
        store.change_subject(TENANT, person, ConsentChange(opted_in=True), at(minutes))


def shown(
    store: Store,
    inference_id: str = "i1",
    subject: str | None = "ann",
    *,
    texts: Sequence[str] = ("q", "a", "b", "c"),
    domain: str | None = "chat",
    minutes: float = 0.0,
) -> Inference:
    """An inference that showed all but the first of `texts` for the first; recorded."""
    query, *documents = [text_digest(text) for text in texts]
    inference = Inference(
        inference_id, subject, domain, query, tuple(documents), tuple(range(len(documents))), at(minutes)
    )
    store.record_inference(TENANT, inference, texts)
    return inference


def signal(
    signal_id: str, inference: Inference, *derived: tuple[int, int], minutes: float = 0.0, value: Any = 0
) -> FeedbackSignal:
    comparisons = tuple(DerivedComparison(chosen, rejected, 1.0) for chosen, rejected in derived or ((0, 1), (0, 2)))
    return FeedbackSignal(signal_id, inference, "choice", value, at(minutes), comparisons)


def give_feedback(store: Store, subject: str = "ann", number: int = 1, *, minutes: float = 1.0) -> bool:
    """One choice among three documents: two comparisons."""
    inference = shown(store, f"i-{subject}-{number}", subject, minutes=minutes)
    return store.add_feedback(TENANT, subject, signal(f"s-{subject}-{number}", inference, minutes=minutes), at(minutes))


def template(
    scope: Any = "user", *, run: str = "run1", tenant: str = TENANT, global_digest: str = GLOBAL
) -> ReleaseTemplate:
    unit: Any = "comparison" if scope == "user" else "subject"
    return ReleaseTemplate(
        tenant=tenant,
        scope=scope,
        global_digest=global_digest,
        basis_digest="b" * 64,
        kind="head_lora",
        rank=8,
        alpha=8.0,
        targets=("head",),
        tensors=(TensorSpec("B", (1, 8)),),
        privacy=PrivacyStatement(unit, "add or remove one", "gaussian", 2.0, 1e-5, 0.1, 1.0, 1.0, 20, "exact"),
        data_window="all",
        producer="idiolect 0.1.0",
        run=run,
        created_at=T0,
    )


def version(
    version_id: str, release: str, subject: str = "", domain: str = "", *, generation: int = 0, **fields: Any
) -> Version:
    seed = int.from_bytes(hashlib.sha256(version_id.encode()).digest()[:4])
    weights = dump_weights({"B": np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32)})
    values: dict[str, Any] = {
        "parent": None,
        "weights": weights,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "key_id": "k" * 16,
        "signature": b"s" * 64,
    }
    return Version(version_id, release, subject, domain, generation, **values | fields)


def publish_user(
    store: Store, version_id: str, subject: str = "ann", *, generation: int = 0, minutes: float = 0.0, **fields: Any
) -> PublishOutcome:
    """A release of one person's version; its id is the version's with `r-` in front."""
    release = f"r-{version_id}"
    of_person = version(version_id, release, subject, generation=generation)
    return store.publish(release, template(**fields), [of_person], at(minutes), reason="trained", actor="trainer")


def publish_domain(
    store: Store, version_id: str, domain: str = "chat", *, minutes: float = 0.0, **fields: Any
) -> PublishOutcome:
    release = f"r-{version_id}"
    of_domain = version(version_id, release, "", domain)
    shared = template("domain", **fields)
    return store.publish(release, shared, [of_domain], at(minutes), reason="trained", actor="trainer")
