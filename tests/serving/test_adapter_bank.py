from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving_world import HashModel, K, signed_version, some_weights, template_for

from idiolect.clock import SystemClock
from idiolect.errors import CorruptArtifactError, IdiolectError, NotFoundError, UnavailableError
from idiolect.registry.manifest import TensorSpec, Version, manifest_bytes
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.signing import Signer
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.runtime.bank import BREAK_SECONDS, HEAD_B, AdapterBank, Owner, away_for

MODEL, SIGNER, CLOCK = HashModel(), Signer(b"\x07" * 32), SystemClock()
ANN = Owner("acme", "user", "ann")


class Shelf:
    """A registry in a dictionary, which counts how often it was asked."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], StoredVersion] = {}
        self.loads = 0

    def load(self, tenant: str, version_id: str) -> StoredVersion | None:
        self.loads += 1
        return self.stored.get((tenant, version_id))

    def add(self, owner: Owner = ANN, weights: list[float] | None = None, **changes: Any) -> ResolvedVersion:
        template = template_for(owner.tenant, owner.scope, MODEL, CLOCK, **changes)
        name = {"subject": owner.name} if owner.scope == "user" else {"domain": owner.name}
        size = K if owner.scope == "user" else MODEL.domain_rank
        version = signed_version(template, SIGNER, weights or some_weights(owner.name, size), **name)
        return self.put(StoredVersion(template, version, False), owner.tenant)

    def put(self, stored: StoredVersion, tenant: str = "acme") -> ResolvedVersion:
        self.stored[tenant, stored.version.id] = stored
        version = stored.version
        return ResolvedVersion(version.id, version.release, version.weights_sha256, version.generation)

    def bank(self, **options: Any) -> AdapterBank:
        return AdapterBank(MODEL, self.load, SIGNER, **options)


def test_weights_are_loaded_once_scaled_and_read_only() -> None:
    shelf = Shelf()
    wanted = shelf.add(weights=[1.0] * K, alpha=4.0)
    bank = shelf.bank()
    weights = bank.weights(ANN, wanted)
    assert np.array_equal(weights, np.full(K, 4.0 / K))
    assert np.array_equal(bank.weights(ANN, wanted), weights)
    assert shelf.loads == 1
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 1.0


def tampered(stored: StoredVersion) -> StoredVersion:
    data = bytearray(stored.version.weights)
    data[-1] ^= 1
    return replace(stored, version=replace(stored.version, weights=bytes(data)))


def resigned(stored: StoredVersion, signer: Signer = SIGNER, **fields: Any) -> StoredVersion:
    version: Version = replace(stored.version, **fields)
    message = manifest_bytes(stored.template, version)
    return replace(stored, version=replace(version, signature=signer.sign(message), key_id=signer.key_id))


def test_changed_weights_are_refused_every_time() -> None:
    shelf = Shelf()
    wanted = shelf.add()
    shelf.put(tampered(shelf.stored["acme", wanted.id]))
    bank = shelf.bank()
    for _ in range(2):
        with pytest.raises(CorruptArtifactError, match="digest"):
            bank.weights(ANN, wanted)
    assert (bank.stats().refused, bank.stats().entries) == (2, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"global_digest": "f" * 64}, "another global model"),
        ({"basis_digest": "f" * 64}, "another basis"),
        ({"kind": "full"}, "kind|served is"),
        ({"rank": K + 1}, "rank"),
        ({"alpha": float("1e999")}, "JSON|finite"),
        ({"tensors": (TensorSpec("other", (1, K)),)}, "declared"),
        ({"tensors": (TensorSpec(HEAD_B, (1, K), max_norm=0.1),)}, "norm"),
        ({"tenant": "other"}, "not the one that was resolved"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    shelf = Shelf()
    with pytest.raises(CorruptArtifactError, match=reason):
        shelf.bank().weights(ANN, shelf.add(**changes))


def test_an_adapter_of_another_person_is_refused_even_with_a_good_signature() -> None:
    shelf = Shelf()
    wanted = shelf.add(Owner("acme", "user", "bob"))
    with pytest.raises(CorruptArtifactError, match="not the one that was resolved"):
        shelf.bank().weights(ANN, wanted)


def test_an_adapter_in_memory_is_not_handed_to_another_owner() -> None:
    shelf = Shelf()
    wanted = shelf.add()
    bank = shelf.bank()
    bank.weights(ANN, wanted)
    for owner in (Owner("acme", "user", "bob"), Owner("other", "user", "ann"), Owner("acme", "domain", "ann")):
        with pytest.raises(CorruptArtifactError, match="another owner"):
            bank.weights(owner, wanted)


def test_a_version_of_another_generation_or_digest_than_resolved_is_refused() -> None:
    shelf = Shelf()
    wanted = shelf.add()
    bank = shelf.bank()
    bank.weights(ANN, wanted)
    for other in (replace(wanted, generation=1), replace(wanted, weights_sha256="0" * 64)):
        with pytest.raises(CorruptArtifactError):
            bank.weights(ANN, other)


def test_a_signature_of_an_unknown_key_is_refused() -> None:
    shelf = Shelf()
    wanted = shelf.add()
    shelf.put(resigned(shelf.stored["acme", wanted.id], Signer(b"\x08" * 32)))
    with pytest.raises(CorruptArtifactError, match="does not trust"):
        shelf.bank().weights(ANN, wanted)


def test_an_erased_version_is_not_found_and_a_store_that_is_down_says_so() -> None:
    shelf = Shelf()
    wanted = shelf.add()
    shelf.stored.clear()
    with pytest.raises(NotFoundError):
        shelf.bank().weights(ANN, wanted)

    def down(tenant: str, version_id: str) -> StoredVersion | None:
        raise UnavailableError("down.")

    with pytest.raises(UnavailableError):
        AdapterBank(MODEL, down, SIGNER).weights(ANN, wanted)


def test_the_bank_is_bounded_and_drops_the_least_recently_used() -> None:
    shelf = Shelf()
    people = [Owner("acme", "user", name) for name in ("ann", "bob", "cid")]
    wanted = [shelf.add(owner) for owner in people]
    bank = shelf.bank(max_adapters=2, host_bytes=0)
    for index in (0, 1, 0, 2):
        bank.weights(people[index], wanted[index])
    assert shelf.loads == 3
    bank.weights(people[0], wanted[0])
    assert shelf.loads == 3
    bank.weights(people[1], wanted[1])
    assert shelf.loads == 4
    assert bank.stats().entries == 2
    bank.check_integrity()


def test_purging_a_person_leaves_everyone_else() -> None:
    shelf = Shelf()
    owners = [ANN, Owner("acme", "user", "bob"), Owner("other", "user", "ann"), Owner("acme", "domain", "ann")]
    wanted = [shelf.add(owner) for owner in owners]
    bank = shelf.bank()
    for owner, version in zip(owners, wanted, strict=True):
        bank.weights(owner, version)
    assert bank.purge("acme", "ann") == 1
    assert bank.stats().entries == 3
    loads = shelf.loads
    for owner, version in zip(owners[1:], wanted[1:], strict=True):
        bank.weights(owner, version)
    assert shelf.loads == loads


class SlowShelf(Shelf):
    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = threading.Event(), threading.Event()

    def load(self, tenant: str, version_id: str) -> StoredVersion | None:
        self.entered.set()
        assert self.release.wait(10)
        return super().load(tenant, version_id)


def test_many_threads_that_want_one_version_load_it_once() -> None:
    shelf = SlowShelf()
    wanted = shelf.add()
    bank = shelf.bank()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(bank.weights, ANN, wanted) for _ in range(8)]
        assert shelf.entered.wait(10)
        shelf.release.set()
        results = [future.result(10) for future in asked]
    assert shelf.loads == 1
    assert all(np.array_equal(weights, results[0]) for weights in results)


def test_a_load_that_was_under_way_does_not_bring_a_purged_person_back() -> None:
    shelf = SlowShelf()
    wanted = shelf.add()
    bank = shelf.bank()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(bank.weights, ANN, wanted)
        assert shelf.entered.wait(10)
        bank.purge("acme", "ann")
        shelf.release.set()
        late.result(10)
    assert bank.stats().entries == 0


def test_damaged_memory_is_noticed() -> None:
    shelf = Shelf()
    bank = shelf.bank()
    wanted = shelf.add()
    with bank.lease(ANN, wanted) as leased:
        assert leased is not None
        bank.check_integrity()
        leased.slab.rows_S_K[leased.slot] = np.nan
    with pytest.raises(IdiolectError, match="damaged"):
        bank.check_integrity()


def test_loads_ahead_of_need_give_way_but_never_for_long() -> None:
    assert away_for(0.0) == BREAK_SECONDS
    assert away_for(0.005) > away_for(0.0)
    assert away_for(3600.0) == away_for(60.0) < 0.2
