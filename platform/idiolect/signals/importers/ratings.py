"""Any ratings: one row per person and item, as JSON lines or CSV, gzipped or not.

Columns: user, item, score (a number, higher is better), and optional domain (default `ratings`), prompt (default
`Rate this`), text (default: the item's name), language (a tag such as `pt-BR`, default `en`) and task (a short name). A
folder must hold `ratings.jsonl.gz`. The last rating of a person for an item counts.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from pathlib import Path

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Item, PreferenceDataset, Rating
from idiolect.signals.importers.building import DomainNames, ItemTable, People, build_dataset, unusable_text
from idiolect.signals.importers.holdout import HoldoutRule, hold_out
from idiolect.signals.importers.reading import DataFiles, stat_or_none
from idiolect.stores.ports import Progress, no_progress

RATINGS = "ratings.jsonl.gz"
DEFAULT_DOMAIN = "ratings"
DEFAULT_PROMPT = "Rate this"
_ENDINGS = (".jsonl.gz", ".jsonl", ".csv.gz", ".csv")
_FEW_ITEMS = 100  # too few to hold any back
_NEW_ITEM_SHARE = 0.2

Values = dict[str, dict[int, float]]  # person -> item -> score


def load_ratings(path: Path, progress: Progress = no_progress) -> PreferenceDataset:
    """`path` is a file of ratings, or a folder with one. Raises InvalidInputError."""
    found = stat_or_none(path)
    is_folder = found is not None and stat.S_ISDIR(found.st_mode)
    folder, name = (path, RATINGS) if is_folder else (path.parent, path.name)
    files = DataFiles(folder, (name,), progress)
    if not name.endswith(_ENDINGS):
        raise InvalidInputError(f"{path} is of an unknown kind.", mend=f"Its name must end in {', '.join(_ENDINGS)}.")
    items, item_ids, values = _read(files, name)
    share = _NEW_ITEM_SHARE if len(items) >= _FEW_ITEMS else 0.0
    rule = HoldoutRule(source="rating", new_item_share=share, min_known_items=8, min_known_pairs=1)
    holdout = hold_out(items, item_ids, values, rule)
    ratings = [
        Rating(person, item, value)
        for person, given in values.items()
        if person not in holdout.new_people
        for item, value in given.items()
        if item not in holdout.new_items
    ]
    return build_dataset("ratings", files, items, ratings=ratings, holdout=holdout)


def _read(files: DataFiles, name: str) -> tuple[list[Item], list[str], Values]:
    source = files.source(name, "ratings")
    people, names, table, item_ids = People(), DomainNames(), ItemTable(), list[str]()
    values: Values = defaultdict(dict)
    for row in source:
        person, item_name, score = people.read(row), row.identifier("item"), row.number("score")
        item = Item(
            domain=names[row.text_or("domain", DEFAULT_DOMAIN)],
            prompt=row.text_or("prompt", DEFAULT_PROMPT),
            text=row.text_or("text", item_name),
            language=row.language("language", "en"),
            task=row.name_or("task", ""),
        )
        reason = unusable_text(item.text) or unusable_text(item.prompt)
        if reason:
            source.leave_out(reason)
            continue
        index = table.add(item)
        if index == len(item_ids):
            item_ids.append("\x1f".join(item.key))
        if index in values[person]:
            source.count("replaced_by_a_later_one")
        values[person][index] = score
    return table.items, item_ids, values
