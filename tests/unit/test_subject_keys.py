"""Keys of people: what they seal opens only where it was sealed, and only with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import ConfigurationError, CorruptArtifactError
from idiolect.resets.plan import ResetPlan, plan_erasure, plan_reset
from idiolect.subject_keys import (
    ADAPTERS,
    SubjectKey,
    _bound,
    key_id_of,
    new_tenant_key,
    signals_in,
    unwrap_tenant_key,
    wrap_tenant_key,
)

TENANT_KEY = new_tenant_key("acme")
KEY = TENANT_KEY.new_subject_key("ann", ADAPTERS)
SEALED = KEY.seal("version", b"v1", b"weights")
WRAPPING = bytes(range(32))

Change = Callable[[SubjectKey], SubjectKey]


def test_what_was_sealed_opens_with_its_key() -> None:
    assert KEY.open("version", b"v1", SEALED) == b"weights"
    assert key_id_of(SEALED) == KEY.id
    assert b"weights" not in SEALED


def test_the_same_value_never_looks_the_same() -> None:
    assert KEY.seal("version", b"v1", b"weights") != SEALED


@pytest.mark.parametrize(
    "change",
    [
        lambda key: replace(key, tenant="other"),
        lambda key: replace(key, subject="bob"),
        lambda key: replace(key, scope=signals_in("chat")),
        lambda key: replace(key, secret=bytes(64)),
        lambda key: replace(key, id=bytes(16)),
    ],
    ids=["tenant", "subject", "scope", "secret", "id"],
)
def test_a_value_is_bound_to_all_that_its_key_says(change: Change) -> None:
    with pytest.raises(CorruptArtifactError):
        change(KEY).open("version", b"v1", SEALED)


def test_a_value_is_bound_to_its_row_and_kind() -> None:
    for kind, row in (("version", b"v2"), ("signal", b"v1")):
        with pytest.raises(CorruptArtifactError):
            KEY.open(kind, row, SEALED)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", range(0, len(SEALED), 5))
def test_a_changed_byte_is_noticed(place: int) -> None:
    changed = bytearray(SEALED)
    changed[place] ^= 1
    with pytest.raises(CorruptArtifactError):
        KEY.open("version", b"v1", bytes(changed))


@pytest.mark.parametrize("sealed", [b"", b"\x01", SEALED[:-1], SEALED[:20], SEALED + b"x"])
def test_what_is_no_sealed_value_is_refused(sealed: bytes) -> None:
    with pytest.raises(CorruptArtifactError):
        KEY.open("version", b"v1", sealed)


def test_new_keys_have_ids_in_the_order_of_their_making_that_never_repeat() -> None:
    ids = [TENANT_KEY.new_subject_key("ann", ADAPTERS).id for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert {len(one) for one in ids} == {16}


def test_sealing_and_references_use_keys_of_their_own() -> None:
    nonce, bound = SEALED[17:29], b'["sealed", "acme", "ann", "adapters"]\nversion\nv1'
    for wrong in (KEY.secret, hashlib.blake2b(key=KEY.secret, person=b"references", digest_size=32).digest()):
        with pytest.raises(InvalidTag):
            AESGCM(wrong).decrypt(nonce, SEALED[29:], bound)
    assert KEY.reference(b"digest") != hashlib.blake2b(b"digest", key=KEY.secret, digest_size=32).digest()


def test_a_key_of_before_with_a_secret_of_two_halves_goes_on() -> None:
    """One half sealed, the other made references."""
    old = replace(KEY, secret=bytes(range(64)))
    nonce, bound = bytes(12), b'["sealed", "acme", "ann", "adapters"]\nversion\nv1'
    stored = b"\x01" + old.id + nonce + AESGCM(bytes(range(32))).encrypt(nonce, b"weights", bound)
    assert old.open("version", b"v1", stored) == b"weights"
    assert old.open("version", b"v1", old.seal("version", b"v1", b"new")) == b"new"
    expected = hashlib.blake2b(b"digest", key=bytes(range(32, 64)), digest_size=32).digest()
    assert old.reference(b"digest") == expected
    assert TENANT_KEY.unwrap("ann", ADAPTERS, old.id, TENANT_KEY.wrap(old)) == old


def test_references_differ_between_people_and_stay_the_same_for_one() -> None:
    other = TENANT_KEY.new_subject_key("bob", ADAPTERS)
    assert KEY.reference(b"digest") == KEY.reference(b"digest") != other.reference(b"digest")
    assert KEY.reference(b"digest") != KEY.reference(b"other")
    assert len(KEY.reference(b"digest")) == 32


def test_references_that_are_made_together_are_those_of_each() -> None:
    digests = [b"one", b"two", b"one"]
    assert KEY.references(digests) == [KEY.reference(digest) for digest in digests]
    assert KEY.references([]) == []


@given(st.lists(st.text(max_size=20), max_size=4))
def test_what_a_value_is_bound_to_is_written_as_json_always_was(names: list[str]) -> None:
    assert _bound(*names) == json.dumps(names).encode()


def test_a_wrapped_key_opens_only_for_its_person() -> None:
    wrapped = TENANT_KEY.wrap(KEY)
    assert KEY.secret not in wrapped
    assert TENANT_KEY.unwrap("ann", ADAPTERS, KEY.id, wrapped) == KEY
    for subject, scope, id_ in (("bob", ADAPTERS, KEY.id), ("ann", "x", KEY.id), ("ann", ADAPTERS, bytes(16))):
        with pytest.raises(ConfigurationError):
            TENANT_KEY.unwrap(subject, scope, id_, wrapped)
    with pytest.raises(ConfigurationError):
        new_tenant_key("acme").unwrap("ann", ADAPTERS, KEY.id, wrapped)


def test_a_wrapped_tenant_key_opens_only_for_its_tenant() -> None:
    wrapped = wrap_tenant_key(TENANT_KEY, WRAPPING)
    assert unwrap_tenant_key("acme", wrapped, WRAPPING) == TENANT_KEY
    for tenant, wrapping in (("other", WRAPPING), ("acme", bytes(32))):
        with pytest.raises(ConfigurationError):
            unwrap_tenant_key(tenant, wrapped, wrapping)


def test_no_secret_shows_in_what_is_printed() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
    assert repr(TENANT_KEY.secret) not in repr(TENANT_KEY)


CHAT, MAIL, NOWHERE = signals_in("chat"), signals_in("mail"), signals_in(None)


@pytest.mark.parametrize(
    ("plan", "ended"),
    [
        (plan_reset("adapter"), {ADAPTERS}),
        (plan_reset("feedback"), {ADAPTERS, CHAT, MAIL, NOWHERE}),
        (plan_reset("all"), {ADAPTERS, CHAT, MAIL, NOWHERE}),
        (plan_erasure(), {ADAPTERS, CHAT, MAIL, NOWHERE}),
        (plan_reset("feedback", "chat"), {ADAPTERS, CHAT}),
        (plan_reset("all", "mail"), {ADAPTERS, MAIL}),
    ],
    ids=["adapter", "feedback", "all", "erasure", "feedback of a domain", "all of a domain"],
)
def test_a_reset_ends_the_keys_of_what_it_forgets(plan: ResetPlan, ended: set[str]) -> None:
    assert {scope for scope in (ADAPTERS, CHAT, MAIL, NOWHERE) if plan.ending.ends(scope)} == ended
