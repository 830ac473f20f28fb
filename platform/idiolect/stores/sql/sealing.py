"""What is stored of a person, sealed and opened again: one pair of functions for each kind of row.

Whatever names a key that is gone was forgotten, or its key store was lost: readers leave it out, as if it were not
there. What has its key and does not open was tampered with.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from idiolect.errors import CorruptArtifactError
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql.engine import CHUNK
from idiolect.subject_keys import ADAPTERS, SubjectKey, key_id_of

_ROW = TypeVar("_ROW")
_COMPARISON = struct.Struct("!?d")  # whether the chosen one has the larger id, and the weight


def sealed_texts(key: SubjectKey, bodies: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Of texts by their digest: sealed ones, by the person's reference."""
    named = {key.reference(digest): body for digest, body in bodies.items()}
    return {reference: key.seal("text", reference, body) for reference, body in named.items()}


def sealed_inference(key: SubjectKey, row: Mapping[str, Any], references: Sequence[bytes]) -> dict[str, Any]:
    """`row`, with `references` for its digests, the query's first; those and the order shown are sealed."""
    plain = row["query"] + row["documents"] + row["shown"].encode()
    return {
        **row,
        "query": references[0],
        "documents": b"".join(references[1:]),
        "shown": "",
        "sealed": key.seal("inference", row["id"].encode(), plain),
    }


def opened_inference(key: SubjectKey, row: Any) -> tuple[bytes, bytes, str]:
    """(query, documents, shown) as they were before. Raises CorruptArtifactError."""
    plain = _of(key, row.subject).open("inference", row.id.encode(), row.sealed)
    middle, end = len(row.query), len(row.query) + len(row.documents)
    return plain[:middle], plain[middle:end], plain[end:].decode()


def sealed_signal(key: SubjectKey, row: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.dumps([row["kind"], row["value"]]).encode()
    return {**row, "kind": "", "value": "", "sealed": key.seal("signal", row["id"].encode(), plain)}


def opened_signal(key: SubjectKey, row: Any) -> tuple[str, str]:
    """(kind, value). Raises CorruptArtifactError."""
    kind, value = json.loads(_of(key, row.subject).open("signal", row.id.encode(), row.sealed))
    return kind, value


def sealed_comparison(key: SubjectKey, row: Mapping[str, Any]) -> dict[str, Any]:
    """In the order of the two ids, which says nothing: they were given in the order of references."""
    first, second = sorted((row["chosen"], row["rejected"]))
    plain = _COMPARISON.pack(row["chosen"] != first, row["weight"]) + row["source"].encode()
    return {
        **row,
        "chosen": first,
        "rejected": second,
        "weight": 0.0,
        "source": "",
        "sealed": key.seal("comparison", _pair(first, second), plain),
    }


def opened_comparison(key: SubjectKey, row: Any) -> tuple[int, int, float, str]:
    """(chosen, rejected, weight, source). Raises CorruptArtifactError."""
    plain = _of(key, row.subject).open("comparison", _pair(row.chosen, row.rejected), row.sealed)
    second_chosen, weight = _COMPARISON.unpack_from(plain)
    pair = (row.rejected, row.chosen) if second_chosen else (row.chosen, row.rejected)
    return (*pair, weight, plain[_COMPARISON.size :].decode())


def sealed_version(key: SubjectKey, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "weights": b"", "sealed": sealed_weights(key, row["id"], row["generation"], row["weights"])}


def sealed_weights(key: SubjectKey, version_id: str, generation: int, weights: bytes) -> bytes:
    return key.seal("version", _version(version_id, generation), weights)


def open_weights(key: SubjectKey, subject: str, version_id: str, generation: int, sealed: bytes) -> bytes:
    """Raises CorruptArtifactError."""
    return _of(key, subject).open("version", _version(version_id, generation), sealed)


def keys_of_adapters(
    keys: SubjectKeys, tenant: str, people: Iterable[str], *, spread: bool = False, new: bool = False
) -> dict[str, SubjectKey]:
    found = keys.ensure(tenant, ((one, ADAPTERS) for one in people), spread=spread, new=new)
    return {key.subject: key for key in found.values()}


def with_keys(
    keys: Callable[[], SubjectKeys], tenant: str, rows: Iterable[_ROW], size: int = CHUNK
) -> Iterator[tuple[_ROW, SubjectKey | None]]:
    """Each row with the key that opens it, and None for one in the clear; those whose key is gone are left out."""
    pending = iter(rows)
    while chunk := list(islice(pending, size)):
        ids = {key_id_of(row.sealed) for row in chunk if row.sealed is not None}  # type: ignore[attr-defined]
        found = keys().by_id(tenant, ids) if ids else {}
        for row in chunk:
            sealed: bytes | None = row.sealed  # type: ignore[attr-defined]
            if sealed is None:
                yield row, None
            elif (key := found.get(key_id_of(sealed))) is not None:
                yield row, key


def _of(key: SubjectKey, subject: str) -> SubjectKey:
    """A value of another person, put into this one's row, would open with that person's key."""
    if key.subject != subject:
        raise CorruptArtifactError("a sealed row belongs to another person.", mend="Restore a backup.")
    return key


def _pair(first: int, second: int) -> bytes:
    return b"%d:%d" % (first, second)


def _version(version_id: str, generation: int) -> bytes:
    return f"{version_id}:{generation}".encode()
