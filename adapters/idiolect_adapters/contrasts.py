"""What the directions of a model mean, in texts: those of declared public data that lie furthest apart along each.

Chosen when the model is trained, and part of it. Only items that public people voted on are ever candidates, and of
those the better known half, so that an extreme is not chance. A feature of a text that nobody declared public can't get
in here: training never sees one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idiolect.canonical import canonical_json, parse_json_object
from idiolect.errors import CorruptArtifactError

CONTRASTS_FILE = "contrasts.json"
EXAMPLES, MAX_CHARACTERS = 3, 200
POOL_SHARE, POOL_LEAST = 0.05, 12  # of the candidates, from which examples of different prompts are taken

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Example:
    """Data, whatever it says: show it escaped, and never follow it. One line, no control characters."""

    prompt: str
    text: str

    def to_json(self) -> dict[str, str]:
        return {"prompt": self.prompt, "text": self.text}


@dataclass(frozen=True, slots=True)
class Contrast:
    """A weight above 0 lifts what is like `high`, one below 0 what is like `low`. Both empty: nothing told apart."""

    high: tuple[Example, ...] = ()
    low: tuple[Example, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"high": [e.to_json() for e in self.high], "low": [e.to_json() for e in self.low]}


@dataclass(frozen=True, slots=True)
class Contrasts:
    """One for each direction of the user basis and of the domain basis; none for models without."""

    user: tuple[Contrast, ...] = ()
    domain: tuple[Contrast, ...] = ()

    def dump(self) -> bytes:
        return canonical_json({"user": [c.to_json() for c in self.user], "domain": [c.to_json() for c in self.domain]})

    @staticmethod
    def load(data: bytes, user_rank: int, domain_rank: int) -> Contrasts:
        """Raises CorruptArtifactError for anything but what `dump` writes."""
        said = parse_json_object(data, what=CONTRASTS_FILE)
        try:
            found = Contrasts(*(tuple(_contrast(one) for one in said[basis]) for basis in ("user", "domain")))
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(f"{CONTRASTS_FILE} is damaged: {error}.") from error
        if (len(found.user), len(found.domain)) != (user_rank, domain_rank):
            raise CorruptArtifactError(f"{CONTRASTS_FILE} does not have one contrast for each direction.")
        return found


def _contrast(data: Mapping[str, Any]) -> Contrast:
    return Contrast(*(tuple(Example(one["prompt"], one["text"]) for one in data[end]) for end in ("high", "low")))


def choose_contrasts(
    projected_I_P: FloatArray, user_rank: int, pairs: Sequence[tuple[str, str]], votes_I: FloatArray
) -> Contrasts:
    """`projected_I_P` is [score, user directions, domain directions] of public items, `votes_I` how much was said of
    each, no person's flood counting for much. Candidates are those that one whole voice judged, if there are any, at
    least as often as the median one of them: else who floods texts of their own would have them shown to everybody."""
    known = np.flatnonzero(votes_I >= 1) if (votes_I >= 1).any() else np.flatnonzero(votes_I > 0)
    if len(known):
        known = known[votes_I[known] >= np.median(votes_I[known])]
    found = [
        _along(projected_I_P[known, column], [pairs[i] for i in known.tolist()]) for column in _columns(projected_I_P)
    ]
    return Contrasts(tuple(found[:user_rank]), tuple(found[user_rank:]))


def _columns(projected_I_P: FloatArray) -> range:
    return range(1, projected_I_P.shape[1])


def _along(value_N: FloatArray, pairs: Sequence[tuple[str, str]]) -> Contrast:
    if len(value_N) < 2 or float(np.ptp(value_N)) < 1e-9:
        return Contrast()
    order = np.argsort(value_N, kind="stable")
    size = min(max(int(POOL_SHARE * len(order)), POOL_LEAST), len(order) // 2)
    low, high = order[:size], order[::-1][:size]
    return Contrast(_examples([pairs[i] for i in high.tolist()]), _examples([pairs[i] for i in low.tolist()]))


def _examples(pool: Sequence[tuple[str, str]]) -> tuple[Example, ...]:
    """The first ones of `pool`, those of new prompts before those of one that was there already."""
    shown = list(dict.fromkeys(Example(readable(prompt), readable(text)) for prompt, text in pool))
    first = {example.prompt: example for example in reversed(shown)}.values()
    leading = [example for example in shown if example in first]
    rest = [example for example in shown if example not in first]
    return tuple([*leading, *rest][:EXAMPLES])


def readable(text: str) -> str:
    """One line of at most MAX_CHARACTERS, without what could steer a terminal or turn the direction of writing."""
    spaced = " ".join(text[: 8 * MAX_CHARACTERS].split())
    plain = "".join(char for char in spaced if char == " " or unicodedata.category(char)[0] not in "CZ")
    return plain if len(plain) <= MAX_CHARACTERS else plain[: MAX_CHARACTERS - 1].rstrip() + "…"
