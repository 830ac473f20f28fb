"""Recording what was shown: many inferences in one transaction, each of which is taken or refused by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from idiolect.errors import ConflictError, IdiolectError, InvalidInputError
from idiolect.ids import text_digest
from idiolect.signals.events import Inference
from idiolect.stores.key_ports import SubjectKeys, Wanted
from idiolect.stores.ports import RecordOutcome, ShownInference
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import CHUNK, Hold, chunks, hold
from idiolect.stores.sql.inference_rows import (
    find_inference,
    inference_row,
    opened,
    unpack_digests,
)
from idiolect.stores.sql.sealing import sealed_inference, sealed_texts
from idiolect.stores.sql.tenant_wall import stand_behind
from idiolect.stores.sql.texts import encoded
from idiolect.subject_keys import SubjectKey, signals_in

_T = schema.tombstones.c
_TOMBSTONE = select(_T.at, _T.generation).where(_T.tenant == bindparam("tenant"), _T.subject == bindparam("subject"))
_TEXT = select(schema.texts.c.digest).where(
    schema.texts.c.tenant == bindparam("tenant"), schema.texts.c.digest == bindparam("digest")
)
_KEEP_TEXT: dict[str, Insert] = {
    "sqlite": sqlite.insert(schema.texts).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(schema.texts).on_conflict_do_nothing(),
}
_INFERENCE = schema.inferences.insert()
_LINK = schema.inference_texts.insert()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An inference as rows, made and sealed before the transaction so that it holds the lock for less."""

    shown: ShownInference
    row: dict[str, Any]
    used: frozenset[bytes]
    texts: dict[bytes, dict[str, Any]]  # their rows, by digest or reference


@dataclass(slots=True)
class Gathered:
    """What passed every check: written together at the end, in one order, so that no two writers can deadlock."""

    inferences: dict[tuple[str, str], Candidate] = field(default_factory=dict)

    def texts(self) -> list[dict[str, Any]]:
        rows = {(one.shown.tenant, name): row for one in self.inferences.values() for name, row in one.texts.items()}
        return [rows[key] for key in sorted(rows)]

    def links(self) -> list[dict[str, Any]]:
        keys = [
            (one.shown.tenant, digest, one.shown.inference.id)
            for one in self.inferences.values()
            for digest in one.used
        ]
        return [{"tenant": tenant, "digest": digest, "inference": id_} for tenant, digest, id_ in sorted(keys)]


def candidates_of(
    shown: Sequence[ShownInference], keys: Callable[[], SubjectKeys]
) -> list[Candidate | InvalidInputError]:
    """What names a person is sealed. A reset that destroys its key meanwhile also makes it outdated."""
    wanted: dict[str, set[Wanted]] = defaultdict(set)
    for one in shown:
        if one.inference.subject is not None:
            wanted[one.tenant].add((one.inference.subject, signals_in(one.inference.domain)))
    found = {tenant: keys().ensure(tenant, people) for tenant, people in wanted.items()}
    return [_candidate_of(one, found.get(one.tenant, {})) for one in shown]


def _candidate_of(shown: ShownInference, keys: Mapping[Wanted, SubjectKey]) -> Candidate | InvalidInputError:
    inference = shown.inference
    try:
        row = inference_row(shown.tenant, inference)
    except InvalidInputError as error:
        return error
    bodies = {bytes.fromhex(text_digest(body)): encoded(body) for body in shown.texts}
    sealed: Mapping[bytes, bytes | None] = dict.fromkeys(bodies)
    if inference.subject is not None:
        key = keys[inference.subject, signals_in(inference.domain)]
        row = sealed_inference(key, row, unpack_digests(row["documents"]))
        sealed, bodies = sealed_texts(key, bodies), {}
    used = frozenset({row["query"], *unpack_digests(row["documents"])})
    texts = {
        name: {"tenant": shown.tenant, "digest": name, "body": bodies.get(name, b""), "sealed": seal}
        for name, seal in sealed.items()
    }
    return Candidate(shown, row, used, texts)


def record_all(
    connection: Connection, candidates: Sequence[Candidate], keys: Callable[[], SubjectKeys]
) -> list[RecordOutcome]:
    tenants = sorted({one.shown.tenant for one in candidates})
    for tenant in tenants:
        hold(connection, tenant, Hold.NOTHING_ERASED)
    if connection.dialect.name == "sqlite":
        return _record(connection, candidates, keys)
    outcomes: dict[int, RecordOutcome] = {}
    for tenant in tenants:
        stand_behind(connection, tenant)
        places = [place for place, one in enumerate(candidates) if one.shown.tenant == tenant]
        found = _record(connection, [candidates[place] for place in places], keys)
        outcomes.update(zip(places, found, strict=True))
    return [outcomes[place] for place in range(len(candidates))]


def _record(
    connection: Connection, candidates: Sequence[Candidate], keys: Callable[[], SubjectKeys]
) -> list[RecordOutcome]:
    gathered = Gathered()
    outcomes = [_judged(connection, one, gathered, keys) for one in candidates]
    _write(connection, gathered)
    return outcomes


def _judged(
    connection: Connection, one: Candidate, gathered: Gathered, keys: Callable[[], SubjectKeys]
) -> RecordOutcome:
    tenant, inference = one.shown.tenant, one.shown.inference
    if _is_outdated(connection, one):
        return "outdated"
    earlier = gathered.inferences.get((tenant, inference.id))
    if earlier is not None:
        return "recorded" if earlier.shown.inference == inference else _differs(inference)
    row = find_inference(connection, tenant, inference.id)
    if row is not None:
        return "recorded" if opened(keys, tenant, row) == inference else _differs(inference)
    missing = sum(not _is_known(connection, tenant, digest) for digest in one.used - one.texts.keys())
    if missing:
        return _unsent(inference, missing)
    gathered.inferences[tenant, inference.id] = one
    return "recorded"


def _is_outdated(connection: Connection, one: Candidate) -> bool:
    """By generation where it is known: the clocks of two machines may differ by more than a reset takes."""
    shown = one.shown
    if shown.inference.subject is None:
        return False
    names = {"tenant": shown.tenant, "subject": shown.inference.subject}
    tombstone = connection.execute(_TOMBSTONE, names).one_or_none()
    if tombstone is None:
        return False
    if shown.generation is not None:
        return bool(shown.generation < tombstone.generation)
    return bool(one.row["created_at"] < tombstone.at)


def _is_known(connection: Connection, tenant: str, digest: bytes) -> bool:
    return connection.scalar(_TEXT, {"tenant": tenant, "digest": digest}) is not None


def _differs(inference: Inference) -> IdiolectError:
    return ConflictError(f"the inference {inference.id[:80]!r} exists with other content.", mend="Use a new id.")


def _unsent(inference: Inference, count: int) -> IdiolectError:
    return InvalidInputError(
        f"the inference {inference.id[:80]} shows {count} texts that were not sent along.",
        mend="Send the query and every document.",
    )


def _write(connection: Connection, gathered: Gathered) -> None:
    if not gathered.inferences:
        return
    for texts in chunks(gathered.texts(), CHUNK):
        connection.execute(_KEEP_TEXT[connection.dialect.name], texts)
    connection.execute(_INFERENCE, [one.row for one in gathered.inferences.values()])
    for links in chunks(gathered.links(), CHUNK):
        connection.execute(_LINK, links)
