from __future__ import annotations

import pytest

from idiolect.errors import ConfigurationError
from idiolect_services.vault import Vault

VAULT = Vault(b"\x05" * 32)


def test_what_was_sealed_opens_and_the_same_secret_never_looks_the_same() -> None:
    first, second = (VAULT.seal("acme", "key", "sk-secret") for _ in range(2))
    assert first != second
    assert b"secret" not in first
    assert VAULT.open("acme", "key", first) == VAULT.open("acme", "key", second) == "sk-secret"


def test_it_opens_for_nobody_else() -> None:
    sealed = VAULT.seal("acme", "key", "sk-secret")
    for vault, tenant, purpose in (
        (VAULT, "other", "key"),
        (VAULT, "acme", "token"),
        (VAULT, "acm", "ekey"),
        (Vault(b"\x06" * 32), "acme", "key"),
    ):
        with pytest.raises(ConfigurationError, match="does not open") as refused:
            vault.open(tenant, purpose, sealed)
        assert refused.value.mend


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\x01" * 12, b"\x02" + b"\x00" * 40])
def test_a_damaged_seal_does_not_open(damage: bytes) -> None:
    with pytest.raises(ConfigurationError):
        VAULT.open("acme", "key", damage)


def test_every_single_bit_counts() -> None:
    sealed = VAULT.seal("acme", "key", "s")
    for index in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[index] ^= 1
        with pytest.raises(ConfigurationError):
            VAULT.open("acme", "key", bytes(flipped))


def test_derived_keys_differ_by_tenant_and_purpose_and_stay() -> None:
    assert len({VAULT.derive(tenant, purpose) for tenant in "ab" for purpose in "cd"}) == 4
    assert VAULT.derive("a", "c") == Vault(b"\x05" * 32).derive("a", "c")
    assert "05" not in repr(VAULT)
