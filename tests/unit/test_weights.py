"""Weights from anywhere: exactly what was declared, or CorruptArtifactError, and never anything else."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.errors import CorruptArtifactError
from idiolect.registry.manifest import TensorSpec
from idiolect.registry.weights import INLINE_MAX_BYTES, bytes_of, check_weights, dump_weights, load_weights, shared_head

SPEC = TensorSpec("head.lora_B.weight", (1, 4))
SPECS = [SPEC]
VALUES = np.array([[0.5, -1.0, 2.0, 0.0]], np.float32)


def raw(header: object, body: bytes = VALUES.tobytes(), *, length: int | None = None) -> bytes:
    """A safetensors file as written by somebody careless or hostile."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]} | changes


def test_what_was_dumped_is_loaded_bit_for_bit() -> None:
    loaded = load_weights(dump_weights({SPEC.name: VALUES}), SPECS)
    assert list(loaded) == [SPEC.name]
    assert loaded[SPEC.name].tobytes() == VALUES.tobytes()


def test_the_handwritten_file_of_these_tests_is_valid_before_it_is_broken() -> None:
    assert np.array_equal(load_weights(raw({SPEC.name: entry()}), SPECS)[SPEC.name], VALUES)


def test_any_layout_of_memory_is_dumped_as_its_values() -> None:
    transposed = np.arange(4, dtype=np.float64).reshape(4, 1).T
    assert np.array_equal(load_weights(dump_weights({SPEC.name: transposed}), SPECS)[SPEC.name], transposed)


@pytest.mark.parametrize(
    "data",
    [
        *[b"\x00" * count for count in range(9)],
        *[b"\xff" * count for count in range(1, 12)],
        raw({SPEC.name: entry()}, length=2**64 - 1),
        raw({SPEC.name: entry()}, length=2**63),
        raw({SPEC.name: entry()}, length=100_000_001),
        raw({SPEC.name: entry()}, length=0),
        raw({SPEC.name: entry()}, length=1),
        raw({SPEC.name: entry()}, b""),
        raw({SPEC.name: entry()}, VALUES.tobytes()[:-1]),
        raw({SPEC.name: entry()}, VALUES.tobytes() + b"\x00"),
        raw(b"\xff\xfe\xfd"),
        raw(b'{"\xff": 1}'),
        raw(b"{"),
        raw(b"[]"),
        raw(b"null"),
        raw(b"{}"),
        raw(b"{}", b""),
        raw(b'{"a":' * 5000),
        raw(f'{{"{SPEC.name}": {json.dumps(entry())}, "{SPEC.name}": {json.dumps(entry())}}}'.encode()),
        raw({SPEC.name: entry(), "extra": entry(data_offsets=[16, 32])}, VALUES.tobytes() * 2),
        raw({SPEC.name: entry(), "alias": entry()}),
        raw({"other": entry()}),
        raw({SPEC.name: entry(dtype="F64", shape=[1, 2])}),
        raw({SPEC.name: entry(dtype="I32")}),
        raw({SPEC.name: entry(dtype="F16", shape=[1, 8])}),
        raw({SPEC.name: entry(dtype="BF16", shape=[1, 8])}),
        raw({SPEC.name: entry(dtype="F8_E4M3", shape=[1, 16])}),
        raw({SPEC.name: entry(dtype="F8_E8M0", shape=[1, 16])}),
        raw({SPEC.name: entry(dtype="F4", shape=[1, 32])}),
        raw({SPEC.name: entry(dtype="C64", shape=[1, 2])}),
        raw({SPEC.name: entry(dtype="BOOL", shape=[1, 16])}),
        raw({SPEC.name: entry(dtype="object")}),
        raw({SPEC.name: entry(dtype=7)}),
        raw({SPEC.name: entry(shape=[4])}),
        raw({SPEC.name: entry(shape=[4, 1])}),
        raw({SPEC.name: entry(shape=[1, 1, 4])}),
        raw({SPEC.name: entry(shape=[])}, b"\x00" * 4),
        raw({SPEC.name: entry(shape=[0, 4], data_offsets=[0, 0])}, b""),
        raw({SPEC.name: entry(shape=[2**32, 2**32])}),
        raw({SPEC.name: entry(shape=[-1, -4])}),
        raw({SPEC.name: entry(shape="1,4")}),
        raw({SPEC.name: entry(data_offsets=[16, 0])}),
        raw({SPEC.name: entry(data_offsets=[0, 2**63])}),
        raw({SPEC.name: entry(data_offsets=[8, 24])}),
        raw({SPEC.name: entry(data_offsets=[0])}),
        raw({SPEC.name: {}}),
        raw({SPEC.name: None}),
        raw({"__metadata__": {"path": 3}, SPEC.name: entry()}),
        raw({"__metadata__": {"path": "/etc/passwd"}, SPEC.name: entry()}),
        raw({SPEC.name: entry(url="http://localhost/")}),
        b"\x80\x04\x95pickle",
        b"PK\x03\x04" + b"\x00" * 60,
    ],
)
def test_what_is_no_file_of_exactly_these_tensors_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError):
        load_weights(data, SPECS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    weights = VALUES.copy()
    weights[0, 2] = value
    with pytest.raises(CorruptArtifactError, match=r"head\.lora_B\.weight.*not finite"):
        load_weights(dump_weights({SPEC.name: weights}), SPECS)


def test_a_norm_over_the_declared_bound_is_refused() -> None:
    on_the_bound = np.array([[600.0, 800.0, 0.0, 0.0]], np.float32)
    load_weights(dump_weights({SPEC.name: on_the_bound}), SPECS)
    for factor in (1.001, 1e30, 4e35):
        with pytest.raises(CorruptArtifactError, match=r"norm .* over its bound of 1000"):
            load_weights(dump_weights({SPEC.name: on_the_bound * np.float32(factor)}), SPECS)


def test_the_size_limit_is_checked_before_anything_is_parsed() -> None:
    limit = bytes_of(SPECS)
    with pytest.raises(CorruptArtifactError, match=f"{limit + 1} bytes"):
        load_weights(b"\x00" * (limit + 1), SPECS)
    rank = (INLINE_MAX_BYTES - 80) // 4
    wide = TensorSpec("B", (1, rank))
    data = dump_weights({"B": np.zeros((1, rank), np.float32)})
    assert len(data) <= INLINE_MAX_BYTES
    assert load_weights(data, [wide])["B"].shape == (1, rank)


def test_several_declared_tensors_must_all_be_there() -> None:
    specs = [TensorSpec("A", (2, 3)), TensorSpec("B", (1,))]
    full = {"A": np.ones((2, 3), np.float32), "B": np.zeros(1, np.float32)}
    assert set(load_weights(dump_weights(full), specs)) == {"A", "B"}
    with pytest.raises(CorruptArtifactError, match="lack the tensor 'B', one of 2"):
        load_weights(dump_weights({"A": full["A"]}), specs)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError):
        load_weights(data, SPECS)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_is_refused_or_still_holds_what_is_declared(data: st.DataObject) -> None:
    """Some flips only change a value; those are the digest's business. Nothing else may come through or be raised."""
    good = bytearray(dump_weights({SPEC.name: VALUES}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(len(good) // 2, len(good)))])
    try:
        loaded = load_weights(cut, SPECS)
    except CorruptArtifactError:
        return
    assert list(loaded) == [SPEC.name]
    assert loaded[SPEC.name].shape == (1, 4)
    assert loaded[SPEC.name].dtype == np.float32
    assert np.isfinite(loaded[SPEC.name]).all()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, json_values)
@settings(max_examples=300, deadline=None)
def test_any_json_for_a_header_is_refused_or_right(header: object, part: object) -> None:
    for made in (header, {SPEC.name: header}, {SPEC.name: entry(shape=part)}, {SPEC.name: entry(data_offsets=part)}):
        try:
            loaded = load_weights(raw(json.dumps(made).encode("utf-8", "replace")), SPECS)
        except CorruptArtifactError:
            continue
        assert loaded[SPEC.name].tobytes() == VALUES.tobytes()


# Many at once, against one at a time

TWO = [TensorSpec("B", (2, 2), max_norm=2.0), TensorSpec("C", (1, 3), max_norm=1.0)]
GOOD = dump_weights({"B": np.full((2, 2), 0.5), "C": np.zeros((1, 3))})
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.floats(-1.25, 1.25, width=32)


def two(numbers: list[float]) -> bytes:
    return dump_weights({"B": np.array(numbers[:4]).reshape(2, 2), "C": np.array([numbers[4:]])})


def odd_files() -> st.SearchStrategy[bytes]:
    swapped = raw(
        {"C": entry(shape=[1, 3], data_offsets=[0, 12]), "B": entry(shape=[2, 2], data_offsets=[12, 28])}, b"\0" * 28
    )
    others = [
        b"",
        GOOD[:-4],
        GOOD + b"\0",
        GOOD.replace(b"F32", b"I32"),
        dump_weights({"B": np.zeros((2, 2))}),
        swapped,
    ]
    return st.lists(NUMBERS, min_size=7, max_size=7).map(two) | st.sampled_from([GOOD, *others])


def refusal(check: Callable[[], object]) -> str | None:
    try:
        check()
    except CorruptArtifactError as error:
        return error.message
    return None


@settings(max_examples=300, deadline=None)
@given(st.lists(odd_files(), max_size=6))
def test_checking_many_files_refuses_what_loading_one_after_the_other_refuses(files: list[bytes]) -> None:
    one_by_one = refusal(lambda: [load_weights(data, TWO) for data in files])
    assert refusal(lambda: check_weights(files, TWO)) == one_by_one


@pytest.mark.parametrize("factor", [1 - 1e-6, 1 - 1e-10, 1.0, 1 + 1e-6])
def test_a_norm_at_its_very_bound_is_judged_as_it_is_alone(factor: float) -> None:
    at_bound = dump_weights({"B": np.full((2, 2), factor), "C": np.zeros((1, 3))})
    alone = refusal(lambda: load_weights(at_bound, TWO))
    assert refusal(lambda: check_weights([GOOD, at_bound], TWO)) == alone
    assert (alone is not None) == (factor > 1)


def test_more_files_than_are_looked_at_together_are_all_checked() -> None:
    many = [GOOD] * 20_000
    check_weights(many, TWO)
    with pytest.raises(CorruptArtifactError, match="finite"):
        check_weights([*many, two([np.nan] + [0.0] * 6)], TWO)


def test_files_without_numbers_are_checked_too() -> None:
    check_weights([], TWO)
    nothing = dump_weights({"B": np.zeros((0, 2))})
    check_weights([nothing] * 3, [TensorSpec("B", (0, 2))])


# What many begin with


def test_files_of_one_training_begin_alike_up_to_their_numbers() -> None:
    files = [two([float(number) / 10] * 7) for number in range(3)]
    head = shared_head(files, TWO)
    assert [len(data) - len(head) for data in files] == [28] * 3
    assert all(data.startswith(head) for data in files)


@pytest.mark.parametrize(
    "files",
    [
        [],
        [b""],
        [b"\0" * 40],
        [b"\xff" * 40],
        [GOOD, b""],
        [GOOD, dump_weights({"B": np.zeros((2, 2))})],
        [raw(b"[]")],
        [raw({SPEC.name: 7})],
        [raw({SPEC.name: ["dtype", "shape", "data_offsets"]})],
        [raw({SPEC.name: entry(note="of ann")})],
        [raw({SPEC.name: entry(data_offsets="of ann")})],
        [raw({SPEC.name: entry(data_offsets=[0, "of ann"])})],
        [raw({SPEC.name: entry(), "__metadata__": {"of": "ann"}})],
        [raw({"of ann": entry()})],
    ],
)
def test_whatever_else_files_begin_with_is_not_taken_for_their_head(files: list[bytes]) -> None:
    for specs in (SPECS, TWO, TWO[:1]):
        assert shared_head(files, specs) == b""
