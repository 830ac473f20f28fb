"""Verified adapter weights in memory.

An entry is found only under its digest, generation and version id, never under a name or a slot, so it can't be stale:
whoever resolves a newer version asks for another key.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError, IdiolectError, NotFoundError
from idiolect.registry.manifest import AdapterScope, ReleaseTemplate
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.signing import Signer
from idiolect.registry.weights import verify_version
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.runtime.features import Projector

HEAD_B = "head.lora_B.weight"  # [1, rank]
HEAD_LORA = "head_lora"

Weights = NDArray[np.float64]  # [rank], alpha / rank included, read-only
LoadVersion = Callable[[str, str], StoredVersion | None]  # (tenant, version id)


class Owner(NamedTuple):
    """Whose adapter it is: `name` is a pseudonym (user scope) or a domain."""

    tenant: str
    scope: AdapterScope
    name: str


class _Key(NamedTuple):
    weights_sha256: str
    generation: int
    version: str


@dataclass(frozen=True, slots=True)
class _Entry:
    owner: Owner
    weights: Weights


@dataclass(frozen=True, slots=True)
class _Flight:
    owner: Owner
    purges: int  # how many purges there had been when it started
    future: Future[_Entry]


@dataclass(frozen=True, slots=True)
class BankStats:
    entries: int
    max_adapters: int
    hits: int
    loads: int
    refused: int
    evictions: int


class AdapterBank:
    """Bounded LRU of head adapters for one global model. Thread-safe; one version is loaded once at a time."""

    def __init__(self, projector: Projector, load: LoadVersion, signer: Signer, *, max_adapters: int = 100_000) -> None:
        self.projector = projector
        self.max_adapters = max_adapters
        self._load = load
        self._signer = signer
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._flights: dict[_Key, _Flight] = {}
        self._purges = 0
        self._lock = threading.Lock()
        self._hits = self._loads = self._refused = self._evictions = 0

    def weights(self, owner: Owner, wanted: ResolvedVersion) -> Weights:
        """The weights [rank] of `wanted`, which a resolve has just named for `owner`.

        Raises CorruptArtifactError if the version does not check out or belongs to someone else, NotFoundError if it
        has been erased, and what the loader raises.
        """
        key = _Key(wanted.weights_sha256, wanted.generation, wanted.id)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                self._hits += 1
            flight = self._flights.get(key)
            ours = entry is None and flight is None
            if ours:
                flight = self._flights[key] = _Flight(owner, self._purges, Future())
        if entry is None:
            assert flight is not None
            entry = self._fly(key, flight, wanted) if ours else flight.future.result()
        if entry.owner != owner:
            raise CorruptArtifactError(f"version {wanted.id} belongs to another owner.", mend="Check the registry.")
        return entry.weights

    def _fly(self, key: _Key, flight: _Flight, wanted: ResolvedVersion) -> _Entry:
        try:
            entry = _Entry(flight.owner, self._verified(flight.owner, wanted))
        except BaseException as error:
            with self._lock:
                del self._flights[key]
                self._refused += isinstance(error, CorruptArtifactError)
            flight.future.set_exception(error)
            raise
        with self._lock:
            del self._flights[key]
            self._loads += 1
            # A purge that came while this was loading must not be undone by it.
            if flight.purges == self._purges:
                self._keep(key, entry)
        flight.future.set_result(entry)
        return entry

    def _keep(self, key: _Key, entry: _Entry) -> None:
        self._entries[key] = entry
        while len(self._entries) > self.max_adapters:
            self._entries.popitem(last=False)
            self._evictions += 1

    def _verified(self, owner: Owner, wanted: ResolvedVersion) -> Weights:
        stored = self._load(owner.tenant, wanted.id)
        if stored is None:
            raise NotFoundError(f"version {wanted.id} does not exist.")
        tensors = verify_version(stored.template, stored.version, self._signer)
        check_belongs(stored, owner, wanted)
        check_fits(stored.template, self.projector)
        tensor = tensors.get(HEAD_B)
        if tensor is None or tensor.shape != (1, stored.template.rank):
            raise CorruptArtifactError(f"version {wanted.id} has no tensor {HEAD_B!r} of shape [1, rank].")
        weights: Weights = tensor[0].astype(np.float64) * (stored.template.alpha / stored.template.rank)
        weights.setflags(write=False)
        return weights

    def purge(self, tenant: str, subject: str) -> int:
        """Drop everything of one person at once; the number of adapters that went."""
        owner = Owner(tenant, "user", subject)
        with self._lock:
            self._purges += 1
            gone = [key for key, entry in self._entries.items() if entry.owner == owner]
            for key in gone:
                del self._entries[key]
        return len(gone)

    def stats(self) -> BankStats:
        with self._lock:
            return BankStats(
                len(self._entries), self.max_adapters, self._hits, self._loads, self._refused, self._evictions
            )

    def check_integrity(self) -> None:
        """Raises if the books don't balance."""
        with self._lock:
            entries = list(self._entries.values())
        ranks = {"user": self.projector.user_rank, "domain": self.projector.domain_rank}
        for entry in entries:
            damaged = len(entry.weights) != ranks[entry.owner.scope] or not np.isfinite(entry.weights).all()
            if damaged or entry.weights.flags.writeable:
                raise IdiolectError("the adapter bank holds damaged weights.", mend="Restart this process.")
        if len(entries) > self.max_adapters:
            raise IdiolectError("the adapter bank is over its bound.", mend="Restart this process.")


def check_belongs(stored: StoredVersion, owner: Owner, wanted: ResolvedVersion) -> None:
    """The stored version is the one that was resolved, and its signed manifest names the same owner."""
    template, version = stored.template, stored.version
    name = version.subject if owner.scope == "user" else version.domain
    found = (template.tenant, template.scope, name, version.id, version.release, version.generation)
    if found != (*owner, wanted.id, wanted.release, wanted.generation):
        raise CorruptArtifactError(f"version {wanted.id} is not the one that was resolved.", mend="Check the registry.")
    if version.weights_sha256 != wanted.weights_sha256:
        raise CorruptArtifactError(f"version {wanted.id} has other weights than were resolved.")


def check_fits(template: ReleaseTemplate, projector: Projector) -> None:
    """The adapter was trained on exactly this model and basis: elsewhere its numbers mean nothing."""
    personal = template.scope == "user"
    if template.global_digest != projector.digest:
        raise CorruptArtifactError("the adapter is bound to another global model.", mend="Train it again.")
    if template.basis_digest != (projector.user_basis_digest if personal else projector.domain_basis_digest):
        raise CorruptArtifactError("the adapter is written in another basis.", mend="Train it again.")
    rank = projector.user_rank if personal else projector.domain_rank
    if template.kind != HEAD_LORA or template.rank != rank:
        raise CorruptArtifactError(
            f"the adapter is {template.kind!r} of rank {template.rank}, served is {HEAD_LORA!r} of rank {rank}."
        )
    if not math.isfinite(template.alpha):
        raise CorruptArtifactError(f"the adapter's alpha {template.alpha!r} is not finite.")
