"""A registry full of people for the registry benchmark, on a real database."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import cycle

import numpy as np

from idiolect.ids import new_id, sha256_hex
from idiolect.privacy.budget import statement_for
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version
from idiolect.registry.signed import signed_versions
from idiolect.registry.signing import Signer
from idiolect.registry.weights import dump_weights
from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.stores.ports import ImportOptions, Store

TENANT, DOMAIN, GLOBAL, RANK = "bench", "chat", "a" * 64, 12
START = datetime(2026, 1, 1, tzinfo=UTC)
_HEAD_B = "head.lora_B.weight"


@dataclass(frozen=True, slots=True)
class Crowd:
    """People who opted in, and a signer for their adapters."""

    store: Store
    people: Sequence[str]
    signer: Signer
    template: ReleaseTemplate

    def publish(self, people: Sequence[str]) -> str:
        """Sign, check and publish a version for each, as one release: what a trainer does after the training."""
        release = new_id()
        versions = (
            _version(release, person, weights) for person, weights in zip(people, cycle(_weights()), strict=False)
        )
        signed = signed_versions(self.template, versions, self.signer)
        self.store.publish(release, self.template, signed, moment(), reason="bench", actor="bench")
        return release


def gather(store: Store, count: int) -> Crowd:
    people = sorted(f"{secrets.randbits(128):032x}" for _ in range(count))  # as a training reads them
    items = (Item(DOMAIN, "how?", "like this"), Item(DOMAIN, "how?", "like that"))
    said = tuple(Comparison(person, 0, 1) for person in people)
    crowd = PreferenceDataset(name="bench", digest="1", items=items, adaptation=said)
    store.create_tenant(TENANT, START)
    store.set_global(GLOBAL, START, reason="bench", actor="bench")
    store.import_dataset(TENANT, crowd, ImportOptions(public=False, opt_in=True), START)
    return Crowd(store, people, Signer(secrets.token_bytes(32)), _template())


def _version(release: str, person: str, weights: bytes) -> Version:
    return Version(
        id=new_id(),
        release=release,
        subject=person,
        domain="",
        generation=0,
        parent=None,
        weights=weights,
        weights_sha256=sha256_hex(weights),
    )


def moment() -> datetime:
    return datetime.now(UTC)


def _template() -> ReleaseTemplate:
    return ReleaseTemplate(
        tenant=TENANT,
        scope="user",
        global_digest=GLOBAL,
        basis_digest="b" * 64,
        kind="head_lora",
        rank=RANK,
        alpha=float(RANK),
        targets=("head",),
        tensors=(TensorSpec(_HEAD_B, (1, RANK)),),
        privacy=statement_for("comparison", GaussianEvent(2.0, 20), 1.0, 1e-5),
        data_window="bench",
        producer="bench",
        run="bench",
        created_at=START,
    )


@cache
def _weights() -> Sequence[bytes]:
    """A thousand different ones, made once: making them is the training's cost, and no registry's."""
    rows = np.random.default_rng(0).normal(size=(1000, 1, RANK)).astype(np.float32)
    return [dump_weights({_HEAD_B: row}) for row in rows]
