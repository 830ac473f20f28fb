"""UKPConvArg: which of two arguments is more convincing, by crowd workers, in 16 debates with two sides each.

`arguments.jsonl.gz` has arg_id, topic_side, debate, stance, text; `crowdsample_folds.jsonl.gz` has user, a1, a2 and
value (a1, a2 or equal). A topic_side is a domain, and also a fold of the published protocol: a benchmark leaves one
domain out, so there is no split here. Arguments of one side with the same text are one item; the few labels between
such two say nothing and are counted. The published protocol counts every label of a worker, also those that decide
nothing, so the benchmark reads them all (`load_crowd_labels`); an import keeps only what can be learned from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.signals.importers.building import DomainNames, ItemTable, People, build_dataset, unusable_text
from idiolect.signals.importers.reading import DataFiles, Source
from idiolect.signals.importers.rows import Row
from idiolect.stores.ports import Progress, no_progress

ARGUMENTS = "arguments.jsonl.gz"
LABELS = "crowdsample_folds.jsonl.gz"
_EQUAL = 0.5
_VALUES = {"a1": 1.0, "a2": 0.0, "equal": _EQUAL}


@dataclass(frozen=True, slots=True)
class CrowdLabel:
    """What one worker said about two arguments of one side (indices of items, perhaps twice the same)."""

    person: str
    first: int
    second: int
    value: float  # 1: the first is more convincing, 0: the second, 0.5: equal


@dataclass(frozen=True, slots=True)
class CrowdLabels:
    """Every usable label. The fold of a label is the domain of its items."""

    items: tuple[Item, ...]
    labels: tuple[CrowdLabel, ...]
    digest: str


def load_ukpconvarg(path: Path, progress: Progress = no_progress) -> PreferenceDataset:
    """Raises InvalidInputError."""
    files = DataFiles(path, (ARGUMENTS, LABELS), progress)
    items, index = _read_arguments(files)
    source = files.source(LABELS, "labels")
    comparisons = []
    for label in _read_labels(source, items, index):
        if label.value == _EQUAL:
            source.count("equal")
        elif label.first == label.second:
            source.count("between_identical_texts")
        else:
            chosen, rejected = (label.first, label.second) if label.value == 1 else (label.second, label.first)
            comparisons.append(Comparison(label.person, chosen, rejected))
    return build_dataset("ukpconvarg", files, items, comparisons=comparisons)


def load_crowd_labels(path: Path, progress: Progress = no_progress) -> CrowdLabels:
    """What the published protocol needs. Raises InvalidInputError."""
    files = DataFiles(path, (ARGUMENTS, LABELS), progress)
    items, index = _read_arguments(files)
    labels = tuple(_read_labels(files.source(LABELS, "labels"), items, index))
    return CrowdLabels(tuple(items), labels, files.digest())


def _read_arguments(files: DataFiles) -> tuple[list[Item], dict[str, int | None]]:
    """Items, and the item of each argument id: None if the argument was left out."""
    source = files.source(ARGUMENTS, "arguments")
    names, table = DomainNames(), ItemTable()
    index: dict[str, int | None] = {}
    for row in source:
        argument = row.identifier("arg_id")
        item = _argument(row, names[row.text("topic_side")])
        reason = unusable_text(item.text) or unusable_text(item.prompt)
        if argument in index:
            source.leave_out("repeated_id")
        elif reason:
            index[argument] = None
            source.leave_out(reason)
        else:
            index[argument] = table.add(item)
    return table.items, index


def _argument(row: Row, domain: str) -> Item:
    return Item(domain, prompt=f"{row.text('debate')}: {row.text('stance')}", text=row.text("text"))


def _read_labels(source: Source, items: list[Item], index: dict[str, int | None]) -> Iterator[CrowdLabel]:
    people = People()
    for row in source:
        person, value = people.read(row), _value(row)
        first, second = row.identifier("a1"), row.identifier("a2")
        a1, a2 = index.get(first), index.get(second)
        if a1 is None or a2 is None:
            unknown = first not in index or second not in index
            source.leave_out("unknown_argument" if unknown else "argument_left_out")
        elif (items[a1].domain, items[a1].prompt) != (items[a2].domain, items[a2].prompt):
            source.leave_out("arguments_of_different_debates")
        else:
            yield CrowdLabel(person, a1, a2, value)


def _value(row: Row) -> float:
    value = row.text("value")
    if value not in _VALUES:
        raise row.wrong(f"value {value[:40]!r} is unknown.", "It must be a1, a2 or equal.")
    return _VALUES[value]
