"""Raw feedback events, and the rules that turn them into comparisons.

A signal refers to an inference that this tenant really served, so texts never come from the feedback itself: only
positions into what was shown. The rules and weights are the table in `comparisons_from`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from typing import Literal

from idiolect.errors import InvalidInputError

SignalKind = Literal["choice", "ranking", "rating", "accept", "dismiss"]


@dataclass(frozen=True, slots=True)
class Inference:
    """What was shown: document digests in the order shown (best first), for one query."""

    id: str
    subject: str | None
    domain: str | None
    query: str  # text digest
    documents: tuple[str, ...]  # text digests, in the order of the request
    shown: tuple[int, ...]  # indices into `documents`, in the order returned
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Signal:
    """`value`: the chosen index (choice, accept, dismiss), an order of indices (ranking), or (index, stars) pairs
    (rating).

    All indices are those of the documents in the request.
    """

    id: str
    inference: Inference
    kind: SignalKind
    value: int | Sequence[int] | Sequence[tuple[int, float]]
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class DerivedComparison:
    chosen: int
    rejected: int
    weight: float


MAX_COMPARISONS_PER_SIGNAL = 20

# Of each comparison that a signal of a kind implies: explicit feedback counts in full, implicit less.
WEIGHTS: Mapping[SignalKind, float] = {"choice": 1.0, "ranking": 1.0, "rating": 1.0, "accept": 0.5, "dismiss": 0.25}


def comparisons_from(signal: Signal) -> tuple[DerivedComparison, ...]:
    """The comparisons that a signal implies, at most MAX_COMPARISONS_PER_SIGNAL of them.

    | kind    | comparisons                                             | weight                       |
    |---------|---------------------------------------------------------|------------------------------|
    | choice  | chosen over every other one                             | 1                            |
    | ranking | each over the next                                      | 1                            |
    | rating  | each over every lower rated one                         | 1                            |
    | accept  | accepted over those shown above it (Joachims 2002)      | 0.5: implicit                |
    | dismiss | the one shown next over the dismissed one               | 0.25: implicit               |

    Raises InvalidInputError for an index that was not in the request.
    """
    shown = signal.inference.shown
    rules: dict[SignalKind, Callable[[object, Sequence[int]], Iterable[DerivedComparison]]] = {
        "choice": _from_choice,
        "ranking": _from_ranking,
        "rating": _from_rating,
        "accept": _from_accept,
        "dismiss": _from_dismiss,
    }
    return tuple(islice(rules[signal.kind](signal.value, shown), MAX_COMPARISONS_PER_SIGNAL))


def _index(value: object, shown: Sequence[int]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in shown:
        raise InvalidInputError(
            f"document index {value!r} was not shown in this inference.",
            mend=f"Use one of {sorted(shown)[:20]}.",
        )
    return value


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInputError(
            f"value {value!r} is not a list.", mend="Send a list; see the feedback kinds in the README."
        )
    return value


def _from_choice(value: object, shown: Sequence[int]) -> list[DerivedComparison]:
    chosen = _index(value, shown)
    return [DerivedComparison(chosen, other, WEIGHTS["choice"]) for other in shown if other != chosen]


def _from_ranking(value: object, shown: Sequence[int]) -> list[DerivedComparison]:
    order = [_index(index, shown) for index in _sequence(value)]
    if len(set(order)) != len(order):
        raise InvalidInputError("a ranking names a document twice.", mend="Name each at most once, best first.")
    return [DerivedComparison(better, worse, WEIGHTS["ranking"]) for better, worse in pairwise(order)]


def _from_rating(value: object, shown: Sequence[int]) -> Iterable[DerivedComparison]:
    """Checked at once, paired on demand: a thousand ratings are half a million pairs."""
    ratings: dict[int, float] = {}
    for entry in _sequence(value):
        if not isinstance(entry, list | tuple) or len(entry) != 2 or isinstance(entry[1], bool):
            raise InvalidInputError(f"rating {entry!r} is not a pair.", mend="Send [[document index, stars], ...].")
        stars = entry[1]
        if not isinstance(stars, int | float) or not 0 <= stars <= 100:
            raise InvalidInputError(f"rating value {stars!r} is out of range.", mend="Send a number from 0 to 100.")
        ratings[_index(entry[0], shown)] = float(stars)
    return (DerivedComparison(a, b, WEIGHTS["rating"]) for a in ratings for b in ratings if ratings[a] > ratings[b])


def _from_accept(value: object, shown: Sequence[int]) -> list[DerivedComparison]:
    accepted = _index(value, shown)
    return [DerivedComparison(accepted, above, WEIGHTS["accept"]) for above in shown[: shown.index(accepted)]]


def _from_dismiss(value: object, shown: Sequence[int]) -> list[DerivedComparison]:
    dismissed = _index(value, shown)
    below = shown[shown.index(dismissed) + 1 :][:1]
    return [DerivedComparison(better, dismissed, WEIGHTS["dismiss"]) for better in below]
