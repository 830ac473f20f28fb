"""Weights that are too large for a row: in a blob, read back whole, and gone with the last version that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashes import Crash
from store_samples import GLOBAL, TENANT, at, opt_in, template

from idiolect.consent import ConsentChange
from idiolect.errors import ConfigurationError, CorruptArtifactError, NotFoundError, TooLargeError, UnavailableError
from idiolect.ids import sha256_hex
from idiolect.registry.lora_layout import LoadProof, LoraLayout, LoraTarget
from idiolect.registry.manifest import LORA, NO_BASIS, ReleaseTemplate, TensorSpec, Version
from idiolect.registry.signing import Signer
from idiolect.registry.weights import INLINE_MAX_BYTES, dump_weights, load_weights
from idiolect.resets.plan import plan_reset
from idiolect.resets.receipt import ResetRecord, signed_receipt
from idiolect.stores.blobs import FileBlobs
from idiolect.stores.ports import PublishOutcome, StoredVersion
from idiolect.stores.sql import SqlStore, arriving

PROOF = LoadProof(GLOBAL, 1e-4, (1, 2, 3), "d" * 64)
RANK, WIDTH = 16, 600
SPECS = (TensorSpec("a.lora_A.weight", (RANK, WIDTH)), TensorSpec("a.lora_B.weight", (WIDTH, RANK)))


class Blobs:
    """Files, with a hook before chosen calls."""

    def __init__(self, folder: Path) -> None:
        self.files = FileBlobs(folder)
        self.before: dict[str, Callable[[], None]] = {}

    def __getattr__(self, name: str) -> Any:
        self.before.pop(name, lambda: None)()
        return getattr(self.files, name)

    @property
    def digests(self) -> set[str]:
        return {info.digest for info in self.files.walk()}


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def ready(store: SqlStore, blobs: Blobs) -> SqlStore:
    store.keep_blobs(blobs)  # type: ignore[arg-type]
    opt_in(store, "ann", "bob")
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    return store


def lora(scope: Any = "user", **changes: Any) -> ReleaseTemplate:
    layout = LoraLayout((LoraTarget("a", RANK, 8.0),), False, (), PROOF, PROOF)
    return replace(
        template(scope),
        basis_digest=NO_BASIS,
        kind=LORA,
        rank=RANK,
        alpha=float(RANK),
        targets=("a",),
        tensors=SPECS,
        privacy=None,
        lora=layout,
        **changes,
    )


def weights(seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    return dump_weights({spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in SPECS})


def large(version_id: str, subject: str = "", domain: str = "", seed: int = 0) -> Version:
    data = weights(seed)
    return Version(
        version_id, f"r-{version_id}", subject, domain, 0, None, data, sha256_hex(data), {}, "k" * 16, b"s" * 64
    )


def publish(store: SqlStore, version: Version, tenant: str = TENANT) -> None:
    scope = "user" if version.subject else "domain"
    store.publish(version.release, lora(scope, tenant=tenant), [version], at(0), reason="added", actor="admin")


def whole(store: SqlStore, version_id: str) -> StoredVersion:
    stored = store.version(TENANT, version_id)
    assert stored is not None
    return store.with_weights(stored)


def test_large_weights_lie_in_a_blob_and_come_back_as_they_were(ready: SqlStore, blobs: Blobs) -> None:
    version = large("v1", "ann")
    assert len(version.weights) > INLINE_MAX_BYTES
    publish(ready, version)
    assert blobs.digests == set(ready.named_blobs())
    (digest,) = blobs.digests
    assert digest != version.weights_sha256  # sealed under the person's key
    listed = ready.version(TENANT, "v1")
    assert listed is not None
    assert listed.version.weights == b""
    read = whole(ready, "v1")
    assert read.version == version
    assert read.template == lora()
    assert set(load_weights(read.version.weights, read.template.tensors)) == {spec.name for spec in SPECS}


def test_what_is_no_lora_may_not_be_so_large(ready: SqlStore, blobs: Blobs) -> None:
    with pytest.raises(TooLargeError):
        ready.publish("r-v1", template(), [large("v1", "ann")], at(0), reason="added", actor="admin")
    assert not blobs.digests


def test_without_a_place_for_blobs_nothing_large_is_published(store: SqlStore) -> None:
    opt_in(store, "ann")
    with pytest.raises(ConfigurationError, match="no place for blobs"):
        publish(store, large("v1", "ann"))
    assert store.version(TENANT, "v1") is None


@pytest.mark.parametrize("leaves", ["reset", "opt-out"])
def test_who_leaves_takes_their_blobs_along(ready: SqlStore, blobs: Blobs, leaves: str) -> None:
    publish(ready, large("v2", "bob", seed=2))
    of_bob = blobs.digests
    publish(ready, large("v1", "ann", seed=1))
    of_ann = blobs.files.get(*(blobs.digests - of_bob))
    if leaves == "reset":
        record = ready.apply_reset(TENANT, "ann", "reset-1", plan_reset("adapter"), at(1))
        assert record.erased["blobs"] == 1
    else:
        ready.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(1))
    assert blobs.digests == of_bob
    assert whole(ready, "v2").version == large("v2", "bob", seed=2)
    with pytest.raises(NotFoundError):
        blobs.files.get(sha256_hex(of_ann))


def test_a_blob_from_before_a_reset_can_not_be_read_after_it(ready: SqlStore, blobs: Blobs) -> None:
    """As a thief would: the row and the blob are put back, and only the key is gone."""
    publish(ready, large("v1", "ann"))
    stored = ready.version(TENANT, "v1")
    assert stored is not None
    ready._database.keys().destroy(TENANT, "ann", plan_reset("adapter").ending)
    with pytest.raises(NotFoundError, match="forgotten"):
        ready.with_weights(stored)


def test_a_release_that_is_published_again_leaves_no_blob_behind(ready: SqlStore, blobs: Blobs) -> None:
    for _ in range(2):
        publish(ready, large("v1", "ann"))
    assert ready.sweep_blobs() == 0
    assert blobs.digests == set(ready.named_blobs())
    assert whole(ready, "v1").version == large("v1", "ann")


@pytest.mark.parametrize("sent_again", [True, False])
def test_a_release_that_is_cut_off_between_batches_leaves_no_blob_that_is_not_known(
    ready: SqlStore, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, sent_again: bool
) -> None:
    """Both are put before the first batch. What no version named yet is found by its age, as after any crash."""
    both = [replace(large(f"v-{person}", person), release="r") for person in ("ann", "bob")]

    def send() -> PublishOutcome:
        return ready.publish("r", lora(), both, at(0), reason="added", actor="admin")

    monkeypatch.setattr(arriving, "BATCH", 1)
    with monkeypatch.context() as patched:
        patched.setattr(arriving, "live_of", lambda _connection, _tenant, batch: die(batch[0].subject == "bob"))
        with pytest.raises(Crash):
            send()
    [of_ann] = ready.named_blobs()
    [of_bob] = blobs.digests - {of_ann}
    if sent_again:
        assert send() == PublishOutcome(2, ())
        assert ready.sweep_blobs() == 0
        assert blobs.digests == {of_bob, *ready.named_blobs()}
        assert of_ann in ready.named_blobs()
        assert [whole(ready, one.id).version for one in both] == both
    else:
        assert ready.collect(TENANT, at(1), at(1), actor="admin").versions == 1
        assert blobs.digests == {of_bob}


def die(now: bool) -> dict[Any, Any]:
    if now:
        raise Crash
    return {}


def test_a_blob_that_others_name_stays_for_them(ready: SqlStore, blobs: Blobs) -> None:
    """Also where the other one is of another tenant: weights are stored once."""
    publish(ready, large("v1", "ann"))
    publish(ready, large("v2", domain="chat"), tenant="other")
    ready.apply_reset(TENANT, "ann", "reset-1", plan_reset("adapter"), at(1))
    assert blobs.digests == {large("v2").weights_sha256}
    assert ready.sweep_blobs() == 0
    assert blobs.digests == {large("v2").weights_sha256}


def test_a_blob_store_that_is_away_during_a_reset_is_swept_later(ready: SqlStore, blobs: Blobs) -> None:
    publish(ready, large("v1", "ann"))

    def away() -> None:
        raise UnavailableError("down.")

    blobs.before["get"] = away
    record = ready.apply_reset(TENANT, "ann", "reset-1", plan_reset("all"), at(1))
    assert ready.version(TENANT, "v1") is None
    assert len(blobs.digests) == 1
    assert steps_of(ready, record)["erase_adapters"] == "pending"
    assert ready.sweep_blobs() == 0
    assert not blobs.digests
    assert steps_of(ready, record)["erase_adapters"] == "done"


def steps_of(store: SqlStore, record: ResetRecord) -> dict[str, str]:
    """As the receipt says it now."""
    receipt = signed_receipt(record, Signer(b"\x07" * 32), blobs_left=store.blobs_left(record.completed_at))
    return {step["step"]: step["state"] for step in receipt["steps"]}


def test_who_publishes_the_same_weights_during_a_sweep_finds_them(ready: SqlStore, blobs: Blobs) -> None:
    publish(ready, large("v1", "ann"))
    blobs.before["delete"] = lambda: publish(ready, large("v2", "bob"))  # named just before it is deleted
    ready.apply_reset(TENANT, "ann", "reset-1", plan_reset("adapter"), at(1))
    assert whole(ready, "v2").version.weights == weights()


def test_a_blob_that_was_swept_between_put_and_publish_is_put_again(ready: SqlStore, blobs: Blobs) -> None:
    digest = large("v1").weights_sha256
    blobs.before["get"] = lambda: blobs.files.delete(digest)
    publish(ready, large("v1", "ann"))
    assert whole(ready, "v1").version.weights == weights()


def test_whoever_was_fenced_leaves_no_blob(ready: SqlStore, blobs: Blobs) -> None:
    ready.apply_reset(TENANT, "ann", "reset-1", plan_reset("adapter"), at(1))
    publish(ready, large("v1", "ann"))
    assert ready.version(TENANT, "v1") is None
    ready.sweep_blobs()
    assert not blobs.digests


def test_collecting_garbage_takes_the_blobs_along(ready: SqlStore, blobs: Blobs) -> None:
    for number in range(3):
        publish(ready, large(f"v{number}", domain="chat", seed=number))
    ready.revoke_release(TENANT, "r-v0", at(1), reason="bad", actor="admin")
    later = at(0) + timedelta(days=60)
    assert ready.collect(TENANT, later - timedelta(days=30), later, actor="admin").versions == 1
    assert blobs.digests == {large("x", seed=number).weights_sha256 for number in (1, 2)}


def test_a_blob_that_is_gone_or_damaged_is_said_and_nothing_else_is(ready: SqlStore, blobs: Blobs) -> None:
    publish(ready, large("v1", "ann"))
    path = next(path for path in blobs.files.root.rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match="changed or damaged") as caught:
        whole(ready, "v1")
    assert caught.value.code == "corrupt_artifact"
    path.unlink()
    with pytest.raises(CorruptArtifactError, match="are not where blobs lie") as caught:
        whole(ready, "v1")
    assert caught.value.code == "weights_missing"
    with pytest.raises(NotFoundError):
        blobs.get("f" * 64)
