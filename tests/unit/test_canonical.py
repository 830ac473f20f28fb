"""One value, one byte string; and nothing ambiguous is read."""

from __future__ import annotations

from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from idiolect.canonical import canonical_json, parse_json_object
from idiolect.errors import CorruptArtifactError

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(texts, values, max_size=5))
def test_canonical_json_is_read_back_as_the_same_value_and_is_stable(value: dict[str, Any]) -> None:
    data = canonical_json(value)
    again = parse_json_object(data, what="it")
    assert again == value
    assert canonical_json(again) == data
    assert canonical_json(dict(reversed(value.items()))) == data


ascii_texts = st.text(st.characters(codec="ascii"), max_size=10)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | ascii_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ascii_texts, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(texts | ascii_texts, values | plain_values, max_size=5))
def test_what_the_standard_library_writes_is_what_the_reference_writes(value: dict[str, Any]) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


def test_the_form_is_that_of_rfc_8785() -> None:
    value = {"b": [1.0, 1e21, 0.1, -0.0, 1e-7], "a": "€\n", "\u20ac": None, "\r": True}
    assert canonical_json(value).decode() == '{"\\r":true,"a":"€\\n","b":[1,1e+21,0.1,0,1e-7],"€":null}'


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        2**53 + 1,
        -(2**60),
        {1: 2},
        object(),
        b"bytes",
        {1, 2},
        "\ud800",
        {"\ud800": 1},
    ],
)
def test_what_json_can_not_say_exactly_is_refused(value: Any) -> None:
    with pytest.raises(CorruptArtifactError, match="no canonical JSON"):
        canonical_json({"a": [value]})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"text"',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":1}x',
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_plain_object_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="the card"):
        parse_json_object(data, what="the card")
