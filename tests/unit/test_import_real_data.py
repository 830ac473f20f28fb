"""The importers on the real data: the counts that its README states, and no leak in its published split."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from idiolect.ids import check_name
from idiolect.signals.comparison import PreferenceDataset
from idiolect.signals.importers import load_coauthor, load_polis, load_ratings, load_ukpconvarg


@pytest.fixture(scope="module")
def polis(real_data: Path) -> PreferenceDataset:
    return load_polis(real_data / "polis")


@pytest.fixture(scope="module")
def fresh_polis(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> PreferenceDataset:
    """As somebody would have it who exported the conversations anew: without the benchmark's split."""
    folder = tmp_path_factory.mktemp("polis")
    for name in ("comments.jsonl.gz", "votes.jsonl.gz"):
        (folder / name).symlink_to(real_data / "polis" / name)
    return load_polis(folder)


def test_polis_has_the_counts_of_its_readme(polis: PreferenceDataset) -> None:
    report = polis.report
    english_votes = report["votes_read"] - report["votes_in_other_languages"]
    assert english_votes == 381_535
    assert english_votes - report["votes_pass"] - report["votes_left_out_statement_left_out"] == 277_626
    assert len(polis.items) == 2_934
    assert len({item.domain for item in polis.items}) == 13
    assert len(polis.new_people) == 609
    for item in polis.items:
        check_name("domain", item.domain)


def test_the_published_polis_split_is_used_exactly(polis: PreferenceDataset, real_data: Path) -> None:
    split = json.loads((real_data / "polis" / "benchmark_split.json").read_text())
    with gzip.open(real_data / "polis" / "benchmark_new_users.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    assert polis.new_people == set(split["new_users"])
    assert len(polis.items) - len({rating.item for rating in polis.ratings}) >= len(split["new_items"]) == 886
    with gzip.open(real_data / "polis" / "comments.jsonl.gz", "rt") as file:
        texts = {(row["conv"], row["comment"]): row["text"] for row in map(json.loads, file)}
    parts = {"adapt": polis.adaptation, **polis.evaluation}
    for part, pairs in parts.items():
        ours = [(p.person, polis.items[p.chosen].text, polis.items[p.rejected].text) for p in pairs]
        assert ours == [
            (line["user"], texts[line["conv"], chosen], texts[line["conv"], rejected])
            for line in lines
            for chosen, rejected in line[part]
        ]


@pytest.mark.parametrize("split", ["polis", "fresh_polis"])
def test_no_polis_split_leaks(split: str, request: pytest.FixtureRequest) -> None:
    dataset: PreferenceDataset = request.getfixturevalue(split)
    rated = {rating.item for rating in dataset.ratings}
    adapted = {item for pair in dataset.adaptation for item in (pair.chosen, pair.rejected)}
    new = {item for pair in dataset.evaluation["test_new"] for item in (pair.chosen, pair.rejected)}
    assert dataset.new_people.isdisjoint(rating.person for rating in dataset.ratings)
    assert {pair.person for pair in dataset.adaptation} == dataset.new_people
    assert new
    assert new.isdisjoint(rated | adapted)


def test_a_fresh_polis_split_is_of_the_same_kind(fresh_polis: PreferenceDataset) -> None:
    assert 300 <= len(fresh_polis.new_people) <= 800
    unrated = len(fresh_polis.items) - len({rating.item for rating in fresh_polis.ratings})
    assert 0.25 <= unrated / len(fresh_polis.items) <= 0.35
    assert max(Counter(pair.person for pair in fresh_polis.adaptation).values()) == 50


def test_ukpconvarg_has_the_counts_of_its_readme(real_data: Path) -> None:
    dataset = load_ukpconvarg(real_data / "ukpconvarg")
    assert dataset.report["labels_read"] == 16_927
    assert dataset.report["arguments_read"] == 1_052
    assert dataset.report["labels_equal"] == 3_698
    assert len(dataset.comparisons) + dataset.report["labels_between_identical_texts"] == 16_927 - 3_698
    assert len({item.domain for item in dataset.items}) == len({item.prompt for item in dataset.items}) == 32


def test_coauthor_has_the_counts_of_its_readme(real_data: Path) -> None:
    dataset = load_coauthor(real_data / "coauthor")
    report = dataset.report
    assert report["lists_read"] == 16_164
    assert report["lists_dismissed"] == 3_388
    pairs = len(dataset.comparisons) + len(dataset.adaptation) + len(dataset.evaluation["test_known"])
    assert pairs + report["adaptation_over_the_limit"] + report["lists_suggestions_repeated"] == 41_363
    assert report["people"] + report["new_people"] == 61
    assert {item.domain for item in dataset.items} == {"creative", "argumentative"}


def test_the_food_world_cup_reads_as_ratings(real_data: Path) -> None:
    dataset = load_ratings(real_data / "food_world_cup")
    assert dataset.report["ratings_read"] == 23_943
    assert len(dataset.items) == 40
    assert dataset.report["people"] + dataset.report["new_people"] == 1_276
    assert dataset.evaluation["test_known"]
