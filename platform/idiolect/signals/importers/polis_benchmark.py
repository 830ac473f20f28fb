"""The published split of the Polis data: which people and statements are new, and the pairs to adapt to and test on.

`benchmark_split.json` has `new_users` and `new_items` ([conversation, comment]). Each line of
`benchmark_new_users.jsonl.gz` has user, conv and three lists of [chosen, rejected] comments: adapt, test_known,
test_new. Their order matters: a benchmark adapts to the first n. A leak from new statements or people is refused; a
pair to test on that has a statement which the person adapts to is left out and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Comparison
from idiolect.signals.importers.building import People
from idiolect.signals.importers.holdout import Holdout
from idiolect.signals.importers.reading import DataFiles, Source, stat_or_none
from idiolect.signals.importers.rows import Row

SPLIT = "benchmark_split.json"
NEW_USERS = "benchmark_new_users.jsonl.gz"
BENCHMARK_FILES = (SPLIT, NEW_USERS)
_MEND = f"Fetch {SPLIT} and {NEW_USERS} again, or remove both to get a fresh split."
_PARTS = {"adapt": False, "test_known": False, "test_new": True}  # column -> are its statements new?

Index = Mapping[str, Mapping[str, int]]  # conversation -> comment -> item, negative if it was not kept


@dataclass(frozen=True, slots=True)
class _Split:
    new_people: frozenset[str]
    new_items: frozenset[int]
    new_ids: frozenset[tuple[str, str]]  # of new_items as the file names them: (conversation, comment)


def has_benchmark(folder: Path) -> bool:
    """Raises InvalidInputError if only one of the two files is there: half a split would leak."""
    there = [stat_or_none(folder / name) is not None for name in BENCHMARK_FILES]
    if any(there) and not all(there):
        missing = BENCHMARK_FILES[there.index(False)]
        raise InvalidInputError(f"{folder / missing} does not exist, but the other half of the split does.", mend=_MEND)
    return all(there)


def read_benchmark(files: DataFiles, index: Index, voters: Collection[str], source: str) -> Holdout:
    """The split as it is, for the statements in `index` and people in `voters`: other languages are not used."""
    split = _read_split(files, index, voters)
    rows = files.source(NEW_USERS, "benchmark_people")
    people = People()
    found: dict[str, list[Comparison]] = {part: [] for part in _PARTS}
    for row in rows:
        person = people.read(row)
        pairs = {part: _read_pairs(rows, row, person, part, index, split, source) for part in _PARTS}
        if person not in voters:
            rows.count("without_votes")
        elif person not in split.new_people:
            raise row.wrong(f"{person!r} is not among the new_users of {SPLIT}.", _MEND)
        elif not any(pairs.values()):
            rows.leave_out("without_usable_pairs")
        else:
            for part in _PARTS:
                found[part] += pairs[part]
    adaptation = tuple(found.pop("adapt"))
    adapted = {(pair.person, item) for pair in adaptation for item in (pair.chosen, pair.rejected)}
    evaluation = {part: tuple(_unseen(rows, pairs, adapted)) for part, pairs in found.items()}
    asked, left = (sum(map(len, parts.values())) for parts in (found, evaluation))
    if 2 * left < asked:
        raise InvalidInputError(
            f"{files.folder / NEW_USERS}: {asked - left:,} of {asked:,} pairs to test on have a statement that their "
            "person adapts to.",
            mend=f"Give each person different statements to adapt to and to be tested on. {_MEND}",
        )
    return Holdout(split.new_people, split.new_items, adaptation, evaluation)


def _read_pairs(
    rows: Source, row: Row, person: str, part: str, index: Index, split: _Split, source: str
) -> list[Comparison]:
    conversation, are_new, comparisons = row.identifier("conv"), _PARTS[part], []
    comments = index.get(conversation, {})
    for pair in row.pairs(part):
        chosen, rejected = (comments.get(comment, -1) for comment in pair)
        if chosen < 0 or rejected < 0 or chosen == rejected:
            rows.count("pairs_not_usable")
            continue
        if any(((conversation, comment) in split.new_ids) != are_new for comment in pair):
            expected = "only" if are_new else "none"
            raise row.wrong(f"{part} pair {list(pair)} must have {expected} of the new_items of {SPLIT}.", _MEND)
        if any((item in split.new_items) != are_new for item in (chosen, rejected)):
            rows.count("pairs_not_usable")  # a known statement with the text of a new one
            continue
        comparisons.append(Comparison(person, chosen, rejected, source=source))
    return comparisons


def _unseen(rows: Source, pairs: list[Comparison], adapted: Collection[tuple[str, int]]) -> Iterator[Comparison]:
    for pair in pairs:
        if (pair.person, pair.chosen) in adapted or (pair.person, pair.rejected) in adapted:
            rows.count("pairs_of_adapted_statements")
        else:
            yield pair


def _read_split(files: DataFiles, index: Index, voters: Collection[str]) -> _Split:
    split = files.document(SPLIT)
    people = _list_of(files, split, "new_users")
    items = _list_of(files, split, "new_items")
    if not all(isinstance(person, str | int) and not isinstance(person, bool) for person in people):
        raise InvalidInputError(
            f"{files.folder / SPLIT}: new_users has an entry that is neither a string nor an integer.", mend=_MEND
        )
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in items):
        raise InvalidInputError(f"{files.folder / SPLIT}: new_items has an entry that is not a pair.", mend=_MEND)
    new_ids = frozenset((str(conversation), str(comment)) for conversation, comment in items)
    new_items = (index.get(conversation, {}).get(comment, -1) for conversation, comment in new_ids)
    return _Split(
        frozenset(map(str, people)).intersection(voters), frozenset(item for item in new_items if item >= 0), new_ids
    )


def _list_of(files: DataFiles, split: Any, key: str) -> list[Any]:
    value = split.get(key) if isinstance(split, dict) else None
    if not isinstance(value, list):
        raise InvalidInputError(f"{files.folder / SPLIT} has no list {key!r}.", mend=_MEND)
    return value
