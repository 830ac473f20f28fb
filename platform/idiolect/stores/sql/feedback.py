"""Inferences, and the feedback that refers to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, update

from idiolect.errors import ConflictError, ConsentError, IdiolectError, InvalidInputError, NotFoundError
from idiolect.signals.events import Inference
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.ports import FeedbackSignal, RecordOutcome, ShownInference
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import Hold, among, chunks, hold
from idiolect.stores.sql.inference_rows import find_inference, inference_of, opened
from idiolect.stores.sql.look_ups import FEW
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import ask_state, check_subject, enqueue, load_state, mark_trained, requeue
from idiolect.stores.sql.quotas import TEXT_BYTES, take_today
from idiolect.stores.sql.recording import Candidate, candidates_of, people_of, record_all
from idiolect.stores.sql.rollout_members import note_answer
from idiolect.stores.sql.sealing import opened_signal, sealed_comparison, sealed_signal, with_keys
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, NO_TENANT
from idiolect.stores.sql.texts import encoded, load_texts, store_items, store_sealed_texts
from idiolect.stores.sql.times import micros
from idiolect.subject_keys import SubjectKey, signals_in

# Of one person's feedback the newest comparisons are kept; imported ones are bounded by their file.
MAX_FEEDBACK_COMPARISONS = 2_000


class Feedback(Part):
    def record_inference(self, tenant: str, inference: Inference, texts: Sequence[str]) -> None:
        """Idempotent by id. Raises InvalidInputError if it refers to a text that is neither given nor stored.

        One that was shown before its person's last reset, and is recorded after it, is dropped. Not lasting: a power
        cut may lose the latest, and feedback on them is then refused as on any unknown inference.
        """
        (outcome,) = self.record_inferences([ShownInference(tenant, inference, texts)])
        if isinstance(outcome, IdiolectError):
            raise outcome

    def record_inferences(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome]:
        """Not lasting, as above."""
        keys = self._database.keys
        found = {tenant: keys().ensure(tenant, people) for tenant, people in people_of(shown).items()}
        candidates = candidates_of(shown, found)
        usable = [one for one in candidates if isinstance(one, Candidate)]
        tenants = {one.shown.tenant for one in usable}
        whom = tenants.pop() if len(tenants) == 1 else NO_TENANT
        done = self._database.small_write(whom, lambda connection: record_all(connection, usable, keys))
        return _in_their_order(candidates, done)

    def record_at_once(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome] | None:
        keys = self._database.keys
        if not keys().embedded:
            return None
        wanted = people_of(shown)
        found = {tenant: keys().find(tenant, people) for tenant, people in wanted.items()}
        if any(len(found[tenant]) < len(people) for tenant, people in wanted.items()):
            return None  # a new key waits for the disk
        candidates = candidates_of(shown, found)
        usable = [one for one in candidates if isinstance(one, Candidate)]
        done = self._database.write_at_once(lambda connection: record_all(connection, usable, keys))
        return None if done is None else _in_their_order(candidates, done)

    def inference(self, tenant: str, inference_id: str) -> Inference | None:
        with self._database.point_reading(tenant, single=True) as connection:
            row = find_inference(connection, tenant, inference_id)
        return opened(self._database.keys, tenant, row)

    def add_feedback(self, tenant: str, subject: str, signal: FeedbackSignal, now: datetime) -> bool:
        """Raises NotFoundError if the inference is not one of this tenant, or was another person's; ConflictError
        (code `signal_id_reused`) if a signal of this id says something else.

        The inference is read from the store again: what the caller holds may be older than a reset.
        """
        check_subject(subject)
        keys = self._database.keys
        return self._database.write(tenant, lambda connection: _add(connection, keys, tenant, subject, signal, now))

    def training_queue(self, *, min_new: int) -> Sequence[tuple[str, str]]:
        queue, people = schema.training_queue.c, schema.subjects.c
        query = (
            select(queue.tenant, queue.subject)
            .join(schema.subjects, and_(people.tenant == queue.tenant, people.subject == queue.subject))
            .where(queue.new_comparisons >= min_new, people.opted_in, ~people.paused)
            .order_by(queue.tenant, queue.subject)
        )
        with self._database.reading(ALL_TENANTS) as connection:
            return [(tenant, subject) for tenant, subject in connection.execute(query)]

    def mark_trained(self, tenant: str, subjects: Sequence[str], upto: datetime) -> None:
        """`upto` is the time of the snapshot, not of the publish: what came in between is still new."""
        at, people = micros(upto), sorted(set(subjects))
        write = self._database.lasting_write if len(people) <= FEW else self._database.write
        write(tenant, lambda connection: _mark_trained(connection, tenant, people, at))


def _in_their_order(
    candidates: Sequence[Candidate | InvalidInputError], outcomes: Sequence[RecordOutcome]
) -> Sequence[RecordOutcome]:
    """`outcomes`: of those that are candidates."""
    following = iter(outcomes)
    return [next(following) if isinstance(one, Candidate) else one for one in candidates]


def _add(
    connection: Connection,
    keys: Callable[[], SubjectKeys],
    tenant: str,
    subject: str,
    signal: FeedbackSignal,
    now: datetime,
) -> bool:
    hold(connection, tenant, Hold.NOTHING_ERASED)
    state = load_state(connection, tenant, subject, lock=True)
    if not state.opted_in:
        raise ConsentError("the person has not opted in, so feedback is not kept.", mend="Opt in first.")
    if _is_stored(connection, keys, tenant, subject, signal):
        return False
    inference, key = _shown(connection, keys, tenant, subject, signal.inference.id)
    if not state.agrees_in(inference.domain):
        raise ConsentError(
            "the person is out of this domain, so feedback in it is not kept.", mend="Opt in to the domain first."
        )
    if key is None:  # shown to nobody in particular: from now on its texts are this person's too
        scope = subject, signals_in(inference.domain)
        key = keys().ensure(tenant, [scope])[scope]
        texts = load_texts(connection, keys, tenant, set(map(bytes.fromhex, _used(inference, signal))))
        take_today(connection, tenant, TEXT_BYTES, micros(now), sum(len(encoded(text)) for text in texts.values()))
        store_sealed_texts(connection, tenant, key, texts.values())
    rows = _comparison_rows(connection, tenant, key, inference, signal, micros(now))
    person = {"tenant": tenant, "subject": subject, "generation": state.generation}
    take_today(connection, tenant, "signals", micros(now))
    connection.execute(schema.signals.insert(), sealed_signal(key, _signal_row(tenant, subject, signal, micros(now))))
    if rows:
        connection.execute(schema.comparisons.insert(), [sealed_comparison(key, row | person) for row in rows])
        _drop_oldest(connection, tenant, subject)
        enqueue(connection, tenant, subject, len(rows))
    note_answer(connection, tenant, subject, inference, signal.kind, signal.value)
    return True


def _is_stored(
    connection: Connection, keys: Callable[[], SubjectKeys], tenant: str, subject: str, signal: FeedbackSignal
) -> bool:
    """Raises ConflictError if a signal of this id says something else. Its time may differ: a caller who names none
    gets that of each try."""
    table = schema.signals.c
    query = select(schema.signals).where(table.tenant == tenant, table.id == signal.id)
    stored = connection.execute(query).one_or_none()
    if stored is None:
        return False
    found = [
        (row.subject, row.inference, *((row.kind, row.value) if key is None else opened_signal(key, row)))
        for row, key in with_keys(keys, tenant, [stored])
    ]
    if found != [(subject, signal.inference.id, signal.kind, json.dumps(signal.value))]:
        raise ConflictError(
            f"a signal with the id {signal.id[:80]!r} exists with other content.",
            mend="Use a new id for each signal.",
            code="signal_id_reused",
        )
    return True


def _shown(
    connection: Connection, keys: Callable[[], SubjectKeys], tenant: str, subject: str, inference_id: str
) -> tuple[Inference, SubjectKey | None]:
    """With the key that it is sealed under, which seals what comes of it too: the two are read or lost together."""
    row = find_inference(connection, tenant, inference_id)
    for found, key in with_keys(keys, tenant, [] if row is None else [row]):
        if found.subject in (None, subject):
            return inference_of(found, key), key
    raise NotFoundError(
        f"there is no inference {inference_id[:80]!r} of this person.",
        mend="Send the id of the ranking's response.",
    )


def _signal_row(tenant: str, subject: str, signal: FeedbackSignal, received_at: int) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "id": signal.id,
        "subject": subject,
        "inference": signal.inference.id,
        "kind": signal.kind,
        "value": json.dumps(signal.value),
        "occurred_at": micros(signal.occurred_at),
        "received_at": received_at,
    }


def _used(inference: Inference, signal: FeedbackSignal) -> list[str]:
    """Digests of the query, and then of what the comparisons name. Raises InvalidInputError."""
    used = _positions(signal)
    if used and not 0 <= used[0] <= used[-1] < len(inference.documents):
        raise InvalidInputError(
            f"the signal {signal.id[:80]!r} names a document that was not shown.",
            mend=f"Use indices from 0 to {len(inference.documents) - 1}.",
        )
    return [inference.query, *(inference.documents[index] for index in used)]


def _positions(signal: FeedbackSignal) -> list[int]:
    return sorted({index for comparison in signal.comparisons for index in (comparison.chosen, comparison.rejected)})


def _comparison_rows(
    connection: Connection,
    tenant: str,
    key: SubjectKey,
    inference: Inference,
    signal: FeedbackSignal,
    received_at: int,
) -> list[dict[str, Any]]:
    """`occurred_at` is the caller's word, so it is never later than now: else it would stay the newest for ever."""
    query, *documents = (key.reference(bytes.fromhex(digest)).hex() for digest in _used(inference, signal))
    shown = [(inference.domain or "", query, document, "en", "") for document in documents]
    items = dict(zip(_positions(signal), store_items(connection, tenant, shown), strict=True))
    return [
        {
            "dataset": None,
            "chosen": items[comparison.chosen],
            "rejected": items[comparison.rejected],
            "weight": comparison.weight,
            "source": signal.kind,
            "shared": True,
            "occurred_at": min(micros(signal.occurred_at), received_at),
            "received_at": received_at,
            "shown_at": micros(inference.created_at),
        }
        for comparison in signal.comparisons
    ]


def _drop_oldest(connection: Connection, tenant: str, subject: str) -> None:
    table = schema.comparisons.c
    mine = (table.tenant == tenant, table.subject == subject, table.dataset.is_(None))
    surplus = (connection.scalar(select(func.count()).where(*mine)) or 0) - MAX_FEEDBACK_COMPARISONS
    if surplus > 0:
        oldest = select(table.id).where(*mine).order_by(table.id).limit(surplus)
        connection.execute(delete(schema.comparisons).where(table.id.in_(oldest)))


def _mark_trained(connection: Connection, tenant: str, subjects: Sequence[str], upto: int) -> None:
    """Of few people by constant statements, none of which needs another one's answer."""
    hold(connection, tenant, Hold.ONE_RUN)
    if len(subjects) <= FEW:
        for subject in subjects:
            ask_state(connection, tenant, subject, lock=True)
            mark_trained(connection, tenant, subject, upto)
            requeue(connection, tenant, [subject])
        return
    people = schema.subjects.c
    for chunk in chunks(subjects):
        mine = and_(people.tenant == tenant, among(people.subject, chunk))
        connection.execute(select(people.subject).where(mine).order_by(people.subject).with_for_update()).all()
        later = people.trained_until.is_(None) | (people.trained_until < upto)
        connection.execute(update(schema.subjects).where(mine, later).values(trained_until=upto))
        requeue(connection, tenant, chunk)
