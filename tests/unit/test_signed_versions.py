"""Signing many versions: each can be verified afterwards, and what would be refused at load is not signed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.registry import signed as signed_module
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.signed import signed_versions
from idiolect.registry.signing import Signer
from idiolect.registry.weights import dump_weights, verify_version

SIGNER = Signer(b"\x01" * 32)
TEMPLATE = ReleaseTemplate(
    tenant="acme",
    scope="user",
    global_digest="a" * 64,
    basis_digest="b" * 64,
    kind="head_lora",
    rank=2,
    alpha=2.0,
    targets=("head",),
    tensors=(TensorSpec("B", (1, 2)),),
    privacy=None,
    data_window="all",
    producer="idiolect 0.1.0",
    run="run-1",
    created_at=datetime(2026, 5, 1, tzinfo=UTC),
)


def unsigned(number: int, value: float = 0.5) -> Version:
    weights = dump_weights({"B": np.array([[value, number]])})
    digest = sha256_hex(weights)
    return Version(f"v{number}", "r1", f"{number:032x}", "", number, None, weights, digest, {"gain": 0.1 * number})


def test_every_version_can_be_verified_and_differs_in_nothing_but_its_signature() -> None:
    versions = [unsigned(number) for number in range(5)]
    signed = signed_versions(TEMPLATE, versions, SIGNER)
    for before, after in zip(versions, signed, strict=True):
        verify_version(TEMPLATE, after, SIGNER)
        assert replace(after, key_id="", signature=b"") == before
        assert after.signature == SIGNER.sign(manifest_bytes(TEMPLATE, before))
    assert signed_versions(TEMPLATE, [], SIGNER) == []
    assert signed_versions(TEMPLATE, iter(versions), SIGNER) == signed


def test_more_versions_than_are_checked_together_are_all_checked_and_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed_module, "_TOGETHER", 2)
    versions = [unsigned(number) for number in range(5)]
    assert [one.id for one in signed_versions(TEMPLATE, versions, SIGNER)] == [one.id for one in versions]
    with pytest.raises(CorruptArtifactError, match="finite"):
        signed_versions(TEMPLATE, [*versions, unsigned(5, float("inf"))], SIGNER)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_that_would_be_refused_at_load_is_not_signed_wherever_it_stands(place: int) -> None:
    versions = [unsigned(number) for number in range(5)]
    bad = unsigned(place, float("nan"))
    with pytest.raises(CorruptArtifactError, match="finite"):
        signed_versions(TEMPLATE, [*versions[:place], bad, *versions[place + 1 :]], SIGNER)
    lying = replace(versions[place], weights=unsigned(9).weights)
    with pytest.raises(CorruptArtifactError, match=f"version v{place} do not match"):
        signed_versions(TEMPLATE, [*versions[:place], lying, *versions[place + 1 :]], SIGNER)


def test_a_signer_whose_signatures_do_not_hold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signer, "sign", lambda *_: bytes(64))
    with pytest.raises(CorruptArtifactError, match="signature"):
        signed_versions(TEMPLATE, [unsigned(1)], SIGNER)
