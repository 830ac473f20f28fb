"""UKPConvArg: which of two arguments is more convincing, by crowd workers, in 16 debates with two sides each.

`arguments.jsonl.gz` has arg_id, topic_side, debate, stance, text; `crowdsample_folds.jsonl.gz` has user, a1, a2 and
value (a1, a2 or equal). A topic_side is a domain, and also a fold of the published protocol: a benchmark leaves one
domain out, so there is no split here. Arguments of one side with the same text are one item; the few labels between
such two say nothing and are counted.
"""

from __future__ import annotations

from pathlib import Path

from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.signals.importers.building import DomainNames, ItemTable, People, build_dataset, unusable_text
from idiolect.signals.importers.reading import DataFiles
from idiolect.signals.importers.rows import Row
from idiolect.stores.ports import Progress, no_progress

ARGUMENTS = "arguments.jsonl.gz"
LABELS = "crowdsample_folds.jsonl.gz"


def load_ukpconvarg(path: Path, progress: Progress = no_progress) -> PreferenceDataset:
    """Raises InvalidInputError."""
    files = DataFiles(path, (ARGUMENTS, LABELS), progress)
    items, index = _read_arguments(files)
    comparisons = _read_labels(files, items, index)
    return build_dataset("ukpconvarg", files, items, comparisons=comparisons)


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


def _read_labels(files: DataFiles, items: list[Item], index: dict[str, int | None]) -> list[Comparison]:
    source = files.source(LABELS, "labels")
    people = People()
    comparisons = []
    for row in source:
        person, value = people.read(row), _value(row)
        first, second = row.identifier("a1"), row.identifier("a2")
        a1, a2 = index.get(first), index.get(second)
        if a1 is None or a2 is None:
            unknown = first not in index or second not in index
            source.leave_out("unknown_argument" if unknown else "argument_left_out")
        elif (items[a1].domain, items[a1].prompt) != (items[a2].domain, items[a2].prompt):
            source.leave_out("arguments_of_different_debates")
        elif value == "equal":
            source.count("equal")
        elif a1 == a2:
            source.count("between_identical_texts")
        else:
            chosen, rejected = (a1, a2) if value == "a1" else (a2, a1)
            comparisons.append(Comparison(person, chosen, rejected))
    return comparisons


def _value(row: Row) -> str:
    value = row.text("value")
    if value not in ("a1", "a2", "equal"):
        raise row.wrong(f"value {value[:40]!r} is unknown.", "It must be a1, a2 or equal.")
    return value
