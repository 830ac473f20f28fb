"""The table of `comparisons_from`, row by row, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import InvalidInputError
from idiolect.signals.events import MAX_COMPARISONS_PER_SIGNAL, Inference, Signal, SignalKind, comparisons_from

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KINDS: tuple[SignalKind, ...] = ("choice", "ranking", "rating", "accept", "dismiss")


def derived(kind: SignalKind, value: Any, shown: tuple[int, ...] = (2, 0, 1)) -> list[tuple[int, int, float]]:
    """`shown`: the documents in the order they were returned, best first."""
    documents = tuple(f"{index:064x}" for index in range(max(shown, default=-1) + 1))
    inference = Inference("i1", "ann", "chat", "q" * 64, documents, shown, NOW)
    return [(c.chosen, c.rejected, c.weight) for c in comparisons_from(Signal("s1", inference, kind, value, NOW))]


def test_a_choice_is_over_every_other_document() -> None:
    assert derived("choice", 0) == [(0, 2, 1.0), (0, 1, 1.0)]
    assert derived("choice", 4, (4,)) == []


def test_a_ranking_is_each_over_the_next() -> None:
    assert derived("ranking", [1, 2, 0]) == [(1, 2, 1.0), (2, 0, 1.0)]
    assert derived("ranking", (0, 1)) == [(0, 1, 1.0)]
    assert derived("ranking", [0]) == []


def test_a_rating_is_each_over_every_lower_rated_one() -> None:
    assert derived("rating", [[0, 5], [1, 3], [2, 5]]) == [(0, 1, 1.0), (2, 1, 1.0)]
    assert derived("rating", [(0, 1), (1, 1)]) == []
    assert derived("rating", [(0, 0), (1, 100)]) == [(1, 0, 1.0)]


def test_an_accept_is_over_those_that_were_shown_above_at_half_the_weight() -> None:
    assert derived("accept", 1) == [(1, 2, 0.5), (1, 0, 0.5)]
    assert derived("accept", 2) == []


def test_a_dismissal_prefers_the_one_shown_next_at_a_quarter_of_the_weight() -> None:
    assert derived("dismiss", 2) == [(0, 2, 0.25)]
    assert derived("dismiss", 1) == []


def test_one_signal_gives_a_bounded_number_of_comparisons() -> None:
    shown = tuple(range(1000))
    for kind, value in (
        ("choice", 7),
        ("ranking", list(shown)),
        ("rating", [[i, i % 101] for i in shown]),
        ("accept", 999),
    ):
        assert len(derived(kind, value, shown)) == MAX_COMPARISONS_PER_SIGNAL


@pytest.mark.parametrize("kind", ["choice", "accept", "dismiss"])
@pytest.mark.parametrize("value", [3, -1, 10**30, "0", 0.0, None, True, [0], [[0]]])
def test_an_index_that_was_not_shown_is_refused(kind: SignalKind, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="was not shown"):
        derived(kind, value)


def test_a_document_that_was_sent_but_not_shown_can_not_be_chosen() -> None:
    with pytest.raises(InvalidInputError, match="document index 1 was not shown"):
        derived("choice", 1, (2, 0))


@pytest.mark.parametrize("value", [[], (), "012", 0, None, {"0": 1}, [0, 0], [0, 3], [0, True], [0, "1"], [[0]]])
def test_a_ranking_that_is_no_list_of_different_documents_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        derived("ranking", value)


@pytest.mark.parametrize(
    "entry",
    [
        0,
        [0],
        [0, 1, 2],
        "01",
        [0, True],
        [0, "5"],
        [0, None],
        [0, -1],
        [0, 101],
        [0, float("nan")],
        [0, float("inf")],
        [3, 1],
        ["0", 1],
        [True, 1],
    ],
)
def test_a_rating_that_is_no_pair_of_index_and_stars_is_refused(entry: Any) -> None:
    with pytest.raises(InvalidInputError):
        derived("rating", [[0, 5], entry])


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(st.sampled_from(KINDS), json_like, st.permutations(range(4)))
def test_any_value_is_refused_or_gives_comparisons_of_what_was_shown(
    kind: SignalKind, value: Any, order: list[int]
) -> None:
    try:
        found = derived(kind, value, tuple(order))
    except InvalidInputError:
        return
    for chosen, rejected, weight in found:
        assert chosen != rejected
        assert {chosen, rejected} <= set(order)
        assert 0.0 < weight <= 1.0
