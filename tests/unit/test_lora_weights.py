"""LoRA files from anywhere: exactly what was declared and fits the model, or a named refusal."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.errors import CorruptArtifactError, TooLargeError
from idiolect_adapters.lora.spec import MAX_RANK, LinearShape, LoraSpec, uniform_spec
from idiolect_adapters.lora.weights import adapter_from, dump_lora, load_lora, read_tensors, tensors_of

MODEL = {"q": LinearShape(4, 3, True), "deep.v": LinearShape(2, 3, False), "score": LinearShape(1, 3, True)}
SPEC = LoraSpec({"q": 2, "deep.v": 1}, {"q": 4.0, "deep.v": 1.0}, False, ("score",))
TENSORS = {
    "q.lora_A.weight": torch.randn(2, 3),
    "q.lora_B.weight": torch.randn(4, 2),
    "deep.v.lora_A.weight": torch.randn(1, 3),
    "deep.v.lora_B.weight": torch.randn(2, 1),
    "score.weight": torch.randn(1, 3),
    "score.bias": torch.randn(1),
}
DATA = safetensors.torch.save(TENSORS)


def changed(**changes: torch.Tensor | None) -> bytes:
    """Names have `__` for the dot."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return safetensors.torch.save({name: t for name, t in (TENSORS | named).items() if t is not None})


def raw(header: object, body: bytes = bytes(24), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


def test_what_was_dumped_is_loaded_bit_for_bit() -> None:
    adapter = load_lora(DATA, SPEC, MODEL)
    again = tensors_of(load_lora(dump_lora(adapter), SPEC, MODEL))
    assert set(again) == set(TENSORS)
    assert all(torch.equal(again[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32_of_the_same_values(dtype: torch.dtype) -> None:
    half = TENSORS["q.lora_A.weight"].to(dtype)
    loaded = load_lora(changed(q__lora_A__weight=half), SPEC, MODEL).pairs["q"].A_R_I
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, half.float())


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (changed(q__lora_B__weight=None), r"'q\.lora_B\.weight' is missing"),
        (changed(q__lora_A__weight=None), r"'q\.lora_A\.weight' is missing"),
        (changed(score__bias=None), r"'score\.bias' is missing"),
        (changed(q__lora_A__weight=torch.ones(2, 4)), r"'q\.lora_A\.weight' has the shape \[2, 4\]"),
        (changed(q__lora_A__weight=torch.ones(3, 3)), r"'q\.lora_A\.weight' has the shape \[3, 3\]"),
        (changed(q__lora_B__weight=torch.ones(2, 4)), r"'q\.lora_B\.weight' has the shape"),
        (changed(q__lora_A__weight=torch.full((2, 3), torch.nan)), r"'q\.lora_A\.weight' holds .* not finite"),
        (changed(score__bias=torch.tensor([torch.inf])), r"'score\.bias' holds .* not finite"),
        (changed(q__lora_A__weight=torch.ones(2, 3, dtype=torch.float64)), r"'q\.lora_A\.weight' has the dtype 'F64'"),
        (changed(q__lora_A__weight=torch.ones(2, 3, dtype=torch.int8)), r"'q\.lora_A\.weight' has the dtype 'I8'"),
        (changed(extra=torch.ones(1)), "'extra' belongs to no target"),
        (changed(q__weight=torch.ones(4, 3)), "'q.weight' belongs to no target"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_the_tensor(data: bytes, word: str) -> None:
    with pytest.raises(CorruptArtifactError, match=word):
        load_lora(data, SPEC, MODEL)


@pytest.mark.parametrize(
    "data",
    [
        *[b"\x00" * count for count in range(9)],
        *[b"\xff" * count for count in range(1, 12)],
        raw({"a": entry()}, length=2**64 - 1),
        raw({"a": entry()}, length=2**63),
        raw({"a": entry()}, length=0),
        raw({"a": entry()}, b""),
        raw({"a": entry()}, bytes(23)),
        raw({"a": entry()}, bytes(25)),
        raw(b"[]"),
        raw(b"{"),
        raw(b"\xff\xfe"),
        raw(b'{"a":' * 5000),
        raw(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'.encode()),
        raw({"a": entry(), "b": entry()}),
        raw({"a": entry(), "b": entry(data_offsets=[32, 56])}, bytes(56)),
        raw({"a": entry(shape=[2**32, 2**32])}),
        raw({"a": entry(shape=[True, 6])}),
        raw({"a": entry(shape=[-1, -6])}),
        raw({"a": entry(shape=[2, 3, 1])}),
        raw({"a": entry(shape=[])}),
        raw({"a": entry(shape=[0, 3], data_offsets=[0, 0])}, b""),
        raw({"a": entry(shape="2,3")}),
        raw({"a": entry(data_offsets=[24, 0])}),
        raw({"a": entry(data_offsets=[0, 2**63])}),
        raw({"a": entry(data_offsets=[0])}),
        raw({"a": entry(dtype=7)}),
        raw({"a": entry(dtype=["F32"])}),
        raw({"a": None}),
        raw({"a": entry(url="http://localhost/")}),
        raw({"__metadata__": {"format": 3}, "a": entry()}),
        raw({"__metadata__": "pt", "a": entry()}),
        b"PK\x03\x04" + bytes(60),
        b"\x80\x04\x95pickle",
    ],
)
def test_a_hostile_or_truncated_file_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError):
        read_tensors(data)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"n" * 513: entry()}, "'nnnn.* has a name of 513 characters"),
        ({f"t{number}": {} for number in range(10_001)}, "hold 10001 tensors"),
        ({"a": entry(dtype="F" * 100_000)}, "has the dtype 'FFF"),
        ({"a": entry(shape=[1] * 100_000)}, "tensor 'a' has the shape"),
        ({"a": entry(data_offsets="1" * 100_000)}, "tensor 'a': '111.* is no list of sizes"),
    ],
)
def test_a_file_of_endless_names_or_numbers_is_refused_in_few_words(header: dict[str, Any], words: str) -> None:
    with pytest.raises(CorruptArtifactError, match=words) as caught:
        read_tensors(raw(header))
    assert len(caught.value.message) < 300


def test_the_handwritten_file_of_these_tests_is_valid_before_it_is_broken() -> None:
    assert read_tensors(raw({"__metadata__": {"format": "pt"}, "a": entry()}))["a"].shape == (2, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(DATA) - 1))
def test_a_file_cut_anywhere_is_refused(end: int) -> None:
    with pytest.raises(CorruptArtifactError):
        load_lora(DATA[:end], SPEC, MODEL)


def test_a_file_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLargeError, match="over the limit of 10 bytes"):
        read_tensors(b"\xff" * 11, max_bytes=10)


def test_a_target_that_is_no_layer_of_the_model_is_refused() -> None:
    with pytest.raises(CorruptArtifactError, match="'nowhere' matches no linear layer"):
        adapter_from({}, uniform_spec({"nowhere": 2}, 1.0), MODEL)


@pytest.mark.parametrize("rank", [0, -1, MAX_RANK + 1])
def test_a_rank_out_of_bounds_is_refused(rank: int) -> None:
    with pytest.raises(CorruptArtifactError, match=f"'q' has the rank {rank}"):
        uniform_spec({"q": rank}, 1.0)


def test_a_spec_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(CorruptArtifactError, match="every target needs"):
        LoraSpec({"q": 1}, {})
    with pytest.raises(CorruptArtifactError, match="no target"):
        LoraSpec({}, {})
    with pytest.raises(CorruptArtifactError, match="changed twice"):
        LoraSpec({"q": 1}, {"q": 1.0}, False, ("q",))
    with pytest.raises(CorruptArtifactError, match="alpha nan"):
        LoraSpec({"q": 1}, {"q": float("nan")})


def test_the_scale_is_alpha_over_the_rank_or_over_its_root() -> None:
    assert LoraSpec({"q": 4}, {"q": 8.0}).scale("q") == 2.0
    assert LoraSpec({"q": 4}, {"q": 8.0}, use_rslora=True).scale("q") == 4.0
