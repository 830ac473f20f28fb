"""Comparisons that look wrong, counted: contradictions, repetitions, empty or huge texts, one-sided answers, floods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons

HUGE_CHARACTERS = 20_000
FLOOD_PAIRS = 1_000  # of one person
ONE_SIDED_PAIRS = 10  # so many answers or more, and in all of them the longer text (or in all the shorter one) won


def oddities(pairs: Comparisons, items: Sequence[Item]) -> dict[str, int]:
    """By name, zero included, so that two reports can be laid side by side."""
    first_C, second_C = np.minimum(pairs.chosen_C, pairs.rejected_C), np.maximum(pairs.chosen_C, pairs.rejected_C)
    said = np.stack([pairs.person_C, pairs.chosen_C, pairs.rejected_C], axis=1)
    asked = np.stack([pairs.person_C, first_C, second_C], axis=1)
    distinct_said, distinct_asked = len(np.unique(said, axis=0)), len(np.unique(asked, axis=0))
    empty_I = np.array([not item.text.strip() for item in items], dtype=np.bool_)
    huge_I = np.array([len(item.text) > HUGE_CHARACTERS for item in items], dtype=np.bool_)
    pairs_P = np.bincount(pairs.person_C)
    return {
        "pairs": len(pairs),
        "said again": len(pairs) - distinct_said,
        "contradicted by the same person": distinct_said - distinct_asked,
        "a text with itself": int((pairs.chosen_C == pairs.rejected_C).sum()),
        "with an empty text": _touching(pairs, empty_I),
        "with a huge text": _touching(pairs, huge_I),
        "people with over 1,000 pairs": int((pairs_P > FLOOD_PAIRS).sum()),
        "people whose answers all favour one length": _one_sided(pairs, items),
    }


def _touching(pairs: Comparisons, marked_I: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    if not len(pairs):
        return 0
    return int((marked_I[pairs.chosen_C] | marked_I[pairs.rejected_C]).sum())


def _one_sided(pairs: Comparisons, items: Sequence[Item]) -> int:
    length_I = np.array([len(item.text) for item in items], dtype=np.int64)
    if not len(pairs):
        return 0
    side_C = np.sign(length_I[pairs.chosen_C] - length_I[pairs.rejected_C])
    answered_P = np.bincount(pairs.person_C, weights=side_C != 0)
    balance_P = np.bincount(pairs.person_C, weights=side_C)
    return int(((answered_P >= ONE_SIDED_PAIRS) & (np.abs(balance_P) == answered_P)).sum())
