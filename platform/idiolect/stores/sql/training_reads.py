"""What training reads, as columns. Each method is one snapshot; no query is per person.

Which comparisons of a person are the newest: by `occurred_at`, latest first, those without a time after all others;
among equals, by order of storing, *earliest* first. So an import without times (a benchmark's "first n pairs") gives
the first n of the file, and feedback, which always has a time, goes before it. Whatever is kept is returned in order
of storing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, Table, and_, exists, func, select

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.signals.data import Comparisons, EvaluationData, PersonalSnapshot, SharedData
from idiolect.stores.key_ports import SubjectKeys
from idiolect.stores.sql import schema
from idiolect.stores.sql.arrivals import LIVE_VERSION
from idiolect.stores.sql.columns import Columns
from idiolect.stores.sql.engine import AnyRow, among, chunks
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.people import agreed_there
from idiolect.stores.sql.sealing import opened_comparison, with_keys
from idiolect.stores.sql.texts import load_items

_R, _C, _E, _I = schema.ratings.c, schema.comparisons.c, schema.evaluation_pairs.c, schema.items.c
_D, _S, _T, _P = schema.datasets.c, schema.subjects.c, schema.tombstones.c, schema.pointers.c


@dataclass(frozen=True, slots=True)
class _Source:
    """Where shared data comes from: a data set, or (`dataset` None) feedback."""

    dataset: int | None
    public: bool


class TrainingReads(Part):
    def shared_data(self, tenant: str, *, domain: str | None = None, public_only: bool = False) -> SharedData:
        """In order of storing: data set after data set, then feedback."""
        columns = Columns()
        with self._database.reading(tenant) as connection:
            sources = _sources(connection, tenant, public_only)
            rated = columns.ratings(_rows(connection, (_ratings(tenant, s, domain) for s in sources if s.dataset)))
            rows = _rows(connection, (_shared(tenant, s, domain) for s in sources))
            compared = columns.comparisons(_opened(self._database.keys, tenant, rows))
            items = load_items(connection, self._database.keys, tenant, columns.items)
        return SharedData(items, columns.people, rated, compared)

    def domains(self, tenant: str) -> Sequence[str]:
        query = select(_I.domain).where(_I.tenant == tenant).distinct().order_by(_I.domain)
        with self._database.reading(tenant) as connection:
            return connection.scalars(query).all()

    def contexts(self, tenant: str, domain: str) -> Sequence[tuple[str, str]]:
        query = select(_I.task, _I.language).where(_I.tenant == tenant, _I.domain == domain).distinct()
        with self._database.reading(tenant) as connection:
            return sorted((task, language) for task, language in connection.execute(query))

    def contributors(self, tenant: str, domain: str) -> Sequence[str]:
        """In order of pseudonym."""
        with self._database.reading(tenant) as connection:
            sources = _sources(connection, tenant, public_only=False)
            queries = [_ratings(tenant, s, domain) for s in sources if s.dataset]
            queries += [_shared(tenant, s, domain) for s in sources]
            people = [query.with_only_columns(query.selected_columns[0]).order_by(None) for query in queries]
            return sorted({row[0] for query in people for row in connection.execute(query.distinct())})

    def trainable(self, tenant: str) -> Sequence[str]:
        """In order of pseudonym."""
        own = and_(_C.tenant == tenant, _C.subject == _S.subject, _C.generation == _S.generation)
        query = (
            select(_S.subject)
            .where(_S.tenant == tenant, _S.opted_in, ~_S.paused)
            .where(exists().where(own, agreed_there(schema.comparisons)))
            .order_by(_S.subject)
        )
        with self._database.reading(tenant) as connection:
            return connection.scalars(query).all()

    def personal_snapshot(
        self, tenant: str, *, subjects: Sequence[str] | None = None, max_comparisons: int = 50
    ) -> PersonalSnapshot:
        """People in order of pseudonym, without those who have no comparison; see above for which are the newest."""
        if max_comparisons < 1:
            raise InvalidInputError(f"max_comparisons {max_comparisons} is not usable.", mend="Use a number from 1.")
        wanted = [None] if subjects is None else list(chunks(sorted(set(subjects))))
        columns = Columns()
        with self._database.reading(tenant) as connection:
            rows = _rows(connection, (_personal(tenant, w, max_comparisons) for w in wanted))
            pairs = columns.comparisons(_opened(self._database.keys, tenant, rows))
            standing = {row.subject: row for w in wanted for row in connection.execute(_standing(tenant, w))}
            items = load_items(connection, self._database.keys, tenant, columns.items)
        return PersonalSnapshot(
            items=items,
            people=columns.people,
            generation_P=tuple(standing[person].generation for person in columns.people),
            parent_P=tuple(standing[person].version for person in columns.people),
            comparisons=pairs,
        )

    def evaluation_data(self, tenant: str, dataset: str) -> EvaluationData:
        """Items that are asked about are in the order of the data set, whichever of them were preferred. Raises
        NotFoundError for an unknown data set."""
        with self._database.reading(tenant) as connection:
            id_ = connection.scalar(select(_D.id).where(_D.tenant == tenant, _D.name == dataset))
            if id_ is None:
                raise NotFoundError(f"there is no data set {dataset[:80]!r}.", mend="Import it first.")
            rows = connection.execute(
                select(_E.subject, _E.chosen, _E.rejected, _E.weight, _E.part)
                .where(_E.tenant == tenant, _E.dataset == id_)
                .order_by(_E.id)
            ).all()
            columns = Columns(_in_order(connection, id_, {item for row in rows for item in (row.chosen, row.rejected)}))
            parts = _parts(columns, rows)
            adapted = _opened(self._database.keys, tenant, connection.execute(_adaptation(tenant, id_)))
            adaptation = columns.comparisons(adapted)
            items = load_items(connection, self._database.keys, tenant, columns.items)
        return EvaluationData(items, columns.people, parts, adaptation)


def _in_order(connection: Connection, dataset: int, items: Collection[int]) -> list[int]:
    """As the data set lists them."""
    links = schema.dataset_items.c
    listed = select(links.item).where(links.dataset == dataset).order_by(links.position, links.item)
    return [item for item in connection.scalars(listed) if item in items]


def _rows(connection: Connection, queries: Iterable[Select[Any]]) -> Iterator[AnyRow]:
    for query in queries:
        yield from connection.execute(query)


def _opened(
    keys: Callable[[], SubjectKeys], tenant: str, rows: Iterable[AnyRow]
) -> Iterator[tuple[str, int, int, float]]:
    """(subject, chosen, rejected, weight)."""
    for row, key in with_keys(keys, tenant, rows):
        if key is None:
            yield row.subject, row.chosen, row.rejected, row.weight
        else:
            chosen, rejected, weight, _ = opened_comparison(key, row)
            yield row.subject, chosen, rejected, weight


def _sources(connection: Connection, tenant: str, public_only: bool) -> list[_Source]:
    query = select(_D.id, _D.public).where(_D.tenant == tenant).order_by(_D.id)
    found = [_Source(id_, public) for id_, public in connection.execute(query)]
    return [source for source in found if source.public] if public_only else [*found, _Source(None, public=False)]


def _ratings(tenant: str, source: _Source, domain: str | None) -> Select[Any]:
    query = select(_R.subject, _R.item, _R.value).where(_R.tenant == tenant, _R.dataset == source.dataset)
    reset = exists().where(_T.tenant == tenant, _T.subject == _R.subject)  # imports leave them out: all is older
    return _allowed(query.where(~reset).order_by(_R.id), schema.ratings, "item", tenant, source, domain)


def _shared(tenant: str, source: _Source, domain: str | None) -> Select[Any]:
    query = select(_C.subject, _C.chosen, _C.rejected, _C.weight, _C.sealed).where(
        _C.tenant == tenant, _C.dataset == source.dataset, _C.shared
    )
    reset = exists().where(_T.tenant == tenant, _T.subject == _C.subject, _C.id <= _T.upto)
    return _allowed(query.where(~reset).order_by(_C.id), schema.comparisons, "chosen", tenant, source, domain)


def _allowed(
    query: Select[Any], table: Table, item: str, tenant: str, source: _Source, domain: str | None
) -> Select[Any]:
    """Of one domain if it is given; of people who opted in unless the source is public; never of a domain that they
    are out of."""
    if domain is not None:
        query = query.join(schema.items, _I.id == table.c[item]).where(_I.tenant == tenant, _I.domain == domain)
    query = query.where(agreed_there(table, item))
    if not source.public:
        query = query.where(exists().where(_S.tenant == tenant, _S.subject == table.c.subject, _S.opted_in))
    return query


def _personal(tenant: str, subjects: Sequence[str] | None, limit: int) -> Select[Any]:
    newest_first = (_C.occurred_at.is_(None), _C.occurred_at.desc(), _C.id)
    rank = func.row_number().over(partition_by=_C.subject, order_by=newest_first)
    ranked = (
        select(_C.subject, _C.chosen, _C.rejected, _C.weight, _C.sealed, _C.id, rank.label("rank"))
        .join(schema.subjects, and_(_S.tenant == _C.tenant, _S.subject == _C.subject))
        .where(_C.tenant == tenant, _S.opted_in, ~_S.paused, _C.generation == _S.generation)
        .where(agreed_there(schema.comparisons))
    )
    if subjects is not None:
        ranked = ranked.where(among(_C.subject, subjects))
    found = ranked.subquery()
    return (
        select(found.c.subject, found.c.chosen, found.c.rejected, found.c.weight, found.c.sealed)
        .where(found.c.rank <= limit)
        .order_by(found.c.subject, found.c.id)
    )


def _adaptation(tenant: str, dataset: int) -> Select[Any]:
    """What people who are evaluated told in the same data set, in its order."""
    evaluated = select(_E.subject).where(_E.tenant == tenant, _E.dataset == dataset)
    return (
        select(_C.subject, _C.chosen, _C.rejected, _C.weight, _C.sealed)
        .join(schema.subjects, and_(_S.tenant == _C.tenant, _S.subject == _C.subject))
        .where(_C.tenant == tenant, _C.dataset == dataset, _C.subject.in_(evaluated))
        .where(_S.opted_in, ~_S.paused, _C.generation == _S.generation, agreed_there(schema.comparisons))
        .order_by(_C.id)
    )


def _standing(tenant: str, subjects: Sequence[str] | None) -> Select[Any]:
    live = and_(_P.tenant == tenant, _P.subject == _S.subject, _P.domain == "", _P.name == "live")
    query = (
        select(_S.subject, _S.generation, LIVE_VERSION.label("version"))
        .select_from(schema.subjects)
        .outerjoin(schema.pointers, live)
        .where(_S.tenant == tenant, _S.opted_in, ~_S.paused)
    )
    return query if subjects is None else query.where(among(_S.subject, subjects))


def _parts(columns: Columns, rows: Sequence[AnyRow]) -> dict[str, Comparisons]:
    names = [row.part for row in rows]
    every = columns.comparisons(row[:4] for row in rows)
    part_C = np.array(names, dtype=object)
    return {name: every.where(part_C == name) for name in sorted(set(names))}
