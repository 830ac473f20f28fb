"""Importing a data set: whole or not at all, and in place of an earlier one of that name."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, Table, delete, select, update

from idiolect.audit import AuditEvent
from idiolect.consent import POLICY_VERSION
from idiolect.errors import InvalidInputError
from idiolect.ids import text_digest
from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.stores.ports import DatasetInfo, ImportOptions, ImportOutcome, Progress, no_progress
from idiolect.stores.sql import schema
from idiolect.stores.sql.audit import append
from idiolect.stores.sql.engine import AnyRow, Hold, chunks, hold, insert, take_time
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import requeue, tombstoned
from idiolect.stores.sql.quotas import count_anew
from idiolect.stores.sql.texts import collect_items, collect_texts, digests_of_items, store_items, store_texts
from idiolect.stores.sql.times import micros, moment

_BATCH = 10_000

_D = schema.datasets.c


class Imports(Part):
    def import_dataset(
        self,
        tenant: str,
        dataset: PreferenceDataset,
        options: ImportOptions,
        now: datetime,
        progress: Progress = no_progress,
    ) -> ImportOutcome:
        """Unchanged only with the same digest and the same options.

        Consent by import never overrides a "no": whoever was reset or opted out is left out altogether. Without
        `opt_in` adaptation comparisons are not stored, and are counted as `adaptation_not_stored`.
        """
        check_dataset(dataset)
        at = micros(now)
        outcome, replaced = self._database.write(
            tenant, lambda connection: _import(connection, tenant, dataset, options, at, progress)
        )
        if replaced:
            self._database.scrub()
        if not outcome.unchanged:
            self._database.learn_sizes()
        return outcome

    def datasets(self, tenant: str) -> Sequence[DatasetInfo]:
        """In order of name."""
        with self._database.reading(tenant) as connection:
            rows = connection.execute(select(schema.datasets).where(_D.tenant == tenant).order_by(_D.name)).all()
        return [
            DatasetInfo(tenant, row.name, row.digest, row.public, json.loads(row.counts), moment(row.imported_at))
            for row in rows
        ]


def check_dataset(dataset: PreferenceDataset) -> None:
    """Raises InvalidInputError for an index that points nowhere, a pair over two prompts, or a number that is none."""
    count, keys = len(dataset.items), [(item.domain, item.prompt) for item in dataset.items]
    for rating in dataset.ratings:
        if not 0 <= rating.item < count or not math.isfinite(rating.value):
            raise InvalidInputError(
                f"a rating of {dataset.name!r} is not usable: {rating}.", mend="Check the importer."
            )
    for pair in _all_comparisons(dataset):
        known = 0 <= pair.chosen < count and 0 <= pair.rejected < count
        if (
            not known
            or keys[pair.chosen] != keys[pair.rejected]
            or not (math.isfinite(pair.weight) and pair.weight >= 0)
        ):
            raise InvalidInputError(
                f"a comparison of {dataset.name!r} is not usable: {pair}.", mend="Check the importer."
            )


def _all_comparisons(dataset: PreferenceDataset) -> Iterator[Comparison]:
    return chain(dataset.comparisons, dataset.adaptation, *dataset.evaluation.values())


@dataclass(frozen=True, slots=True)
class _Import:
    """One import under way."""

    tenant: str
    dataset: int
    at: int
    items: Sequence[int]  # row ids by index in the data set
    left_out: Collection[str]

    def rating_rows(self, dataset: PreferenceDataset) -> Iterator[dict[str, Any]]:
        for rating in dataset.ratings:
            if rating.person not in self.left_out:
                yield {
                    "tenant": self.tenant,
                    "dataset": self.dataset,
                    "subject": rating.person,
                    "item": self.items[rating.item],
                    "value": rating.value,
                    "occurred_at": micros(rating.occurred_at),
                }

    def comparison_rows(self, pairs: Iterable[Comparison], *, shared: bool) -> Iterator[dict[str, Any]]:
        for pair in pairs:
            if pair.person not in self.left_out:
                yield {
                    "tenant": self.tenant,
                    "dataset": self.dataset,
                    "subject": pair.person,
                    "generation": 0,  # only a tombstone comes with another one, and those people are left out
                    "chosen": self.items[pair.chosen],
                    "rejected": self.items[pair.rejected],
                    "weight": pair.weight,
                    "source": pair.source,
                    "shared": shared,
                    "occurred_at": micros(pair.occurred_at),
                    "received_at": self.at,
                }

    def evaluation_rows(self, parts: Mapping[str, Sequence[Comparison]]) -> Iterator[dict[str, Any]]:
        for part, pairs in parts.items():
            for pair in pairs:
                if pair.person not in self.left_out:
                    yield {
                        "tenant": self.tenant,
                        "dataset": self.dataset,
                        "part": part,
                        "subject": pair.person,
                        "chosen": self.items[pair.chosen],
                        "rejected": self.items[pair.rejected],
                        "weight": pair.weight,
                    }


def _import(
    connection: Connection,
    tenant: str,
    dataset: PreferenceDataset,
    options: ImportOptions,
    at: int,
    progress: Progress,
) -> tuple[ImportOutcome, bool]:
    take_time(connection)
    hold(connection, tenant, Hold.ONE_RUN)
    earlier = _earlier(connection, tenant, dataset.name)
    if earlier is not None and _is_same(earlier, dataset, options):
        return ImportOutcome(True, json.loads(earlier.counts)), False
    if earlier is not None:
        hold(connection, tenant, Hold.ERASE)
    old_items, requeued = _remove(connection, tenant, earlier)
    id_ = _insert_dataset(connection, tenant, dataset, options, at)
    people = {rating.person for rating in dataset.ratings} | {pair.person for pair in _all_comparisons(dataset)}
    left_out = tombstoned(connection, tenant, people)
    task = _Import(tenant, id_, at, _store_items(connection, tenant, id_, dataset.items), left_out)
    adaptation = dataset.adaptation if options.opt_in else ()
    counts = _store_rows(connection, task, dataset, adaptation, progress)
    agreed = {pair.person for pair in adaptation} - left_out
    _opt_in(connection, tenant, agreed, at)
    count_anew(connection, tenant)
    requeue(connection, tenant, requeued | agreed | {pair.person for pair in dataset.comparisons} - left_out)
    _collect(connection, tenant, old_items)
    counts |= {
        "items": len(set(task.items)),
        "people": len(people - left_out),
        "people_reset": len(left_out),
        "people_opted_in": len(agreed),
        "adaptation_not_stored": len(dataset.adaptation) - len(adaptation),
    }
    counts = dict(dataset.report) | counts
    connection.execute(update(schema.datasets).where(_D.id == id_).values(counts=json.dumps(counts)))
    said = {"digest": dataset.digest, "public": options.public, "opt_in": options.opt_in, "opted_in": len(agreed)}
    append(connection, tenant, AuditEvent("operator", "dataset.import", f"dataset {dataset.name}", details=said), at)
    return ImportOutcome(False, counts), earlier is not None


def _earlier(connection: Connection, tenant: str, name: str) -> AnyRow | None:
    return connection.execute(select(schema.datasets).where(_D.tenant == tenant, _D.name == name)).one_or_none()


def _is_same(earlier: AnyRow, dataset: PreferenceDataset, options: ImportOptions) -> bool:
    then = (earlier.digest, earlier.public, earlier.opt_in)
    return bool(then == (dataset.digest, options.public, options.opt_in))


def _remove(connection: Connection, tenant: str, earlier: AnyRow | None) -> tuple[set[int], set[str]]:
    """Delete the earlier rows. Returns the items they used, and the people whose comparisons they were."""
    if earlier is None:
        return set(), set()
    links, pairs = schema.dataset_items, schema.comparisons.c
    items = set(connection.scalars(select(links.c.item).where(links.c.dataset == earlier.id)))
    mine = (pairs.tenant == tenant, pairs.dataset == earlier.id)
    people = set(connection.scalars(select(pairs.subject).where(*mine).distinct()))
    for table in (schema.ratings, schema.comparisons, schema.evaluation_pairs):
        connection.execute(delete(table).where(table.c.tenant == tenant, table.c.dataset == earlier.id))
    connection.execute(delete(links).where(links.c.dataset == earlier.id))
    connection.execute(delete(schema.datasets).where(_D.tenant == tenant, _D.id == earlier.id))
    return items, people


def _insert_dataset(
    connection: Connection, tenant: str, dataset: PreferenceDataset, options: ImportOptions, at: int
) -> int:
    row = {
        "tenant": tenant,
        "name": dataset.name,
        "digest": dataset.digest,
        "public": options.public,
        "opt_in": options.opt_in,
        "counts": "{}",
        "imported_at": at,
    }
    result = connection.execute(schema.datasets.insert().values(row).returning(_D.id))
    return int(result.scalar_one())


def _store_items(connection: Connection, tenant: str, dataset: int, items: Sequence[Item]) -> list[int]:
    digests: dict[str, str] = {}
    for item in items:
        for text in (item.prompt, item.text):
            if text not in digests:
                digests[text] = text_digest(text)
    store_texts(connection, tenant, digests)
    rows = [(item.domain, digests[item.prompt], digests[item.text], item.language, item.task) for item in items]
    ids = store_items(connection, tenant, rows)
    position = {item: place for place, item in reversed(list(enumerate(ids)))}
    for chunk in chunks(sorted(position)):
        linked = [{"dataset": dataset, "item": item, "position": position[item]} for item in chunk]
        connection.execute(schema.dataset_items.insert(), linked)
    return ids


def _store_rows(
    connection: Connection,
    task: _Import,
    dataset: PreferenceDataset,
    adaptation: Sequence[Comparison],
    progress: Progress,
) -> dict[str, int]:
    held_out = sum(map(len, dataset.evaluation.values()))
    total = len(dataset.ratings) + len(dataset.comparisons) + len(adaptation) + held_out
    work: tuple[tuple[str, Table, Iterator[dict[str, Any]]], ...] = (
        ("ratings", schema.ratings, task.rating_rows(dataset)),
        ("comparisons", schema.comparisons, task.comparison_rows(dataset.comparisons, shared=True)),
        ("adaptation_comparisons", schema.comparisons, task.comparison_rows(adaptation, shared=False)),
        ("evaluation_comparisons", schema.evaluation_pairs, task.evaluation_rows(dataset.evaluation)),
    )
    counts = dict.fromkeys((name for name, _, _ in work), 0)
    for name, table, rows in work:
        while batch := list(islice(rows, _BATCH)):
            connection.execute(table.insert(), batch)
            counts[name] += len(batch)
            progress(sum(counts.values()), total)
    progress(total, total)
    return counts


def _opt_in(connection: Connection, tenant: str, people: Collection[str], at: int) -> None:
    """Consent by import: what `consent.apply_change` does, for many at once. Who agreed already stays as they are."""
    columns = schema.subjects.c
    new = {
        "opted_in": True,
        "paused": False,
        "strength": 1.0,
        "generation": 0,
        "revision": 1,
        "policy_version": POLICY_VERSION,
        "updated_at": at,
    }
    statement = insert(connection, schema.subjects)
    agree = statement.on_conflict_do_update(
        index_elements=["tenant", "subject"],
        set_={
            "opted_in": True,
            "revision": columns.revision + 1,
            "policy_version": POLICY_VERSION,
            "updated_at": at,
        },
        where=~columns.opted_in,
    )
    for chunk in chunks(sorted(people)):
        connection.execute(agree, [{"tenant": tenant, "subject": person} | new for person in chunk])


def _collect(connection: Connection, tenant: str, items: Collection[int]) -> None:
    if items:
        digests = digests_of_items(connection, tenant, items)
        collect_items(connection, tenant, items)
        collect_texts(connection, tenant, digests)
