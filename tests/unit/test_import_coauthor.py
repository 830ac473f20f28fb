"""CoAuthor: accepted suggestions to comparisons, split by time."""

from __future__ import annotations

from typing import Any

import pytest

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Comparison, PreferenceDataset
from idiolect.signals.importers import load_coauthor


def event(user: str, t: int, suggestions: Any, selected: Any = 0, **columns: Any) -> dict[str, Any]:
    usual = {"user": user, "domain": "creative", "t": t, "context": "Once upon a time", "outcome": "selected"}
    return {**usual, "suggestions": suggestions, "selected": selected, **columns}


@pytest.fixture
def load(write_rows):
    return lambda rows: load_coauthor(write_rows("suggestion_events.jsonl.gz", rows))


def texts(dataset: PreferenceDataset, pairs: tuple[Comparison, ...]) -> list[tuple[str, str]]:
    return [(dataset.items[pair.chosen].text, dataset.items[pair.rejected].text) for pair in pairs]


def test_the_suggestion_taken_is_preferred_over_each_other_one_with_the_weight_of_implicit_feedback(load) -> None:
    dataset = load([event("w", 0, ["a", "b", "c"], 1)])
    assert texts(dataset, dataset.comparisons) == [("b", "a"), ("b", "c")]
    assert {(pair.weight, pair.source) for pair in dataset.comparisons} == {(0.5, "accept")}
    assert {(item.domain, item.prompt) for item in dataset.items} == {("creative", "Once upon a time")}


def test_the_prompt_is_the_end_of_the_context(load) -> None:
    dataset = load([event("w", 0, ["a", "b"], context="x" * 100 + "y" * 400), event("w", 1, ["a", "b"], context=" ")])
    assert [item.prompt for item in dataset.items] == ["y" * 400] * 2 + ["Start a new text."] * 2


def test_dismissed_lists_and_lists_of_one_give_nothing_and_are_counted(load) -> None:
    dismissed = event("w", 0, ["p", "q"], None, outcome="dismissed")
    dataset = load([dismissed, event("w", 1, ["alone"]), event("w", 2, ["a", "b"])])
    assert texts(dataset, dataset.comparisons) == [("a", "b")]
    assert [item.text for item in dataset.items] == ["a", "b"]
    assert dataset.report["lists_dismissed"] == 1
    assert dataset.report["lists_of_one_suggestion"] == 1


def test_repeated_and_empty_suggestions_are_not_compared(load) -> None:
    dataset = load([event("w", 0, ["a", "a", "b", "b", ""], 1), event("w", 1, ["", "b"]), event("w", 2, ["c", "d"])])
    assert texts(dataset, dataset.comparisons) == [("a", "b"), ("c", "d")]
    assert dataset.report["lists_suggestions_repeated"] == 2
    assert dataset.report["lists_suggestions_unusable"] == 1
    assert dataset.report["lists_left_out_empty_text"] == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"selected": 2},
        {"selected": -1},
        {"selected": None},
        {"selected": True},
        {"outcome": "skipped"},
        {"suggestions": "a"},
        {"suggestions": ["a", 1]},
        {"t": None},
        {"t": 1.5},
        {"context": None},
        {"user": "\x07"},
    ],
)
def test_a_bad_event_is_refused_with_its_line(columns: dict[str, Any], load) -> None:
    with pytest.raises(InvalidInputError, match=r"suggestion_events\.jsonl\.gz line 2: ") as raised:
        load([event("w", 0, ["a", "b"]), {**event("w", 0, ["a", "b"]), **columns}])
    assert raised.value.mend


@pytest.fixture
def many(load) -> PreferenceDataset:
    """100 writers with 40 lists of three, latest first in the file; 100 more with too few to be new."""
    rows = [event(f"w{w}", t, [f"{w}/{t}/{n}" for n in range(3)]) for t in reversed(range(40)) for w in range(100)]
    few = [event(f"few{w}", t, ["a", "b"]) for t in range(19) for w in range(100)]
    return load(rows + few)


def test_about_one_writer_in_five_of_those_with_enough_pairs_is_new(many) -> None:
    assert 8 <= len(many.new_people) <= 35
    assert all(person.startswith("w") for person in many.new_people)
    assert many.new_people.isdisjoint(pair.person for pair in many.comparisons)


def test_new_writers_adapt_on_what_came_first_and_are_tested_on_what_came_last(many) -> None:
    for person in many.new_people:
        adapt = [pair.occurred_at for pair in many.adaptation if pair.person == person]
        test = [pair.occurred_at for pair in many.evaluation["test_known"] if pair.person == person]
        assert (len(adapt), len(test)) == (50, 2 * 12)
        assert adapt == sorted(adapt)
        assert max(adapt) < min(test)
    assert many.report["adaptation_over_the_limit"] == 6 * len(many.new_people)


def test_a_list_is_never_cut_in_two(load) -> None:
    rows = [event(f"w{w}", t, [f"{t}/{n}" for n in range(7)]) for t in range(4) for w in range(50)]
    dataset = load(rows)
    lists = {part: {(p.person, p.chosen) for p in pairs} for part, pairs in dataset.evaluation.items()}
    assert lists["test_known"].isdisjoint((pair.person, pair.chosen) for pair in dataset.adaptation)
    assert len(dataset.adaptation) == 12 * len(dataset.new_people) > 0
