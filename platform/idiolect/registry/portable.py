"""A release as one signed file that can be carried elsewhere: JSON lines, and nothing in it that is a name of a file.

    {"format": "idiolect-release/1", "release", "template", "created_at"}
    {"id", "subject", "domain", "generation", "parent", "weights", "evaluation", "key_id", "signature"}    of a version
    {"versions", "sha256", "public_keys", "public_key", "signature"}

The last line holds the digest of all bytes before it, the keys that signed the versions, and a signature over both: it
vouches for them. A reader checks those before it parses
anything else, then every line by itself, then every version as it would be at a load. No line may be longer than what
the manifest declares, so a hostile file costs no more memory than a good one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from idiolect.canonical import canonical_json, parse_json_object
from idiolect.errors import CorruptArtifactError
from idiolect.registry.manifest import ReleaseTemplate, Version
from idiolect.registry.signing import Signer, Verifier, key_id
from idiolect.registry.strict import template_from_json
from idiolect.registry.weights import bytes_of, verify_version

FORMAT = "idiolect-release/1"
MAX_HEADER_BYTES, MAX_END_BYTES = 1 << 20, 16 << 10
_BLOCK = 64 << 10
_BESIDE_WEIGHTS = 64 << 10  # most bytes of a version's line that are not its weights
_MAX_KEYS = 100
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEADER = {"format", "release", "template", "created_at"}
_LINE = {"id", "subject", "domain", "generation", "parent", "weights", "evaluation", "key_id", "signature"}
_END = {"versions", "sha256", "public_keys", "public_key", "signature"}


@dataclass(frozen=True, slots=True)
class Portable:
    """`signed_by` is the public key whose signature covers the whole file."""

    release: str
    template: ReleaseTemplate
    versions: Sequence[Version]
    signed_by: bytes


def dump_release(
    release: str, template: ReleaseTemplate, versions: Iterable[Version], signer: Signer, now: datetime
) -> Iterator[bytes]:
    """Line by line. Raises CorruptArtifactError for a version that does not verify: it is not carried on."""
    header = {"format": FORMAT, "release": release, "template": template.to_json(), "created_at": now.isoformat()}
    line = _line(header)
    yield line
    digest, count, used = hashlib.sha256(line), 0, set()
    for version in versions:
        verify_version(template, version, signer)
        line = _line(_said(version))
        yield line
        digest.update(line)
        count += 1
        used.add(version.key_id)
    keys = sorted(key.hex() for key in signer.public_keys if key_id(key) in used)
    end = {"versions": count, "sha256": digest.hexdigest(), "public_keys": keys}
    yield _line(end | {"public_key": signer.public_key.hex(), "signature": signer.sign(_message(end)).hex()})


def _said(version: Version) -> dict[str, Any]:
    return {
        "id": version.id,
        "subject": version.subject,
        "domain": version.domain,
        "generation": version.generation,
        "parent": version.parent,
        "weights": base64.b64encode(version.weights).decode(),
        "evaluation": dict(version.evaluation),
        "key_id": version.key_id,
        "signature": version.signature.hex(),
    }


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _message(end: Mapping[str, Any]) -> bytes:
    return canonical_json({"format": FORMAT} | {name: end[name] for name in ("versions", "sha256", "public_keys")})


def read_release(file: BinaryIO) -> Portable:
    """Checked in full, and against the key that it names itself: whether that key is trusted is for the caller to say.

    `file` is read twice, from its start. Raises CorruptArtifactError naming what does not hold.
    """
    signed_by, keys, count = _check_whole(file)
    file.seek(0)
    header = _object(file.readline(MAX_HEADER_BYTES), _HEADER, "the first line")
    if header["format"] != FORMAT:
        raise _damaged(f"its format is {header['format']!r:.80}, and only {FORMAT} is known")
    template = template_from_json(header["template"])
    release = _name("release", header["release"])
    longest = _BESIDE_WEIGHTS + 4 * (bytes_of(template.tensors) // 3 + 1)
    versions = []
    for number in range(count):
        what = f"line {number + 2}"
        version = _version(_object(file.readline(longest), _LINE, what), release, what)
        verify_version(template, version, keys)
        versions.append(version)
    return Portable(release, template, versions, signed_by)


def _check_whole(file: BinaryIO) -> tuple[bytes, Verifier, int]:
    """(the key that signed it, those of its versions, how many): parses the last line only, and keeps no more."""
    digest, last, lines, begins = hashlib.sha256(), b"", 0, True
    while piece := file.readline(_BLOCK):
        if begins or len(last) > _BLOCK:
            digest.update(last)
            last = b""
        last += piece
        begins = piece.endswith(b"\n")
        lines += begins
    if lines < 2 or not begins or len(last) > MAX_END_BYTES:
        raise _damaged("it ends early")
    end = _object(last, _END, "the last line")
    if end["versions"] != lines - 2 or end["sha256"] != digest.hexdigest():
        raise _damaged("its digest does not match its content")
    (signed_by,), keys = _keys([end["public_key"]]), Verifier(_keys(end["public_keys"]))
    signature = _hex(end["signature"], 64)
    Verifier([signed_by]).verify(key_id(signed_by), signature, _message(end), what="the release's file")
    return signed_by, keys, lines - 2


def _object(line: bytes, fields: set[str], what: str) -> dict[str, Any]:
    value = parse_json_object(line, what=what)
    if value.keys() != fields:
        raise _damaged(f"{what} has the fields {sorted(value)!r:.200}")
    return value


def _version(said: Mapping[str, Any], release: str, what: str) -> Version:
    weights = _weights(said["weights"], what)
    return Version(
        id=_name("id", said["id"]),
        release=release,
        subject=_name("subject", said["subject"], empty=True),
        domain=_name("domain", said["domain"], empty=True),
        generation=_whole(said["generation"]),
        parent=None if said["parent"] is None else _name("parent", said["parent"]),
        weights=weights,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        evaluation=_numbers(said["evaluation"]),
        key_id=_name("key_id", said["key_id"]),
        signature=_hex(said["signature"], 64),
    )


def _weights(value: Any, what: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise _damaged(f"the weights in {what} are not base64") from error


def _name(field: str, value: Any, *, empty: bool = False) -> str:
    if isinstance(value, str) and ((_ID.fullmatch(value) and ".." not in value) or (empty and value == "")):
        return value
    raise _damaged(f"its {field} is not usable: {value!r:.80}")


def _whole(value: Any) -> int:
    if type(value) is int and 0 <= value < 1 << 53:
        return value
    raise _damaged(f"a generation is {value!r:.80}")


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(type(number) in (int, float) for number in value.values()):
        raise _damaged("an evaluation is not a set of numbers")
    return {str(name): number for name, number in value.items()}


def _hex(value: Any, size: int) -> bytes:
    if isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value):
        return bytes.fromhex(value)
    raise _damaged("a key or signature is malformed")


def _keys(value: Any) -> list[bytes]:
    if not isinstance(value, list) or len(value) > _MAX_KEYS:
        raise _damaged("its list of keys is not usable")
    return [_hex(key, 32) for key in value]


def _damaged(why: str) -> CorruptArtifactError:
    return CorruptArtifactError(f"the release's file is not usable: {why}.", mend="Export it again.")
