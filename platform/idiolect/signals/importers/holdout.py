"""Which people and items shared training never sees, decided by hashes of ids: the same on every machine, forever.

New people keep their own comparisons: some to adapt to, the others to test on. Test pairs share no item with the
adaptation pairs, so a test can't be passed by remembering an item.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from idiolect.signals.comparison import Comparison, Item

NEW_PEOPLE_SHARE = 0.1
MAX_ADAPTATION_PAIRS = 50
MAX_TEST_PAIRS = 40
_MAX_PAIRS_PER_ITEM = 4
_MAX_ITEMS_PAIRED = 40  # per person and prompt: bounds the candidate pairs, which grow with the square
_DEAL = (0, 1, 0, 1, 0)  # 3 of 5 items to adaptation, 2 to testing

Values = Mapping[int, float]  # one person's value per item


@dataclass(frozen=True, slots=True)
class Holdout:
    new_people: frozenset[str] = frozenset()
    new_items: frozenset[int] = frozenset()
    adaptation: tuple[Comparison, ...] = ()
    evaluation: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HoldoutRule:
    """`min_*` say how much a person must have said about known items to be considered as a new person."""

    source: str
    new_item_share: float
    min_known_items: int
    min_known_pairs: int


def stable_fraction(*parts: str) -> float:
    """A number from 0 to 1 that only depends on `parts`: the first 64 bits of their sha256."""
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hold_out(
    items: Sequence[Item], item_ids: Sequence[str], values: Mapping[str, Values], rule: HoldoutRule
) -> Holdout:
    """`item_ids` are unique, and what items are hashed by: a corrected text does not change the split."""
    new_items = frozenset(
        index for index, item_id in enumerate(item_ids) if stable_fraction("new item", item_id) < rule.new_item_share
    )
    people: set[str] = set()
    parts: dict[str, list[Comparison]] = {"adaptation": [], "test_known": [], "test_new": []}
    for person in values:
        if stable_fraction("new person", person) < NEW_PEOPLE_SHARE:
            pairs = _pairs_of(person, values[person], new_items, items, item_ids, rule)
            if pairs["adaptation"] and pairs["test_known"]:
                people.add(person)
                for part, found in pairs.items():
                    parts[part] += [Comparison(person, *pair, source=rule.source) for pair in found]
    adaptation = tuple(parts.pop("adaptation"))
    evaluation = {part: tuple(pairs) for part, pairs in parts.items() if pairs}
    return Holdout(frozenset(people), new_items, adaptation, evaluation)


def _pairs_of(
    person: str,
    values: Values,
    new_items: frozenset[int],
    items: Sequence[Item],
    item_ids: Sequence[str],
    rule: HoldoutRule,
) -> dict[str, list[tuple[int, int]]]:
    order = {index: stable_fraction("order", person, item_ids[index]) for index in values}
    known = [index for index in values if index not in new_items]
    groups = _by_prompt(known, items)
    possible = sum(_possible_pairs([values[index] for index in group]) for group in groups)
    if len(known) < rule.min_known_items or possible < rule.min_known_pairs:
        return {"adaptation": [], "test_known": []}
    hands = [_deal(group, values, order) for group in groups]
    unseen = _by_prompt([index for index in values if index in new_items], items)
    return {
        "adaptation": _choose_pairs(person, [first for first, _ in hands], values, order, MAX_ADAPTATION_PAIRS),
        "test_known": _choose_pairs(person, [second for _, second in hands], values, order, MAX_TEST_PAIRS),
        "test_new": _choose_pairs(person, unseen, values, order, MAX_TEST_PAIRS),
    }


def _deal(group: Sequence[int], values: Values, order: Mapping[int, float]) -> tuple[list[int], list[int]]:
    """Two disjoint hands, for adaptation and for testing.

    Dealt in order of value, so that both get liked and disliked items however few there are.
    """
    hands: tuple[list[int], list[int]] = ([], [])
    for position, index in enumerate(sorted(group, key=lambda index: (values[index], order[index]))):
        hands[_DEAL[position % len(_DEAL)]].append(index)
    return hands


def _by_prompt(indices: Iterable[int], items: Sequence[Item]) -> list[list[int]]:
    """Only items of the same domain and prompt can be compared."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index in indices:
        groups[items[index].domain, items[index].prompt].append(index)
    return list(groups.values())


def _possible_pairs(values: Sequence[float]) -> int:
    """The number of pairs with different values."""
    ties = sum(count * (count - 1) for count in Counter(values).values())
    return (len(values) * (len(values) - 1) - ties) // 2


def _choose_pairs(
    person: str, groups: Sequence[Sequence[int]], values: Values, order: Mapping[int, float], limit: int
) -> list[tuple[int, int]]:
    """At most `limit` (chosen, rejected) pairs in hashed order, no item in more than _MAX_PAIRS_PER_ITEM."""
    candidates = [
        (a, b) if values[a] > values[b] else (b, a)
        for group in groups
        for a, b in combinations(_spread(group, values, order), 2)
        if values[a] != values[b]
    ]
    candidates.sort(key=lambda pair: stable_fraction("pair", person, str(order[pair[0]]), str(order[pair[1]])))
    used: Counter[int] = Counter()
    chosen: list[tuple[int, int]] = []
    for pair in candidates:
        if len(chosen) < limit and max(used[pair[0]], used[pair[1]]) < _MAX_PAIRS_PER_ITEM:
            used.update(pair)
            chosen.append(pair)
    return chosen


def _spread(group: Sequence[int], values: Values, order: Mapping[int, float]) -> list[int]:
    """The first _MAX_ITEMS_PAIRED of a group, taking turns between values so that rare ones are among them."""
    turn: Counter[float] = Counter()
    rank: dict[int, int] = {}
    for index in sorted(group, key=order.__getitem__):
        rank[index] = turn[values[index]]
        turn[values[index]] += 1
    return sorted(group, key=lambda index: (rank[index], order[index]))[:_MAX_ITEMS_PAIRED]
