"""A registry of as many people as one likes, which makes each person's signed version when it is asked for it.

So a benchmark measures what the bank keeps, and not what a table of a million rows costs.
"""

from __future__ import annotations

import math
import secrets
import struct
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from idiolect.ids import sha256_hex
from idiolect.privacy.budget import statement_for
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.signing import Signer
from idiolect.registry.weights import dump_weights
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.runtime.bank import HEAD_B, HEAD_LORA, Owner
from idiolect_adapters.runtime.features import Features, Pair

TENANT = "bench"
USER_RANK, DOMAIN_RANK = 12, 16
_ROW = struct.Struct(f"<{USER_RANK}f")
_HEADER = dump_weights({HEAD_B: np.zeros((1, USER_RANK), np.float32)})[: -_ROW.size]


class PlainProjector:
    """The shape of a global model; its features are made up, since they are cached before anything is measured."""

    digest, user_basis_digest, domain_basis_digest = "a" * 64, "b" * 64, "c" * 64
    user_rank, domain_rank, temperature = USER_RANK, DOMAIN_RANK, 1.0

    def project(self, pairs: list[tuple[str, str]]) -> Features:
        return np.random.default_rng(0).standard_normal((len(pairs), 1 + USER_RANK + DOMAIN_RANK))


class SyntheticRegistry:
    """`swap` gives a person a newer version; until then each has version 0."""

    def __init__(self) -> None:
        self.signer = Signer(secrets.token_bytes(32))
        self.template = ReleaseTemplate(
            tenant=TENANT,
            scope="user",
            global_digest=PlainProjector.digest,
            basis_digest=PlainProjector.user_basis_digest,
            kind=HEAD_LORA,
            rank=USER_RANK,
            alpha=float(USER_RANK),
            targets=("head",),
            tensors=(TensorSpec(HEAD_B, (1, USER_RANK)),),
            privacy=statement_for("comparison", GaussianEvent(2.0, 20), 1.0, 1e-5),
            data_window="bench",
            producer="bench",
            run="bench",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        self._numbers: dict[int, int] = {}

    def swap(self, person: int) -> StoredVersion:
        self._numbers[person] = self._numbers.get(person, 0) + 1
        return self.stored(person)

    def stored(self, person: int) -> StoredVersion:
        return self._stored(person, self._number(person))

    def _number(self, person: int) -> int:
        return self._numbers.get(person, 0)

    def _stored(self, person: int, number: int) -> StoredVersion:
        """Every version stays what it was, also while the person gets a newer one in another thread."""
        data = _weights(person, number)
        version = Version(
            id=_id(person, number),
            release="bench",
            subject=owner_of(person).name,
            domain="",
            generation=0,
            parent=None,
            weights=data,
            weights_sha256=sha256_hex(data),
            key_id=self.signer.key_id,
        )
        signature = self.signer.sign(manifest_bytes(self.template, version))
        return StoredVersion(self.template, replace(version, signature=signature), False)

    def load(self, _tenant: str, version_id: str) -> StoredVersion:
        return self._stored(int(version_id[8:28]), int(version_id[28:]))

    def resolve(self, person: int) -> ResolvedVersion:
        """What a resolve would name; its digest is that of the weights."""
        number = self._number(person)
        return ResolvedVersion(_id(person, number), "bench", sha256_hex(_weights(person, number)), 0)


def _id(person: int, number: int) -> str:
    """As long as real ones are: memory is measured."""
    return f"version-{person:020d}{number:08d}"


def _weights(person: int, number: int) -> bytes:
    """Made without numpy, which would let other threads go on: the benchmark would then measure what this costs."""
    return _HEADER + _ROW.pack(*(math.cos(index + person + 0.1 * number) for index in range(USER_RANK)))


def owner_of(person: int) -> Owner:
    return Owner(TENANT, "user", f"{person:032x}")


def pairs_of(texts: int) -> tuple[Pair, ...]:
    from idiolect_adapters.runtime.features import digested

    query = digested("How do I get my order replaced?")
    return tuple((query, digested(f"Answer {number}")) for number in range(texts))
