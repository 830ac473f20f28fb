"""Recording what was shown: many inferences in one transaction, each of which is taken or refused by itself.

A text is kept by links to it. An inference of nobody in particular keeps its texts by links of its own. Those of a
person have one link for each of their texts and hour, since their texts are nobody else's: so whoever is shown the same
again adds one row, where a link for each inference would be as many rows as texts, in as many places of the index.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BindParameter, Connection, Insert, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from idiolect.errors import ConflictError, IdiolectError, InvalidInputError, QuotaExceededError
from idiolect.ids import text_digest
from idiolect.signals.events import Inference
from idiolect.stores.key_ports import SubjectKeys, Wanted
from idiolect.stores.ports import RecordOutcome, ShownInference
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import CHUNK, AnyRow, Hold, chunks, hold
from idiolect.stores.sql.inference_rows import INFERENCE, hour_of, inference_row, opened, unpack_digests
from idiolect.stores.sql.look_ups import LookUp, rows_of_each
from idiolect.stores.sql.quotas import SET_QUOTAS, TEXT_BYTES, take_today
from idiolect.stores.sql.sealing import sealed_inference
from idiolect.stores.sql.tenant_wall import stand_behind
from idiolect.stores.sql.texts import encoded
from idiolect.subject_keys import SubjectKey, signals_in

_T, _I, _L = schema.tombstones.c, schema.inferences.c, schema.inference_texts.c
_TENANT: BindParameter[str] = bindparam("tenant")
_TOMBSTONES = LookUp(select(_T.subject, _T.at, _T.generation).where(_T.tenant == _TENANT), _T.subject)
_STORED = LookUp(select(*INFERENCE).where(_I.tenant == _TENANT), _I.id)
_LINKED = LookUp(select(_L.digest).where(_L.tenant == _TENANT, _L.inference == bindparam("holder")), _L.digest)
_TEXT = select(schema.texts.c.digest).where(
    schema.texts.c.tenant == _TENANT, schema.texts.c.digest == bindparam("digest")
)
_KEEP_TEXT: dict[str, Insert] = {
    "sqlite": sqlite.insert(schema.texts).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(schema.texts).on_conflict_do_nothing(),
}
_KEEP_LINK: dict[str, Insert] = {
    "sqlite": sqlite.insert(schema.inference_texts).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(schema.inference_texts).on_conflict_do_nothing(),
}
_INFERENCE = schema.inferences.insert()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An inference as a row, made and sealed before the transaction so that it holds the lock for less."""

    shown: ShownInference
    row: dict[str, Any]
    key: SubjectKey | None  # of its person
    holder: str  # the name of what links to its texts
    used: dict[bytes, bytes]  # the digests of its texts, by the digest or reference that they are stored under

    @property
    def id(self) -> str:
        return self.shown.inference.id


@dataclass(slots=True)
class Gathered:
    """What passed every check: written together at the end, in one order, so that no two writers can deadlock."""

    is_bounded: bool  # whether the tenant has a quota of texts
    inferences: dict[str, Candidate] = field(default_factory=dict)
    texts: dict[bytes, dict[str, Any]] = field(default_factory=dict)  # their rows
    links: set[tuple[bytes, str]] = field(default_factory=set)


def candidates_of(
    shown: Sequence[ShownInference], keys: Mapping[str, Mapping[Wanted, SubjectKey]]
) -> list[Candidate | InvalidInputError]:
    """What names a person is sealed. A reset that destroys its key meanwhile also makes it outdated."""
    return [_candidate_of(one, keys.get(one.tenant, {})) for one in shown]


def people_of(shown: Sequence[ShownInference]) -> dict[str, set[Wanted]]:
    """Whose keys they need, by tenant."""
    wanted: dict[str, set[Wanted]] = defaultdict(set)
    for one in shown:
        if one.inference.subject is not None:
            wanted[one.tenant].add((one.inference.subject, signals_in(one.inference.domain)))
    return wanted


def _candidate_of(shown: ShownInference, keys: Mapping[Wanted, SubjectKey]) -> Candidate | InvalidInputError:
    inference = shown.inference
    try:
        row = inference_row(shown.tenant, inference)
    except InvalidInputError as error:
        return error
    digests = [row["query"], *unpack_digests(row["documents"])]
    if inference.subject is None:
        return Candidate(shown, row, None, inference.id, dict(zip(digests, digests, strict=True)))
    key = keys[inference.subject, signals_in(inference.domain)]
    names = key.references(digests)
    row = sealed_inference(key, row, names)
    return Candidate(shown, row, key, hour_of(row["created_at"]), dict(zip(names, digests, strict=True)))


def record_all(
    connection: Connection, candidates: Sequence[Candidate], keys: Callable[[], SubjectKeys]
) -> list[RecordOutcome]:
    """In a transaction that is already behind the wall of their tenant, if it is one."""
    by_tenant: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(candidates):
        by_tenant[one.shown.tenant].append(place)
    tenants = sorted(by_tenant)
    for tenant in tenants:
        hold(connection, tenant, Hold.NOTHING_ERASED)
    outcomes: dict[int, RecordOutcome] = {}
    for tenant in tenants:
        if len(tenants) > 1:
            stand_behind(connection, tenant)
        places = by_tenant[tenant]
        found = _record(connection, tenant, [candidates[place] for place in places], keys)
        outcomes.update(zip(places, found, strict=True))
    return [outcomes[place] for place in range(len(candidates))]


def _record(
    connection: Connection, tenant: str, candidates: Sequence[Candidate], keys: Callable[[], SubjectKeys]
) -> list[RecordOutcome]:
    tombstones, stored, linked, is_bounded = _known(connection, tenant, candidates)
    gathered = Gathered(is_bounded)
    outcomes: list[RecordOutcome] = []
    for one in candidates:
        if _is_fenced(one, tombstones.get(one.shown.inference.subject or "")):
            outcomes.append("outdated")
        elif one.id in gathered.inferences or one.id in stored:
            outcomes.append(_again(tenant, one.shown.inference, gathered, stored, keys))
        else:
            outcomes.append(_gather(connection, one, linked, gathered))
    _write(connection, tenant, gathered)
    return outcomes


def _known(
    connection: Connection, tenant: str, candidates: Sequence[Candidate]
) -> tuple[dict[str, AnyRow], dict[str, AnyRow], dict[str, set[bytes]], bool]:
    """Tombstones by person; inferences by id; by holder the links of people that are there already, each of which says
    that its text is there too; whether the tenant has a quota of texts."""
    mine = {"tenant": tenant}
    people = {one.shown.inference.subject or "" for one in candidates if one.key is not None}
    names: dict[str, set[bytes]] = defaultdict(set)  # by holder
    for one in candidates:
        if one.key is not None:
            names[one.holder].update(one.used)
    tombstones, stored, quotas, *linked = rows_of_each(
        connection,
        [
            (_TOMBSTONES, people, mine),
            (_STORED, {one.id for one in candidates}, mine),
            (SET_QUOTAS, {TEXT_BYTES}, mine),
            *((_LINKED, some, {**mine, "holder": holder}) for holder, some in names.items()),
        ],
    )
    return (
        {row.subject: row for row in tombstones},
        {row.id: row for row in stored},
        {holder: {row.digest for row in rows} for holder, rows in zip(names, linked, strict=True)},
        bool(quotas),
    )


def _is_fenced(one: Candidate, tombstone: AnyRow | None) -> bool:
    """By generation where it is known: the clocks of two machines may differ by more than a reset takes."""
    if tombstone is None:
        return False
    if one.shown.generation is not None:
        return bool(one.shown.generation < tombstone.generation)
    return bool(one.row["created_at"] < tombstone.at)


def _again(
    tenant: str,
    inference: Inference,
    gathered: Gathered,
    stored: Mapping[str, AnyRow],
    keys: Callable[[], SubjectKeys],
) -> RecordOutcome:
    earlier = gathered.inferences.get(inference.id)
    known = opened(keys, tenant, stored[inference.id]) if earlier is None else earlier.shown.inference
    return "recorded" if known == inference else _differs(inference)


def _gather(
    connection: Connection, one: Candidate, linked: Mapping[str, Collection[bytes]], gathered: Gathered
) -> RecordOutcome:
    missing = one.used.keys() - linked.get(one.holder, ())
    sent = {bytes.fromhex(text_digest(body)): body for body in one.shown.texts} if missing else {}
    unsent = [name for name in missing if one.used[name] not in sent]
    unknown = sum(not _is_known(connection, one.shown.tenant, name) for name in unsent)
    if unknown:
        return _unsent(one.shown.inference, unknown)
    if gathered.is_bounded and (refused := _refused(connection, one)) is not None:
        return refused
    for name in missing:
        gathered.links.add((name, one.holder))
        if name not in gathered.texts and one.used[name] in sent:
            gathered.texts[name] = _text_row(one, name, encoded(sent[one.used[name]]))
    gathered.inferences[one.id] = one
    return "recorded"


def _refused(connection: Connection, one: Candidate) -> QuotaExceededError | None:
    """It is not kept then, and the others of its group are."""
    size = sum(len(encoded(body)) for body in set(one.shown.texts))
    try:
        take_today(connection, one.shown.tenant, TEXT_BYTES, one.row["created_at"], size)
    except QuotaExceededError as error:
        return error
    return None


def _text_row(one: Candidate, name: bytes, body: bytes) -> dict[str, Any]:
    sealed = None if one.key is None else one.key.seal("text", name, body)
    return {"tenant": one.shown.tenant, "digest": name, "body": body if sealed is None else b"", "sealed": sealed}


def _is_known(connection: Connection, tenant: str, digest: bytes) -> bool:
    return connection.scalar(_TEXT, {"tenant": tenant, "digest": digest}) is not None


def _differs(inference: Inference) -> IdiolectError:
    return ConflictError(f"the inference {inference.id[:80]!r} exists with other content.", mend="Use a new id.")


def _unsent(inference: Inference, count: int) -> IdiolectError:
    return InvalidInputError(
        f"the inference {inference.id[:80]} shows {count} texts that were not sent along.",
        mend="Send the query and every document.",
    )


def _write(connection: Connection, tenant: str, gathered: Gathered) -> None:
    dialect = connection.dialect.name
    for texts in chunks([gathered.texts[name] for name in sorted(gathered.texts)], CHUNK):
        connection.execute(_KEEP_TEXT[dialect], texts)
    if gathered.inferences:
        connection.execute(_INFERENCE, [one.row for one in gathered.inferences.values()])
    links = [{"tenant": tenant, "digest": name, "inference": holder} for name, holder in sorted(gathered.links)]
    for some in chunks(links, CHUNK):
        connection.execute(_KEEP_LINK[dialect], some)
