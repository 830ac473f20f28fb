"""The published split of the Polis data: which people and statements are new, and the pairs to adapt to and test on.

`benchmark_split.json` has `new_users` and `new_items` ([conversation, comment]). Each line of
`benchmark_new_users.jsonl.gz` has user, conv and three lists of [chosen, rejected] comments: adapt, test_known,
test_new. Their order matters: a benchmark adapts to the first n. Any leak between the parts is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
        person, comments = people.read(row), index.get(row.identifier("conv"), {})
        pairs = {part: _read_pairs(rows, row, person, part, comments, split, source) for part in _PARTS}
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
    evaluation = {part: tuple(pairs) for part, pairs in found.items()}
    return Holdout(split.new_people, split.new_items, adaptation, evaluation)


def _read_pairs(
    rows: Source, row: Row, person: str, part: str, comments: Mapping[str, int], split: _Split, source: str
) -> list[Comparison]:
    comparisons = []
    for pair in row.pairs(part):
        chosen, rejected = (comments.get(comment, -1) for comment in pair)
        if chosen < 0 or rejected < 0 or chosen == rejected:
            rows.count("pairs_not_usable")
            continue
        if any((item in split.new_items) != _PARTS[part] for item in (chosen, rejected)):
            expected = "only" if _PARTS[part] else "none"
            raise row.wrong(f"{part} pair {list(pair)} must have {expected} of the new_items of {SPLIT}.", _MEND)
        comparisons.append(Comparison(person, chosen, rejected, source=source))
    return comparisons


def _read_split(files: DataFiles, index: Index, voters: Collection[str]) -> _Split:
    split = files.document(SPLIT)
    people = _list_of(files, split, "new_users")
    items = _list_of(files, split, "new_items")
    if not all(isinstance(person, str) for person in people):
        raise InvalidInputError(f"{files.folder / SPLIT}: new_users has an entry that is not a string.", mend=_MEND)
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in items):
        raise InvalidInputError(f"{files.folder / SPLIT}: new_items has an entry that is not a pair.", mend=_MEND)
    new_items = (index.get(str(conversation), {}).get(str(comment), -1) for conversation, comment in items)
    return _Split(frozenset(people).intersection(voters), frozenset(item for item in new_items if item >= 0))


def _list_of(files: DataFiles, split: Any, key: str) -> list[Any]:
    value = split.get(key) if isinstance(split, dict) else None
    if not isinstance(value, list):
        raise InvalidInputError(f"{files.folder / SPLIT} has no list {key!r}.", mend=_MEND)
    return value
