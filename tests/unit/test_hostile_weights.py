"""A fuzzer over safetensors and manifests: all that is wrong is refused with a stable code, quickly, in little memory,
and nothing of it is stored."""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idiolect.errors import CorruptArtifactError, IdiolectError, InvalidInputError
from idiolect.ids import check_name, sha256_hex
from idiolect.privacy.budget import PrivacyStatement
from idiolect.registry.manifest import Carried, ReleaseTemplate, TensorSpec, Version
from idiolect.registry.strict import check_template, template_from_json
from idiolect.registry.weights import dump_weights, load_weights
from idiolect.stores.sql import open_store
from idiolect_adapters.lora.weights import read_tensors

CODES = {"corrupt_artifact", "too_large"}
SECONDS, BYTES = 5.0, 200 << 20  # of one file; a machine under load is slow, and none of these takes a tenth of it
VALUES = np.array([[0.5, -1.0, 2.0, 0.0]], np.float32)
SPEC = TensorSpec("B", (1, 4))
STATEMENT = PrivacyStatement("comparison", "add or remove one", "gaussian", 2.0, 1e-5, 0.1, 1.0, 1.0, 20, "exact")
TEMPLATE = ReleaseTemplate(
    tenant="acme",
    scope="user",
    global_digest="a" * 64,
    basis_digest="b" * 64,
    kind="head_lora",
    rank=4,
    alpha=4.0,
    targets=("head",),
    tensors=(SPEC,),
    privacy=STATEMENT,
    data_window="all",
    producer="idiolect 0.1.0",
    run="run1",
    created_at=datetime(2026, 5, 1, tzinfo=UTC),
)
NAMES = (
    "",
    ".",
    "..",
    "a/../b",
    "../../etc/passwd",
    "a..b",
    "%2e%2e/b",
    "%2e",
    "a\\b",
    "a\x00b",
    "/etc/passwd",
    "C:\\x",
    "file:///etc/passwd",
    "http://localhost/x",
    "a b",
    "a\nb",
    "a" * 10_000,
    "hеad",  # the second letter is Cyrillic
    "ｈead",
    "head\u200b",
    "head\u202e",
    ".*",
    "head|tail",
    "^head$",
    "(a+)+$",
    "[a-z]",
    "\ud800",
)
READERS: Mapping[str, Callable[[bytes], Any]] = {
    "registry": lambda data: load_weights(data, [SPEC]),
    "lora": lambda data: read_tensors(data),
}


@contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < BYTES


def raw(header: object, body: bytes = VALUES.tobytes(), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]} | changes


def tiny(count: int) -> bytes:
    """Tensors of one value each."""
    entries = (f'"t{n}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * n},{4 * n + 4}]}}' for n in range(count))
    return raw(b"{" + ",".join(entries).encode() + b"}", bytes(4 * count))


def two(first: list[int], second: list[int], size: int) -> bytes:
    return raw({"B": entry(data_offsets=first), "C": entry(data_offsets=second)}, bytes(size))


HOSTILE: Mapping[str, Callable[[], bytes]] = {
    **{f"header of {size} bytes": lambda size=size: b"\x01" * size for size in range(8)},  # type: ignore[misc]
    "length 2^64-1": lambda: raw({"B": entry()}, length=2**64 - 1),
    "length over 100 MB": lambda: raw({"B": entry()}, length=100_000_001),
    "a header of over 100 MB": lambda: raw(b"{" + b" " * (101 << 20) + b"}"),
    "length beyond the end": lambda: raw({"B": entry()}, length=4_000),
    "bad UTF-8": lambda: raw(b'{"\xff\xfe": 1}'),
    "deep": lambda: raw(b'{"B":' * 100_000),
    "deep list": lambda: raw(b'{"B":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "duplicate keys": lambda: raw(f'{{"B": {json.dumps(entry())}, "B": {json.dumps(entry())}}}'.encode()),
    "duplicate fields": lambda: raw(b'{"B":{"dtype":"F32","dtype":"F32","shape":[1,4],"data_offsets":[0,16]}}'),
    "overlap": lambda: two([0, 16], [8, 24], 24),
    "hole": lambda: two([0, 16], [20, 36], 36),
    "the same bytes twice": lambda: two([0, 16], [0, 16], 16),
    "trailing bytes": lambda: raw({"B": entry()}, VALUES.tobytes() + b"\x00"),
    "negative offsets": lambda: raw({"B": entry(data_offsets=[-16, 0])}),
    "reversed offsets": lambda: raw({"B": entry(data_offsets=[16, 0])}),
    "shape overflow": lambda: raw({"B": entry(shape=[2**32, 2**32])}),
    "shape wraps to the size": lambda: raw({"B": entry(shape=[2**62 + 1, 4])}),
    "huge number": lambda: raw(b'{"B":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,16]}}'),
    "a float for a size": lambda: raw({"B": entry(shape=[1.0, 4])}),
    "true for a size": lambda: raw({"B": entry(shape=[True, 4])}),
    "a million tiny tensors": lambda: tiny(1_000_000),
    "ten thousand tensors over the declared": lambda: tiny(10_001),
    "a name of 900 KB": lambda: raw({"a" * 900_000: entry()}),
    "a name of 900 KB that says too much": lambda: raw({"a" * 900_000: entry(url="x")}),
    "a dtype of 900 KB": lambda: raw({"B": entry(dtype="a" * 900_000)}),
    "a name of 900 KB where another's bytes lie": lambda: raw({"a" * 900_000: entry(), "B": entry()}),
    "unknown dtype": lambda: raw({"B": entry(dtype="F99")}),
    "object dtype": lambda: raw({"B": entry(dtype="O")}),
    "NaN": lambda: dump_weights({"B": VALUES * np.float32(np.nan)}),
    "Inf": lambda: dump_weights({"B": np.array([[np.inf, 0, 0, 0]], np.float32)}),
    "unknown field": lambda: raw({"B": entry(url="http://localhost/")}),
    "NaN in the header": lambda: raw(b'{"B":{"dtype":"F32","shape":[1,NaN],"data_offsets":[0,16]}}'),
    "pickle": lambda: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    "zip": lambda: b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("reader", READERS)
def test_a_hostile_file_is_refused_with_a_stable_code_in_bounded_time_and_memory(name: str, reader: str) -> None:
    data = HOSTILE[name]()
    with bounded(), pytest.raises(IdiolectError) as caught:
        READERS[reader](data)
    assert caught.value.code in CODES
    assert len(caught.value.message) < 2_000


@pytest.mark.parametrize("name", [name for name in NAMES if name != "\ud800"])
def test_a_tensor_of_a_name_that_was_not_declared_is_refused(name: str) -> None:
    with pytest.raises(IdiolectError) as caught:
        load_weights(raw({name: entry()}), [SPEC])
    assert caught.value.code in CODES


def mutants(good: bytes, rng: random.Random) -> Iterator[bytes]:
    """Flipped bits, bytes of meaning to parsers, cuts, repeats and splices; endless."""
    meaning = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"9", b"\x00", b"\xff", b"e", b"\\u0000", b"true"]
    while True:
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data) or 1)
            kind = rng.randrange(6)
            if kind == 0 and data:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at : at + 1] = rng.choice(meaning)
            elif kind == 2:
                del data[at : at + rng.randrange(1, 9)]
            elif kind == 3:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
            elif kind == 4:
                data[:8] = struct.pack("<Q", rng.choice((0, 1, len(data), 2**63, 2**64 - 1, rng.randrange(300))))
            else:
                data = data[: max(at, 1)]
        yield bytes(data)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_mutants_of_a_good_file_are_refused_or_are_what_was_declared(seed: int) -> None:
    rng, good = random.Random(seed), dump_weights({"B": VALUES})
    refused, codes = 0, set()
    with bounded():
        for _, data in zip(range(3_000), mutants(good, rng), strict=False):
            for read in READERS.values():
                try:
                    found = read(data)
                except IdiolectError as error:
                    codes.add(error.code)
                    refused += 1
                    continue
                for tensor in found.values():
                    values = np.asarray(tensor)
                    assert values.dtype == np.float32
                    assert np.isfinite(values).all()
    assert codes <= CODES
    assert 3_000 < refused < 6_000


def test_the_template_of_these_tests_is_good_before_it_is_broken() -> None:
    check_template(TEMPLATE)
    assert template_from_json(json.loads(json.dumps(TEMPLATE.to_json()))) == TEMPLATE
    assert isinstance(read_tensors(dump_weights({"B": VALUES}))["B"], torch.Tensor)


def hostile_templates() -> Iterator[ReleaseTemplate]:
    for rank in (0, -1, True, 10**9, 1.0, "4", None, float("nan")):
        yield replace(TEMPLATE, rank=rank)  # type: ignore[arg-type]
    for alpha in (0.0, -1.0, True, float("nan"), float("inf"), 1e300, "4", None):
        yield replace(TEMPLATE, alpha=alpha)  # type: ignore[arg-type]
    for name in NAMES:
        for field in ("tenant", "kind", "run", "global_digest", "basis_digest"):
            yield replace(TEMPLATE, **{field: name})
        yield replace(TEMPLATE, targets=(name,))
        yield replace(TEMPLATE, tensors=(replace(SPEC, name=name),))
    for shape in ((), (0,), (-1, 4), (2**32, 2**32), (True, 4), (1.0, 4), (1,) * 9, [1, 4], "14", None):
        yield replace(TEMPLATE, tensors=(replace(SPEC, shape=shape),))  # type: ignore[arg-type]
    for dtype in ("F64", "object", "", None):
        yield replace(TEMPLATE, tensors=(replace(SPEC, dtype=dtype),))  # type: ignore[arg-type]
    for norm in (0.0, -1.0, float("inf"), float("nan"), True, "1"):
        yield replace(TEMPLATE, tensors=(replace(SPEC, max_norm=norm),))  # type: ignore[arg-type]
    yield replace(TEMPLATE, tensors=(SPEC, SPEC))
    yield replace(TEMPLATE, tensors=())
    yield replace(TEMPLATE, tensors=tuple(replace(SPEC, name=f"t{n}") for n in range(100_000)))
    yield replace(TEMPLATE, targets=())
    yield replace(TEMPLATE, targets=["head"])  # type: ignore[arg-type]
    yield replace(TEMPLATE, targets=".*")  # type: ignore[arg-type]
    yield replace(TEMPLATE, scope="everybody")  # type: ignore[arg-type]
    yield replace(TEMPLATE, data_window="x" * 10_000)
    yield replace(TEMPLATE, producer="a\x00b")
    for field in ("epsilon", "delta", "rho", "noise_multiplier", "clip_norm", "steps"):
        for value in ("2", True, None, -1.0, float("nan"), float("inf"), [2.0]):
            yield replace(TEMPLATE, privacy=replace(STATEMENT, **{field: value}))
    for field in ("unit", "adjacency", "mechanism", "accountant"):
        for words in ("x" * 10_000, "a\x00b", "[red]\n", ["gaussian"], {}, None):
            yield replace(TEMPLATE, privacy=replace(STATEMENT, **{field: words}))
    for field in ("weak", "local_epsilon", "budget_epsilon", "budget_days", "sample_rate", "unsampled_steps"):
        for value in ("2", -1.0, [2.0]):
            yield replace(TEMPLATE, privacy=replace(STATEMENT, **{field: value}))
    for noise in ((float("nan"),), (-1.0,), (0.1,) * 10_000):
        yield replace(TEMPLATE, carried=Carried("r0", "c" * 64, noise))
    for name in NAMES:
        yield replace(TEMPLATE, carried=Carried(name, "c" * 64, (0.1,)))
        yield replace(TEMPLATE, carried=Carried("r0", name, (0.1,)))


def test_a_hostile_manifest_is_refused_with_a_stable_code_and_nothing_is_stored(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    weights = dump_weights({"B": VALUES})
    count = 0
    for template in hostile_templates():
        version = Version("v1", "r1", "ann", "", 0, None, weights, sha256_hex(weights), key_id="k", signature=b"s")
        with bounded(), pytest.raises(IdiolectError) as caught:
            store.publish("r1", template, [version], TEMPLATE.created_at, reason="r", actor="a")
        assert caught.value.code in CODES, template
        count += 1
    assert count > 200
    assert store.releases(TEMPLATE.tenant) == []
    assert list(store.audit_entries(TEMPLATE.tenant)) == []
    store.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_mutants_of_a_good_manifest_are_refused_or_say_exactly_what_is_read(seed: int) -> None:
    rng, good = random.Random(seed), json.dumps(TEMPLATE.to_json())
    refused = 0
    with bounded():
        for _, data in zip(range(3_000), mutants(good.encode(), rng), strict=False):
            try:
                said = json.loads(data)
            except (ValueError, RecursionError):
                continue
            try:
                template = template_from_json(said)
            except CorruptArtifactError:
                refused += 1
                continue
            assert template.to_json() == said
    assert refused > 50


@pytest.mark.parametrize("extra", [{"url": "http://x"}, {"path": "/etc"}, {"__class__": "x"}, {"version": "v1"}])
def test_unknown_keys_of_a_manifest_are_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(CorruptArtifactError, match="not known"):
        template_from_json(TEMPLATE.to_json() | extra)


@pytest.mark.parametrize("said", [None, [], {}, "x", {"tenant": {}}, {"tensors": 7}])
def test_what_is_no_manifest_at_all_is_refused(said: Any) -> None:
    with pytest.raises(CorruptArtifactError):
        template_from_json(said)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_of_a_tenant_or_domain_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        check_name("domain", name)
