"""Names, digests and pseudonyms."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import InvalidInputError
from idiolect.ids import (
    SUBJECT_ID_MAX_CHARS,
    check_name,
    check_subject_id,
    new_id,
    pseudonym,
    sha256_hex,
    text_digest,
)

KEY = b"\x01" * 32


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one) for one in ids)


@pytest.mark.parametrize("name", ["a", "0", "support-chat", "a.b_c-d", "x" * 64])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name("domain", name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "A", "ä", "a b", "-a", "a-", ".a", "a.", "a..b", "../a", "a/b", "a\\b", "a\x00", "a\n", "x" * 65, "a%2e"],
)
def test_names_that_could_mean_a_path_or_anything_else_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"domain .* not a valid name"):
        check_name("domain", name)


def test_an_endless_name_is_not_repeated_in_the_error() -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_name("tenant", "x" * 1_000_000)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("subject", ["u1", "ann@example.com", "用户", "x" * SUBJECT_ID_MAX_CHARS, "a b"])
def test_a_tenants_own_ids_are_taken_as_they_are(subject: str) -> None:
    assert check_subject_id(subject) == subject


@pytest.mark.parametrize(
    "subject", ["", "x" * (SUBJECT_ID_MAX_CHARS + 1), "a\nb", "a\x00", "\ud800", "a\u200b", "\x7f"]
)
def test_ids_that_can_not_be_printed_are_refused(subject: str) -> None:
    with pytest.raises(InvalidInputError, match="user id"):
        check_subject_id(subject)
    with pytest.raises(InvalidInputError, match="user id"):
        pseudonym(KEY, subject)


def test_a_pseudonym_depends_on_the_key_and_the_whole_id_and_shows_neither() -> None:
    names = {pseudonym(KEY, "ann"), pseudonym(KEY, "Ann"), pseudonym(KEY, "ann "), pseudonym(b"\x02" * 32, "ann")}
    assert len(names) == 4
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in names)
    assert pseudonym(KEY, "ann") == pseudonym(KEY, "ann")
    assert sha256_hex(b"ann")[:32] not in names


@given(st.text())
def test_every_text_has_a_digest_of_its_bytes(text: str) -> None:
    assert text_digest(text) == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def test_half_characters_have_digests_of_their_own() -> None:
    assert len({text_digest("\ud800"), text_digest("\ud801"), text_digest("?"), text_digest("")}) == 4
