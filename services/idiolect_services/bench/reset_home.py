"""An installation over Postgres whose people get a new, random adapter whenever they are asked to have one.

Learning is not what is measured, so the adapters are drawn instead of trained: each has weights that no other has.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from idiolect.consent import ConsentChange
from idiolect.ids import new_id, sha256_hex
from idiolect.privacy.budget import statement_for
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.weights import dump_weights
from idiolect.settings import Settings, load_settings
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_adapters.evaluation.random_model import random_model
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.bank import HEAD_B, HEAD_LORA
from idiolect_services.wiring import Installation

TENANT, DOMAIN = "bench", "bench"
QUERY = "How do I get my order replaced?"
DOCUMENTS = tuple(f"Answer {number}: write to us within {number} days." for number in range(5))


DATABASE, KEYS = "resets", "resets_keys"


def replica_settings(home: Path, database_url: str, redis_url: str | None) -> Settings:
    """The key store is a second database on the same server, as for servers on several machines."""
    return load_settings(home=home, database_url=database_url, keys_url=keys_url_of(database_url), redis_url=redis_url)


def replica_name(index: int) -> str:
    """What Postgres calls the connections of the server with this index."""
    return f"idiolect-{index}"


def keys_url_of(database_url: str) -> str:
    return database_url.replace(f"/{DATABASE}?", f"/{KEYS}?")


class People:
    """Who is served, in the tenant TENANT."""

    def __init__(self, installation: Installation, number: int, model: PreferenceModel | None = None) -> None:
        self._installation = installation
        self._store = installation.store
        self._now = installation.clock.now
        self._model = model or random_model(installation.models)
        self._random = np.random.default_rng(0)
        self.users = tuple(f"person-{index}" for index in range(number))

    def settle(self) -> str:
        """The model is live, and everybody has opted in. A key that may rank, give feedback and reset."""
        self._store.create_tenant(TENANT, self._now())
        self._store.set_global(self._model.digest, self._now(), reason="benchmark", actor="benchmark")
        for user in self.users:
            self._store.change_subject(TENANT, self._subject(user), ConsentChange(opted_in=True), self._now())
        secret = new_secret()
        self._store.create_key(TENANT, [Scope.INFER, Scope.FEEDBACK, Scope.CONTROLS], hash_secret(secret), self._now())
        return secret

    def draw(self, user: str, generation: int) -> tuple[ReleaseTemplate, Version]:
        template = _template(self._model, self._installation)
        return template, self._version(template, self._subject(user), generation)

    def publish(self, template: ReleaseTemplate, version: Version) -> None:
        """Idempotent. Raises UnavailableError."""
        self._store.publish(version.release, template, [version], self._now(), reason="benchmark", actor="benchmark")

    def _version(self, template: ReleaseTemplate, subject: str, generation: int) -> Version:
        weights_1_K = self._random.standard_normal((1, self._model.user_rank)).astype(np.float32)
        data = dump_weights({HEAD_B: weights_1_K})
        version = Version(
            id=new_id(),
            release=new_id(),
            subject=subject,
            domain="",
            generation=generation,
            parent=None,
            weights=data,
            weights_sha256=sha256_hex(data),
            key_id=self._installation.signer.key_id,
        )
        signature = self._installation.signer.sign(manifest_bytes(template, version))
        return replace(version, signature=signature)

    def _subject(self, user: str) -> str:
        return self._installation.pseudonym(TENANT, user)


def _template(model: PreferenceModel, installation: Installation) -> ReleaseTemplate:
    return ReleaseTemplate(
        tenant=TENANT,
        scope="user",
        global_digest=model.digest,
        basis_digest=model.user_basis_digest,
        kind=HEAD_LORA,
        rank=model.user_rank,
        alpha=float(model.user_rank),
        targets=("head",),
        tensors=(TensorSpec(HEAD_B, (1, model.user_rank)),),
        privacy=statement_for("comparison", GaussianEvent(2.0, 20), 1.0, 1e-5),
        data_window="benchmark",
        producer="benchmark",
        run=new_id(),
        created_at=installation.clock.now(),
    )
