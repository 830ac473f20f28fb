"""CoAuthor: suggestions shown to writers, and which one they took. Implicit feedback.

`suggestion_events.jsonl.gz` has user, domain, t, context, suggestions, outcome (selected or dismissed), selected (an
index). The end of the context is the prompt; the suggestion taken was preferred over each other one shown, with the
weight of implicit feedback. A dismissed list says nothing about which of its suggestions is better.

One writer in five of those with enough comparisons is new: the first 70% by time adapt, the rest tests. Lists are
never cut in two, as the taken suggestion of a list would then be known in the test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path

from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.signals.importers.building import DomainNames, ItemTable, People, build_dataset, unusable_text
from idiolect.signals.importers.holdout import MAX_ADAPTATION_PAIRS, Holdout, stable_fraction
from idiolect.signals.importers.reading import DataFiles, Source
from idiolect.signals.importers.rows import Row, moment
from idiolect.stores.ports import Progress, no_progress

EVENTS = "suggestion_events.jsonl.gz"
PROMPT_CHARS = 400
START_OF_TEXT = "Start a new text."  # the prompt where nothing was written yet
SOURCE = "accept"
WEIGHT = 0.5  # as for `accept` in signals/events.py
NEW_PEOPLE_SHARE = 0.2
MIN_PAIRS = 20
ADAPTATION_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class _Taken:
    """One list: the item taken, and those not taken."""

    chosen: int
    rejected: tuple[int, ...]
    occurred_at: datetime


def load_coauthor(path: Path, progress: Progress = no_progress) -> PreferenceDataset:
    """Raises InvalidInputError."""
    files = DataFiles(path, (EVENTS,), progress)
    items, lists = _read_events(files)
    for taken in lists.values():
        taken.sort(key=lambda one: one.occurred_at)
    holdout = _split(files, lists)
    shared = [
        comparison
        for person, taken in lists.items()
        if person not in holdout.new_people
        for comparison in _comparisons(person, taken)
    ]
    return build_dataset("coauthor", files, items, comparisons=shared, holdout=holdout)


def _read_events(files: DataFiles) -> tuple[list[Item], dict[str, list[_Taken]]]:
    source = files.source(EVENTS, "lists")
    people, names, table = People(), DomainNames(), ItemTable()
    lists: dict[str, list[_Taken]] = defaultdict(list)
    for row in source:
        person, domain = people.read(row), names[row.text("domain")]
        prompt, time = _prompt(row), moment(row.milliseconds("t"))
        texts = _taken_first(source, row, prompt)
        if texts:
            chosen, *rejected = (table.add(Item(domain, prompt, text)) for text in texts)
            lists[person].append(_Taken(chosen, tuple(rejected), time))
    return table.items, lists


def _taken_first(source: Source, row: Row, prompt: str) -> list[str]:
    """The suggestion taken and then the others; empty if nothing was preferred over anything."""
    texts = row.texts("suggestions")
    selected = _selected(row, texts)
    if selected is None:
        source.count("dismissed")
        return []
    reason = unusable_text(texts[selected]) or unusable_text(prompt)
    if reason:
        source.leave_out(reason)
        return []
    others = _others(source, texts, selected)
    if not others:
        source.count("of_one_suggestion")
        return []
    return [texts[selected], *others]


def _prompt(row: Row) -> str:
    context = row.text("context")[-PROMPT_CHARS:]
    return context if context.strip() else START_OF_TEXT


def _selected(row: Row, texts: Sequence[str]) -> int | None:
    """None for a dismissed list."""
    outcome = row.text("outcome")
    if outcome == "dismissed":
        return None
    if outcome != "selected":
        raise row.wrong(f"outcome {outcome[:40]!r} is unknown.", "It must be selected or dismissed.")
    selected = row.integer("selected")
    if not 0 <= selected < len(texts):
        raise row.wrong(f"selected {selected} is not one of {len(texts)} suggestions.", "Count from 0.")
    return selected


def _others(source: Source, texts: Sequence[str], selected: int) -> list[str]:
    """The usable texts that were not taken, each once."""
    usable = [text for i, text in enumerate(texts) if i != selected and not unusable_text(text)]
    others = [text for text in dict.fromkeys(usable) if text != texts[selected]]
    source.count("suggestions_unusable", len(texts) - 1 - len(usable))
    source.count("suggestions_repeated", len(usable) - len(others))
    return others


def _comparisons(person: str, lists: Sequence[_Taken]) -> list[Comparison]:
    return [
        Comparison(person, taken.chosen, rejected, WEIGHT, SOURCE, taken.occurred_at)
        for taken in lists
        for rejected in taken.rejected
    ]


def _split(files: DataFiles, lists: dict[str, list[_Taken]]) -> Holdout:
    people: set[str] = set()
    adaptation: list[Comparison] = []
    test: list[Comparison] = []
    for person, taken in lists.items():
        cut = _cut(taken)
        if stable_fraction("new person", person) < NEW_PEOPLE_SHARE and 0 < cut < len(taken):
            people.add(person)
            early = _comparisons(person, taken[:cut])
            adaptation += early[:MAX_ADAPTATION_PAIRS]
            files.counts["adaptation_over_the_limit"] += len(early[MAX_ADAPTATION_PAIRS:])
            test += _comparisons(person, taken[cut:])
    return Holdout(frozenset(people), frozenset(), tuple(adaptation), {"test_known": tuple(test)} if test else {})


def _cut(lists: Sequence[_Taken]) -> int:
    """How many of the lists, in order of time, make up the adaptation share; 0 if the person has too few pairs."""
    pairs = list(accumulate(len(taken.rejected) for taken in lists))
    if not pairs or pairs[-1] < MIN_PAIRS:
        return 0
    return sum(1 for upto in pairs if upto <= ADAPTATION_SHARE * pairs[-1])
