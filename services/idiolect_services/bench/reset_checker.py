"""What must never be seen once a reset was acknowledged, judged from the outside alone.

Nothing here knows how Idiolect works: it reads a log of what clients sent and received, in the order in which they
did. What a server says about itself is not believed either: the scores themselves show whose adapter made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Published:
    """An adapter with weights that no other has."""

    user: str
    adapter: str
    generation: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Stands in the log behind every answer that had reached the client when the acknowledgement did."""

    user: str
    generation: int


@dataclass(frozen=True, slots=True)
class Answered:
    """`scores` are those of one fixed question, so they depend on nothing but the adapter."""

    user: str
    generation: int | None
    adapter: str | None
    scores: tuple[float, ...]


Event: TypeAlias = Published | Acknowledged | Answered


@dataclass(frozen=True, slots=True)
class Violation:
    position: int  # in the log
    user: str
    what: str


def violations(log: Sequence[Event]) -> list[Violation]:
    origin = {event.adapter: event for event in log if isinstance(event, Published)}
    maker = _makers(log)
    fence: dict[str, int] = {}
    found: list[Violation] = []
    for position, event in enumerate(log):
        if isinstance(event, Acknowledged):
            fence[event.user] = max(event.generation, fence.get(event.user, 0))
        elif isinstance(event, Answered):
            wrongs = _wrongs(event, fence.get(event.user, 0), origin, maker)
            found.extend(Violation(position, event.user, what) for what in wrongs)
    return found


def _makers(log: Sequence[Event]) -> dict[tuple[float, ...], str]:
    """Which adapter makes which scores: the one that was named with them first."""
    maker: dict[tuple[float, ...], str] = {}
    for event in log:
        if isinstance(event, Answered) and event.adapter is not None:
            maker.setdefault(event.scores, event.adapter)
    return maker


def _wrongs(
    answer: Answered, fence: int, origin: dict[str, Published], maker: dict[tuple[float, ...], str]
) -> list[str]:
    wrongs = []
    if answer.generation is not None and answer.generation < fence:
        wrongs.append(f"says generation {answer.generation}, but {fence} was acknowledged")
    if answer.adapter is not None:
        made = origin.get(answer.adapter)
        if made is None or made.user != answer.user:
            wrongs.append(f"adapter {answer.adapter} is not this person's")
        elif made.generation < fence:
            wrongs.append(f"adapter {answer.adapter} is of generation {made.generation}, but {fence} was acknowledged")
    made_by = maker.get(answer.scores)
    if made_by != answer.adapter:
        wrongs.append(f"names adapter {answer.adapter}, but its scores are those of {made_by}")
    return wrongs
