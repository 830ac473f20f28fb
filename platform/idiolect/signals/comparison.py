"""The words of preference data: items, ratings, comparisons, and a data set of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from idiolect.ids import text_digest


@dataclass(frozen=True, slots=True)
class Item:
    """Something that a person can prefer: a candidate `text` for a `prompt` on one surface (`domain`).

    `task` is what kind of thing was asked for, in the data's own words (`reply`, `summary`); empty where nobody said.
    """

    domain: str
    prompt: str
    text: str
    language: str = "en"
    task: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.domain, text_digest(self.prompt), text_digest(self.text))


@dataclass(frozen=True, slots=True)
class Rating:
    """One person's value for one item (an index into the data set's items). Higher is liked more."""

    person: str
    item: int
    value: float
    occurred_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One person preferred `chosen` over `rejected` (indices into the data set's items, same domain and prompt)."""

    person: str
    chosen: int
    rejected: int
    weight: float = 1.0
    source: str = "choice"
    occurred_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PreferenceDataset:
    """What an importer reads from a published data set.

    `ratings` and `comparisons` train the shared models. People in `new_people` are not among them: their
    `adaptation` comparisons train only their own adapter, and `evaluation[part]` is never trained on.
    `report` counts what was read and what was left out, and why.
    """

    name: str
    digest: str  # sha256 over the files that were read
    items: tuple[Item, ...]
    ratings: tuple[Rating, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    new_people: frozenset[str] = frozenset()
    adaptation: tuple[Comparison, ...] = ()
    evaluation: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)
    report: Mapping[str, int] = field(default_factory=dict)
