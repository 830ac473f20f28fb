"""Rotating and withdrawing signing keys, also while other processes run and when a file is damaged."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from idiolect.errors import ConfigurationError, ConflictError, CorruptArtifactError, NotFoundError
from idiolect_services.signing_keys import SigningKeys, check_key_id


@pytest.fixture
def keys(tmp_path: Path) -> SigningKeys:
    return SigningKeys(tmp_path / "secrets")


def test_what_an_earlier_key_signed_still_verifies(keys: SigningKeys) -> None:
    before = keys.signer()
    signature = before.sign(b"manifest")
    old, new = keys.rotate()
    after = keys.signer()
    assert (before.key_id, after.key_id) == (old, new)
    after.verify(old, signature, b"manifest", what="v1")
    with pytest.raises(CorruptArtifactError):
        after.verify(new, signature, b"manifest", what="v1")


def test_a_running_process_trusts_a_key_that_was_rotated_in_after_it_started(keys: SigningKeys) -> None:
    running = keys.signer()
    for _ in range(2):
        keys.rotate()
    fresh = keys.signer()
    assert fresh.key_id != running.key_id
    running.verify(fresh.key_id, fresh.sign(b"m"), b"m", what="v1")
    with pytest.raises(CorruptArtifactError):
        running.verify(fresh.key_id, fresh.sign(b"m"), b"n", what="v1")


def test_a_withdrawn_key_is_trusted_no_more(keys: SigningKeys) -> None:
    before = keys.signer()
    old, _ = keys.rotate()
    assert keys.withdraw(old)
    assert not keys.withdraw(old)
    with pytest.raises(CorruptArtifactError, match="does not trust") as caught:
        keys.signer().verify(old, before.sign(b"m"), b"m", what="v1")
    assert caught.value.code == "untrusted_key"


def test_the_key_that_signs_is_not_withdrawn(keys: SigningKeys) -> None:
    with pytest.raises(ConflictError, match="rotate-signing"):
        keys.withdraw(keys.signer().key_id)


def test_rotations_at_once_lose_no_key(keys: SigningKeys) -> None:
    first = keys.signer()
    with ThreadPoolExecutor(6) as pool:
        rotated = list(pool.map(lambda _: keys.rotate(), range(12)))
    assert len({new for _, new in rotated}) == 12
    assert len(keys.trusted()) == 12
    keys.signer().verify(first.key_id, first.sign(b"m"), b"m", what="v1")


def test_only_the_owner_may_read_what_is_written(keys: SigningKeys) -> None:
    keys.rotate()
    assert {path.stat().st_mode & 0o077 for path in keys.folder.iterdir() if path.suffix in (".key", ".json")} == {0}
    assert [path.name for path in keys.folder.iterdir() if path.name.startswith(".signing-")] == []


@pytest.mark.parametrize("content", ["", "{", "3", '["zz"]', '["00"]', "[3]", json.dumps(["0" * 63])])
def test_a_damaged_list_is_named_with_the_mend(keys: SigningKeys, content: str) -> None:
    keys.rotate()
    (keys.folder / "signing-trusted.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"signing-trusted\.json") as caught:
        keys.signer()
    assert caught.value.mend


@pytest.mark.parametrize("text", ["", "x", "0" * 15, "G" * 16, "../" * 6])
def test_what_is_no_key_id_is_not_found(text: str) -> None:
    with pytest.raises(NotFoundError):
        check_key_id(text)
