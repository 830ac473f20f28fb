"""A small installation for tests: a real store, a real signer, and a model that is a plain function of the text."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from idiolect.clock import SystemClock
from idiolect.consent import ConsentChange
from idiolect.ids import new_id, pseudonym, sha256_hex
from idiolect.privacy.budget import statement_for
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.signing import Signer
from idiolect.registry.weights import dump_weights
from idiolect.settings import Settings
from idiolect.stores.blobs import FileBlobs
from idiolect.stores.ports import StoredVersion
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_adapters.runtime.bank import HEAD_B, AdapterBank, Owner
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_services.gateway import GatewayServices, create_app
from idiolect_services.live import LiveScorer
from idiolect_services.scorer import Scorer
from idiolect_services.vault import Vault
from people_keys import open_with_keys

K, M = 8, 4


class HashModel:
    """Features drawn from the text's own hash: deterministic, and independent of the batch."""

    digest = "a" * 64
    user_rank = K
    domain_rank = M
    user_basis_digest = "b" * 64
    domain_basis_digest = "c" * 64
    temperature = 1.5

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.calls.append(list(pairs))
        return np.array([self.row(*pair) for pair in pairs]).reshape(len(pairs), 1 + K + M)

    @staticmethod
    def row(prompt: str, text: str) -> list[float]:
        seed = hashlib.sha256(f"{prompt}\x00{text}".encode()).digest()
        return np.random.default_rng(list(seed)).standard_normal(1 + K + M).tolist()


def template_for(tenant: str, scope: str, model: HashModel, clock: SystemClock, /, **changes: Any) -> ReleaseTemplate:
    user = scope == "user"
    rank = K if user else M
    unit = "comparison" if user else "subject"
    template = ReleaseTemplate(
        tenant=tenant,
        scope=scope,  # type: ignore[arg-type]
        global_digest=model.digest,
        basis_digest=model.user_basis_digest if user else model.domain_basis_digest,
        kind="head_lora",
        rank=rank,
        alpha=float(rank),
        targets=("head",),
        tensors=(TensorSpec(HEAD_B, (1, rank)),),
        privacy=statement_for(unit, GaussianEvent(2.0, 10), 1.0, 1e-5),  # type: ignore[arg-type]
        data_window="test",
        producer="test",
        run=new_id(),
        created_at=clock.now(),
    )
    return replace(template, **changes)


def signed_version(template: ReleaseTemplate, signer: Signer, weights: Sequence[float], **fields: Any) -> Version:
    data = dump_weights({HEAD_B: np.array([weights], dtype=np.float32)})
    base: dict[str, Any] = {
        "id": new_id(),
        "release": new_id(),
        "subject": "",
        "domain": "",
        "generation": 0,
        "parent": None,
    }
    version = Version(**base | fields, weights=data, weights_sha256=sha256_hex(data), key_id=signer.key_id)
    return replace(version, signature=signer.sign(manifest_bytes(template, version)))


@dataclass
class World:
    """`key(...)` makes API keys, `api` sends requests, `publish_user` and `publish_domain` play the trainer."""

    root: Path
    settings: Settings
    store: Any = None
    model: HashModel = field(default_factory=HashModel)
    engine: Any = None  # of a real model, to serve LoRAs of inner layers on
    clock: SystemClock = field(default_factory=SystemClock)
    signer: Signer = field(default_factory=lambda: Signer(b"\x07" * 32))
    fed_back: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = self.store or open_with_keys(f"sqlite:///{self.root / 'x.db'}", lock_timeout_s=5.0)
        self.blobs = FileBlobs(self.root / "blobs")
        self.store.keep_blobs(self.blobs)
        self.features = FeatureCache(
            self.model,
            max_bytes=self.settings.feature_cache_bytes,
            project_stacked=None if self.engine is None else self.engine.project,
        )
        self.bank = AdapterBank(
            self.model,
            self.whole,
            self.signer,
            max_adapters=1_000,  # tests build hundreds of worlds
            engine=self.engine,
            lora_bytes=self.settings.lora_cache_bytes,
            remembers=1_000,
        )
        self.scorer = Scorer(self.store, self.features, self.bank)
        self.live = LiveScorer(self.scorer)
        for tenant in ("acme", "other"):
            self.store.create_tenant(tenant, self.clock.now())
        self.store.set_global(self.model.digest, self.clock.now(), reason="test", actor="test")
        self.app = self.make_app()

    def whole(self, tenant: str, version_id: str) -> StoredVersion | None:
        stored = self.store.version(tenant, version_id)
        return None if stored is None else self.store.with_weights(stored)

    def named(self, scope: str, name: str, tenant: str = "acme") -> tuple[Owner, ResolvedVersion]:
        """What is live for a domain or a person."""
        owner = Owner(tenant, scope, self.pseudonym(tenant, name) if scope == "user" else name)  # type: ignore[arg-type]
        found = self.store.resolve(tenant, owner.name if scope == "user" else None, name if scope == "domain" else None)
        return owner, found.user if scope == "user" else found.domain

    def make_app(self, **changes: Any) -> FastAPI:
        services = GatewayServices(
            store=self.store,
            live=self.live,
            settings=self.settings,
            signer=self.signer,
            clock=self.clock,
            pseudonym=self.pseudonym,
            on_feedback=lambda tenant, subject: self.fed_back.append((tenant, subject)),
            vault=Vault(b"\x02" * 32),
        )
        return create_app(replace(services, **changes))

    def close(self) -> None:
        self.app.state.gateway.close()
        self.store.close()

    def pseudonym(self, tenant: str, user: str) -> str:
        return pseudonym(hmac.digest(b"\x01" * 32, tenant.encode(), "sha256"), user)

    def key(self, tenant: str = "acme", *scopes: Scope) -> str:
        secret = new_secret()
        self.store.create_key(tenant, scopes or list(Scope), hash_secret(secret), self.clock.now())
        return secret

    def opt_in(self, user: str, tenant: str = "acme", **change: Any) -> None:
        change = {"opted_in": True, **change}
        self.store.change_subject(tenant, self.pseudonym(tenant, user), ConsentChange(**change), self.clock.now())

    def damage(self, column: str, value: str) -> None:
        """Of the versions whose `column` is `value`: the last bit of what a disk holds of a person's sealed weights."""
        with self.store._database.engine.begin() as connection:
            found = connection.exec_driver_sql(f"SELECT id, sealed FROM versions WHERE {column} = ?", (value,)).all()
            assert found
            for version, sealed in found:
                spoilt = sealed[:-1] + bytes([sealed[-1] ^ 1])
                connection.exec_driver_sql("UPDATE versions SET sealed = ? WHERE id = ?", (spoilt, version))

    def publish_user(
        self, user: str, weights: Sequence[float] | None = None, tenant: str = "acme", **changes: Any
    ) -> Version:
        subject = self.pseudonym(tenant, user)
        generation = self.store.subject(tenant, subject).generation
        template = template_for(tenant, "user", self.model, self.clock, **changes)
        values = some_weights(user, K) if weights is None else weights
        version = signed_version(template, self.signer, values, subject=subject, generation=generation)
        self.store.publish(version.release, template, [version], self.clock.now(), reason="test", actor="test")
        return version

    def publish_domain(self, domain: str, tenant: str = "acme", **changes: Any) -> Version:
        template = template_for(tenant, "domain", self.model, self.clock, **changes)
        version = signed_version(template, self.signer, some_weights(domain, M), domain=domain)
        self.store.publish(version.release, template, [version], self.clock.now(), reason="test", actor="test")
        return version

    def api(self, key: str | None = None, app: FastAPI | None = None) -> Api:
        return Api(app or self.app, key)


class Api:
    """A synchronous client straight into the app."""

    def __init__(self, app: FastAPI, key: str | None) -> None:
        self._app = app
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._send(method, path, **options))

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        given = options.pop("headers", {})
        headers = given if isinstance(given, list) else list(given.items())  # a list may hold a name twice
        names = {name.lower() for name, _ in headers}
        headers = [*((name, value) for name, value in self._headers.items() if name.lower() not in names), *headers]
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.send("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.send("POST", path, **({"json": body} if body is not None else {}), **options)

    def put(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.send("PUT", path, json=body, **options)

    def raw(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        named = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.send("POST", path, content=content, headers=named)

    def rerank(self, user: str | None = None, **fields: Any) -> dict[str, Any]:
        body = {"query": "q", "documents": DOCUMENTS, **({"user": user} if user else {}), **fields}
        response = self.post("/v1/rerank", body)
        assert response.status_code == 200, response.text
        return dict(response.json())


DOCUMENTS = [f"document {index}" for index in range(10)]


def some_weights(name: str, size: int) -> list[float]:
    seed = list(hashlib.sha256(name.encode()).digest())
    return np.random.default_rng(seed).standard_normal(size).tolist()


def scores(response: Mapping[str, Any]) -> dict[int, float]:
    return {result["index"]: result["score"] for result in response["results"]}


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The response is a complete RFC 9457 problem with this status and code."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.content)
    assert problem["status"] == status
    assert problem["code"] == code, problem
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["mend"]
    return dict(problem)


@contextmanager
def world_at(root: Path, **settings: Any) -> Iterator[World]:
    world = World(root, Settings(home=root, **settings))
    try:
        yield world
    finally:
        world.close()
