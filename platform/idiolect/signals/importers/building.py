"""What every importer builds on the way from rows to a data set: names of domains, people, items, the data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from idiolect.errors import InvalidInputError
from idiolect.ids import check_name, check_subject_id, text_digest
from idiolect.signals.comparison import Comparison, Item, PreferenceDataset, Rating
from idiolect.signals.importers.holdout import Holdout
from idiolect.signals.importers.reading import DataFiles
from idiolect.signals.importers.rows import Row

MAX_TEXT_CHARS = 20_000
FLOOD = 1_000  # answers of one person
ALIKE = 10  # so many answers or more, all of the same value
_MAX_NAME_CHARS = 64
_SUFFIX_CHARS = 8
# Legal in JSON, but not every database can store NUL, and none a lone surrogate, as UTF-8 text.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def unusable_text(text: str) -> str | None:
    """Why nothing can be learned from `text`, as a word for the report; None if it is in order."""
    if not text.strip():
        return "empty_text"
    if len(text) > MAX_TEXT_CHARS:
        return "text_too_long"
    if _UNSTORABLE.search(text):
        return "text_not_unicode"
    return None


class DomainNames:
    """Valid, unique domain names for the names that a data set uses; one that is valid and not taken is kept.

    A name that had to be cut, that has no usable character, or whose cleaned form is taken gets a suffix from its hash.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def __getitem__(self, raw: str) -> str:
        if raw not in self._names:
            self._names[raw] = self._new(raw)
            self._taken.add(self._names[raw])
        return self._names[raw]

    def _new(self, raw: str) -> str:
        plain = re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9._-]+", "-", raw.lower())).strip("._-")
        if plain and len(plain) <= _MAX_NAME_CHARS and plain not in self._taken:
            return check_name("domain", plain)
        short = plain[: _MAX_NAME_CHARS - _SUFFIX_CHARS - 1].rstrip("._-") or "domain"
        return check_name("domain", f"{short}-{text_digest(raw)[:_SUFFIX_CHARS]}")


class People:
    """People's ids, checked once and held once however many rows name them."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def read(self, row: Row, column: str = "user") -> str:
        raw = row.identifier(column)
        known = self._ids.get(raw)
        if known is not None:
            return known
        try:
            self._ids[raw] = check_subject_id(raw)
        except InvalidInputError as error:
            raise row.wrong(error.message, error.mend) from error
        return raw


class ItemTable:
    """Items in order of first appearance. The same text for the same prompt and domain is one item."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._index: dict[tuple[str, str, str], int] = {}

    def add(self, item: Item) -> int:
        key = (item.domain, item.prompt, item.text)
        index = self._index.setdefault(key, len(self.items))
        if index == len(self.items):
            self.items.append(item)
        return index


def build_dataset(
    name: str,
    files: DataFiles,
    items: Sequence[Item],
    *,
    ratings: Sequence[Rating] = (),
    comparisons: Sequence[Comparison] = (),
    holdout: Holdout | None = None,
    options: Sequence[str] = (),
) -> PreferenceDataset:
    """Raises InvalidInputError if there is nothing to learn from."""
    if not ratings and not comparisons:
        raise InvalidInputError(
            f"{files.folder} holds no preference of anybody that could be used ({_told(files.counts)}).",
            mend="Check that the files are of this format and belong together.",
        )
    holdout = holdout or Holdout()
    return PreferenceDataset(
        name=name,
        digest=files.digest(*options),
        items=tuple(items),
        ratings=tuple(ratings),
        comparisons=tuple(comparisons),
        new_people=holdout.new_people,
        adaptation=holdout.adaptation,
        evaluation=holdout.evaluation,
        report={
            **files.counts,
            "items": len(items),
            "ratings": len(ratings),
            "comparisons": len(comparisons),
            "people": len({rating.person for rating in ratings} | {pair.person for pair in comparisons}),
            **_odd_people(ratings, comparisons),
            "new_people": len(holdout.new_people),
            "adaptation": len(holdout.adaptation),
            **{part: len(pairs) for part, pairs in holdout.evaluation.items()},
        },
    )


def _odd_people(ratings: Sequence[Rating], comparisons: Sequence[Comparison]) -> dict[str, int]:
    """Nothing is learned from answers that are all alike, and a bounded amount from any number of them; both are said
    because they are what a bot does."""
    said = Counter(rating.person for rating in ratings)
    unlike = {rating.person for rating, first in _first_values(ratings) if rating.value != first}
    alike = sum(count >= ALIKE and person not in unlike for person, count in said.items())
    said.update(pair.person for pair in comparisons)
    return {
        f"people_with_over_{FLOOD}_answers": sum(count > FLOOD for count in said.values()),
        "people_whose_answers_are_all_alike": alike,
    }


def _first_values(ratings: Sequence[Rating]) -> Iterator[tuple[Rating, float]]:
    """Each rating with the value of the same person's first."""
    first: dict[str, float] = {}
    for rating in ratings:
        yield rating, first.setdefault(rating.person, rating.value)


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "all files are empty"
