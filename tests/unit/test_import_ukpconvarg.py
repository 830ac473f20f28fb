"""UKPConvArg: crowd labels to comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Comparison, PreferenceDataset
from idiolect.signals.importers import load_ukpconvarg
from idiolect.signals.importers.ukpconvarg import CrowdLabel, load_crowd_labels


def argument(arg_id: str, text: str | None = None, side: str = "tea_yes", **columns: Any) -> dict[str, Any]:
    usual = {"arg_id": arg_id, "topic_side": side, "debate": "Tea?", "stance": side.split("_")[1]}
    return {**usual, "text": f"argument {arg_id}" if text is None else text, **columns}


def label(a1: str, a2: str, value: Any, user: str = "u") -> dict[str, Any]:
    return {"fold": "tea_yes", "user": user, "a1": a1, "a2": a2, "value": value}


@pytest.fixture
def load(write_rows):
    def write_and_load(arguments: list[dict[str, Any]], labels: list[dict[str, Any]]) -> PreferenceDataset:
        write_rows("arguments.jsonl.gz", arguments)
        folder: Path = write_rows("crowdsample_folds.jsonl.gz", labels)
        return load_ukpconvarg(folder)

    return write_and_load


ARGUMENTS = [argument("a"), argument("b")]


def test_labels_become_comparisons_and_equal_ones_are_counted(load) -> None:
    dataset = load(ARGUMENTS, [label("a", "b", "a2"), label("a", "b", "a1", "v"), label("b", "a", "equal")])
    assert dataset.comparisons == (Comparison("u", 1, 0), Comparison("v", 0, 1))
    assert dataset.report["labels_equal"] == 1
    assert dataset.items[0].prompt == "Tea?: yes"
    assert dataset.items[0].domain == "tea_yes"
    assert not dataset.new_people
    assert not dataset.evaluation


def test_every_side_of_a_debate_is_a_domain_of_its_own_even_with_long_names(load) -> None:
    sides = ["t" * 70 + "_yes", "t" * 70 + "_no", "Tea!_yes", "tea-_yes"]
    dataset = load([argument(str(n), side=side) for n, side in enumerate(sides)] + ARGUMENTS, [label("a", "b", "a1")])
    assert len({item.domain for item in dataset.items}) == 5


def test_arguments_with_the_same_text_are_one_item_and_labels_between_them_are_counted(load) -> None:
    arguments = [argument("a", "same"), argument("b", "same"), argument("c")]
    dataset = load(arguments, [label("a", "b", "a1"), label("b", "c", "a1"), label("c", "a", "a2")])
    assert len(dataset.items) == 2
    assert dataset.comparisons == (Comparison("u", 0, 1),) * 2
    assert dataset.report["labels_between_identical_texts"] == 1


def test_labels_that_name_no_usable_pair_are_left_out_and_counted(load) -> None:
    arguments = [*ARGUMENTS, argument("blank", " "), argument("other", side="tea_no"), argument("a", "again")]
    good = [label("a", "b", "a1")] * 3
    labels = [label("a", "missing", "a1"), label("a", "blank", "a1"), label("a", "other", "a1")]
    dataset = load(arguments, good + labels)
    assert len(dataset.comparisons) == 3
    report = dataset.report
    assert report["labels_left_out_unknown_argument"] == 1
    assert report["labels_left_out_argument_left_out"] == 1
    assert report["labels_left_out_arguments_of_different_debates"] == 1
    assert report["arguments_left_out_repeated_id"] == 1
    assert report["arguments_left_out_empty_text"] == 1


@pytest.mark.parametrize("value", ["a3", "", 1, None, True])
def test_an_unknown_label_is_refused_with_its_line(value: Any, load) -> None:
    with pytest.raises(InvalidInputError, match=r"crowdsample_folds\.jsonl\.gz line 2: .*value"):
        load(ARGUMENTS, [label("a", "b", "a1"), label("a", "b", value)])


def test_nothing_but_equal_labels_is_refused(load) -> None:
    with pytest.raises(InvalidInputError, match=r"no preference of anybody.*labels_equal 1"):
        load(ARGUMENTS, [label("a", "b", "equal")])


def test_the_benchmark_gets_every_label_also_those_that_decide_nothing(write_rows) -> None:
    write_rows("arguments.jsonl.gz", [argument("a"), argument("b"), argument("twin", "argument a"), argument("c", " ")])
    labels = [("a", "b", "a1"), ("b", "a", "a1"), ("a", "b", "equal"), ("a", "twin", "a2"), ("a", "c", "a1")]
    read = load_crowd_labels(write_rows("crowdsample_folds.jsonl.gz", [label(*row) for row in labels]))
    assert [item.text for item in read.items] == ["argument a", "argument b"]
    assert read.labels == (
        CrowdLabel("u", 0, 1, 1.0),
        CrowdLabel("u", 1, 0, 1.0),
        CrowdLabel("u", 0, 1, 0.5),
        CrowdLabel("u", 0, 0, 0.0),
    )


def test_an_unreadable_label_is_refused_for_the_benchmark_as_well(write_rows) -> None:
    write_rows("arguments.jsonl.gz", ARGUMENTS)
    folder = write_rows("crowdsample_folds.jsonl.gz", [label("a", "b", "both")])
    with pytest.raises(InvalidInputError, match="value 'both' is unknown"):
        load_crowd_labels(folder)
