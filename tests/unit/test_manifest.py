"""The signed manifest: every field is under the signature, so none can be edited."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from idiolect.canonical import canonical_json
from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.privacy.budget import PrivacyStatement, plan_run, statement_for
from idiolect.registry.lora_layout import LoadProof, LoraLayout, LoraTarget
from idiolect.registry.manifest import (
    Carried,
    Imported,
    ReleaseTemplate,
    TensorSpec,
    Version,
    manifest_bytes,
    template_bytes,
)
from idiolect.registry.signing import Signer, key_id
from idiolect.registry.strict import template_from_json
from idiolect.registry.weights import dump_weights, verify_version
from idiolect.signals.context import Context

SIGNER = Signer(b"\x01" * 32)
WEIGHTS = dump_weights({"B": np.array([[0.1, -0.2]], np.float32)})
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
    privacy=statement_for("comparison", plan_run(2.0, 1e-5, 5), 0.5, 1e-5),
    data_window="the newest 50",
    producer="idiolect 0.1.0",
    run="run-1",
    created_at=datetime(2026, 5, 1, 12, 30, 15, 123456, tzinfo=UTC),
)


def signed(template: ReleaseTemplate = TEMPLATE, **changes: Any) -> Version:
    values: dict[str, Any] = {
        "id": "v1",
        "release": "r1",
        "subject": "5" * 32,
        "domain": "",
        "generation": 3,
        "parent": None,
        "weights": WEIGHTS,
        "weights_sha256": sha256_hex(WEIGHTS),
        "evaluation": {"accuracy": 0.75},
        "key_id": SIGNER.key_id,
    }
    version = Version(**values | changes)
    return replace(version, signature=SIGNER.sign(manifest_bytes(template, version)))


def other(value: Any) -> list[Any]:
    """Values that differ from `value` and would be believed in its place."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * (1 + 1e-12), value / 2, -value]
    if isinstance(value, str):
        return [value + "x", value.upper() + " ", *([""] if value else [])]
    if value is None:
        return ["v0"]
    if isinstance(value, datetime):
        return [value + timedelta(microseconds=1)]
    if isinstance(value, dict):
        return [{}, value | {"extra": 1.0}, {key: number + 1e-9 for key, number in value.items()}]
    raise AssertionError(f"say how to change {value!r}")


def edited_tensors() -> Iterator[tuple[TensorSpec, ...]]:
    (spec,) = TEMPLATE.tensors
    yield ()
    yield (spec, TensorSpec("extra", (1, 1)))
    for field in ("name", "max_norm"):
        for value in other(getattr(spec, field)):
            yield (replace(spec, **{field: value}),)
    yield (replace(spec, shape=(2, 1)),)
    yield (replace(spec, dtype="F64"),)


def layouts() -> Iterator[LoraLayout]:
    bare, proof = (LoadProof("a" * 64, 1e-3, (0, 1), digest * 64) for digest in "bc")
    plain = LoraLayout((LoraTarget("q", 8, 16.0),), False, (), bare, proof)
    yield plain
    yield replace(plain, targets=(LoraTarget("v", 8, 16.0),))
    yield replace(plain, targets=(LoraTarget("q", 4, 16.0),))
    yield replace(plain, targets=(LoraTarget("q", 8, 16.000001),))
    yield replace(plain, use_rslora=True)
    yield replace(plain, saved=("head",))
    yield replace(plain, bare=replace(bare, digest="d" * 64))
    yield replace(plain, proof=replace(proof, offsets=(0, 2)))


def edited_templates() -> Iterator[tuple[str, ReleaseTemplate]]:
    for field in dataclasses.fields(ReleaseTemplate):
        value = getattr(TEMPLATE, field.name)
        if field.name == "tensors":
            changed: list[Any] = list(edited_tensors())
        elif field.name == "targets":
            changed = [(), ("head", "q"), ("heads",)]
        elif field.name == "carried":
            changed = [Carried("r0", "a" * 64, noise) for noise in ((), (0.1,))]
        elif field.name == "lora":
            changed = list(layouts())
        elif field.name == "imported":
            changed = [Imported("acme", "a" * 64), Imported("other", "a" * 64), Imported("acme", "b" * 64)]
        elif field.name == "context":
            changed = [Context(("reply",)), Context(languages=("de",)), Context(("reply",), ("de",))]
        elif field.name == "privacy":
            changed = [
                replace(value, **{part.name: new})
                for part in dataclasses.fields(PrivacyStatement)
                for new in other(getattr(value, part.name))
            ]
        else:
            changed = other(value)
        yield from ((field.name, replace(TEMPLATE, **{field.name: new})) for new in changed)


def edited_versions() -> Iterator[tuple[str, Version]]:
    version = signed()
    for field in dataclasses.fields(Version):
        value = getattr(version, field.name)
        if isinstance(value, bytes):
            changed: list[Any] = [bytes([value[0] ^ 1]) + value[1:], value[:-1], value + b"\x00", b""]
        else:
            changed = other(value)
        yield from ((field.name, replace(version, **{field.name: new})) for new in changed)


def test_what_was_signed_is_verified() -> None:
    assert np.array_equal(verify_version(TEMPLATE, signed(), SIGNER)["B"], np.array([[0.1, -0.2]], np.float32))


def test_every_field_of_the_release_is_under_the_signature() -> None:
    version, seen = signed(), set()
    for field, template in edited_templates():
        with pytest.raises(CorruptArtifactError, match="v1"):
            verify_version(template, version, SIGNER)
        seen.add(field)
    assert seen == {field.name for field in dataclasses.fields(ReleaseTemplate)}


def test_every_field_of_the_version_is_under_the_signature_or_the_digest() -> None:
    seen = set()
    for field, version in edited_versions():
        with pytest.raises(CorruptArtifactError):
            verify_version(TEMPLATE, version, SIGNER)
        seen.add(field)
    assert seen == {field.name for field in dataclasses.fields(Version)}


def test_a_user_version_can_not_be_passed_off_as_another_persons() -> None:
    mine, theirs = signed(), signed(subject="6" * 32, id="v2")
    with pytest.raises(CorruptArtifactError):
        verify_version(TEMPLATE, replace(mine, subject=theirs.subject), SIGNER)
    with pytest.raises(CorruptArtifactError):
        verify_version(TEMPLATE, replace(mine, signature=theirs.signature), SIGNER)


def test_other_weights_under_a_matching_digest_need_a_signature_of_their_own() -> None:
    forged = dump_weights({"B": np.array([[9.0, 9.0]], np.float32)})
    with pytest.raises(CorruptArtifactError, match="signature"):
        verify_version(TEMPLATE, replace(signed(), weights=forged, weights_sha256=sha256_hex(forged)), SIGNER)
    with pytest.raises(CorruptArtifactError, match="digest"):
        verify_version(TEMPLATE, replace(signed(), weights=forged), SIGNER)


def test_signed_weights_are_still_checked_against_their_declaration() -> None:
    bad = dump_weights({"B": np.array([[np.nan, 0.0]], np.float32)})
    with pytest.raises(CorruptArtifactError, match="finite"):
        verify_version(TEMPLATE, signed(weights=bad, weights_sha256=sha256_hex(bad)), SIGNER)


def test_a_template_survives_the_way_through_json() -> None:
    again = ReleaseTemplate.from_json(json.loads(json.dumps(TEMPLATE.to_json())))
    assert again == TEMPLATE
    version = signed()
    assert manifest_bytes(again, version) == manifest_bytes(TEMPLATE, version)
    verify_version(again, version, SIGNER)


def test_a_manifest_has_one_form_whatever_order_it_was_built_in() -> None:
    parts = json.loads(manifest_bytes(TEMPLATE, signed()))
    assert canonical_json(dict(reversed(parts.items()))) == manifest_bytes(TEMPLATE, signed())
    assert parts["privacy"]["unit"] == "comparison"
    assert "weights" not in parts


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_manifest_that_json_can_not_say_is_not_signed(value: float) -> None:
    with pytest.raises(CorruptArtifactError):
        signed(evaluation={"accuracy": value})


# Keys


def test_a_signature_of_a_key_that_is_not_trusted_is_refused() -> None:
    stranger = Signer(b"\x02" * 32)
    version = replace(signed(), key_id=stranger.key_id)
    theirs = replace(version, signature=stranger.sign(manifest_bytes(TEMPLATE, version)))
    with pytest.raises(CorruptArtifactError, match="does not trust"):
        verify_version(TEMPLATE, theirs, SIGNER)
    renamed = replace(theirs, key_id=SIGNER.key_id)
    with pytest.raises(CorruptArtifactError, match="does not match its content"):
        verify_version(TEMPLATE, renamed, SIGNER)


def test_keys_rotate_old_signatures_count_while_their_key_is_trusted() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key().public_bytes_raw()
    rotated = Signer(b"\x03" * 32, (public,))
    assert rotated.key_id != SIGNER.key_id == key_id(public)
    verify_version(TEMPLATE, signed(), rotated)
    with pytest.raises(CorruptArtifactError):
        verify_version(TEMPLATE, signed(), Signer(b"\x03" * 32))


@pytest.mark.parametrize("signature", [b"", b"\x00" * 64, b"\x00" * 63, b"\xff" * 65, b"short"])
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="receipt 7"):
        SIGNER.verify(SIGNER.key_id, signature, b"message", what="receipt 7")


def test_the_same_message_always_has_the_same_signature() -> None:
    assert SIGNER.sign(b"m") == Signer(b"\x01" * 32).sign(b"m") != SIGNER.sign(b"n")
    SIGNER.verify(SIGNER.key_id, SIGNER.sign(b"m"), b"m", what="m")


def _plainly(template: ReleaseTemplate, version: Version) -> bytes:
    return canonical_json(
        template.to_json()
        | {
            "version": version.id,
            "release": version.release,
            "subject": version.subject,
            "domain": version.domain,
            "generation": version.generation,
            "parent": version.parent,
            "weights_sha256": version.weights_sha256,
            "evaluation": dict(version.evaluation),
        }
    )


def test_a_manifest_that_reuses_its_templates_members_is_the_plain_rendering() -> None:
    tricky = [TEMPLATE, replace(TEMPLATE, rank=True), replace(TEMPLATE, rank=1), replace(TEMPLATE, rank=1.0)]  # type: ignore[arg-type]
    tricky += [replace(TEMPLATE, data_window='"quoted" \u2028 \U0001f600'), replace(TEMPLATE, alpha=1e21)]
    tricky += [replace(TEMPLATE, data_window="100% %(version)b %"), replace(TEMPLATE, run="%%\u00e9%")]
    for template in (*tricky, *[edited for _, edited in edited_templates()], TEMPLATE):
        assert template_bytes(template) == canonical_json(template.to_json())
        for version in (
            signed(),
            signed(id='a"b\\\u00e9/\x7f\t', release='q"\\/', parent="p", evaluation={"b": 1e-7, "a": 0.1}),
        ):
            assert manifest_bytes(template, version) == _plainly(template, version)


CARRIED = replace(TEMPLATE, carried=Carried("r0", "b" * 64, (0.25, 0.5)))


def test_where_a_release_was_carried_from_comes_back_and_is_left_out_where_there_is_nothing_to_say() -> None:
    assert ReleaseTemplate.from_json(CARRIED.to_json()) == CARRIED
    assert "carried" not in TEMPLATE.to_json()


@pytest.mark.parametrize("broken", [{"release": "r0"}, {"release": "r0", "global": "b", "noise": [], "more": 1}])
def test_where_a_release_was_carried_from_is_told_in_full_or_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(CorruptArtifactError, match="carried"):
        ReleaseTemplate.from_json(CARRIED.to_json() | {"carried": broken})


OF_A_DOMAIN = replace(TEMPLATE, scope="domain", context=Context(("reply", "summary"), ("de",)))


def test_a_context_comes_back_and_is_left_out_where_everything_was_read() -> None:
    assert template_from_json(OF_A_DOMAIN.to_json()) == OF_A_DOMAIN
    assert "context" not in TEMPLATE.to_json()


@pytest.mark.parametrize(
    "broken",
    [
        {"tasks": ["reply"]},
        {"tasks": ["reply"], "languages": [], "people": ["5" * 32]},
        {"tasks": [], "languages": []},
        {"tasks": ["summary", "reply"], "languages": []},
        {"tasks": "reply", "languages": []},
        {"tasks": [1], "languages": []},
        {"tasks": ["a\nb"], "languages": []},
        {"tasks": [], "languages": ["../de"]},
        {"tasks": [f"task {number:03}" for number in range(100)], "languages": []},
        None,
        ["reply"],
    ],
)
def test_a_context_is_told_in_full_or_refused(broken: Any) -> None:
    with pytest.raises(CorruptArtifactError):
        template_from_json(OF_A_DOMAIN.to_json() | {"context": broken})


def test_no_manifest_says_which_languages_one_person_reads() -> None:
    with pytest.raises(CorruptArtifactError, match="context is not usable: 'of scope user'"):
        template_from_json(OF_A_DOMAIN.to_json() | {"scope": "user"})
