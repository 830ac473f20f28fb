"""Polis: votes to ratings, and the two ways of getting a split."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Comparison, PreferenceDataset
from idiolect.signals.importers import load_polis


def statement(comment: int, text: str | None = None, **columns: Any) -> dict[str, Any]:
    usual = {"conv": "Town", "lang": "en", "topic": "Our town", "comment": comment, "moderated": 1}
    return {**usual, "text": f"statement {comment}" if text is None else text, **columns}


def vote(user: str, comment: int, value: Any, **columns: Any) -> dict[str, Any]:
    return {"conv": "Town", "user": user, "comment": comment, "vote": value, "t": 1_500_000_000_000, **columns}


@pytest.fixture
def polis(write_rows):
    def write(statements: list[dict[str, Any]], votes: list[dict[str, Any]]) -> Path:
        write_rows("comments.jsonl.gz", statements)
        return write_rows("votes.jsonl.gz", votes)

    return write


def values(dataset: PreferenceDataset) -> dict[tuple[str, str], float]:
    return {(rating.person, dataset.items[rating.item].text): rating.value for rating in dataset.ratings}


STATEMENTS = [statement(1, "parks"), statement(2, "roads"), statement(3, "fish")]


@pytest.fixture
def benchmark(polis, write_rows):
    """People `old` and `new`; of statements 1 to 7 only 5 and 6 are new."""

    def write(lines: list[dict[str, Any]] | None = None, split: Any = None) -> Path:
        votes = [vote(user, n, 1 if n % 2 else -1) for user in ("old", "new") for n in range(1, 8)]
        folder = polis([statement(n) for n in range(1, 8)], votes)
        usual_split = {"seed": 1, "new_users": ["new", "absent"], "new_items": [["Town", 5], ["Town", 6]]}
        (folder / "benchmark_split.json").write_text(json.dumps(usual_split if split is None else split))
        return write_rows("benchmark_new_users.jsonl.gz", [line()] if lines is None else lines)

    return write


def line(**columns: Any) -> dict[str, Any]:
    usual = {"user": "new", "conv": "Town", "adapt": [[1, 2], [1, 7]], "test_known": [[3, 4]], "test_new": [[5, 6]]}
    return {**usual, **columns}


def test_votes_become_ratings_and_passes_are_counted(polis) -> None:
    dataset = load_polis(polis(STATEMENTS, [vote("a", 1, 1), vote("a", 2, -1), vote("b", 2, 0)]))
    assert values(dataset) == {("a", "parks"): 1.0, ("a", "roads"): -1.0}
    assert dataset.report["votes_pass"] == 1
    assert dataset.report["votes_read"] == 3
    assert {(item.domain, item.prompt, item.language) for item in dataset.items} == {("town", "Our town", "en")}
    assert dataset.ratings[0].occurred_at.isoformat() == "2017-07-14T02:40:00+00:00"


def test_the_last_vote_counts_and_a_later_pass_withdraws_one(polis) -> None:
    votes = [vote("a", 1, 1), vote("a", 1, -1), vote("a", 2, 1), vote("a", 2, 0), vote("a", 3, 0), vote("a", 3, 1)]
    dataset = load_polis(polis(STATEMENTS, votes))
    assert values(dataset) == {("a", "parks"): -1.0, ("a", "fish"): 1.0}
    assert dataset.report["votes_replaced_by_a_later_one"] == 2


def test_the_later_of_two_votes_counts_in_whatever_order_they_come(polis) -> None:
    at = 1_500_000_000_000
    votes = [vote("a", 1, -1, t=at + 5), vote("a", 1, 1, t=at), vote("a", 2, 0, t=at + 5), vote("a", 2, 1, t=at)]
    votes += [vote("a", 3, -1, t=at + 5), vote("a", 3, 1, t=None)]
    dataset = load_polis(polis(STATEMENTS, votes))
    assert values(dataset) == {("a", "parks"): -1.0, ("a", "fish"): 1.0}


def test_a_vote_that_was_given_again_is_no_contradiction(polis) -> None:
    votes = [vote("a", 1, value) for value in (1, 1, 1, -1, -1)] + [vote("a", 2, 1)]
    report = load_polis(polis(STATEMENTS, votes)).report
    assert (report["votes_said_again"], report["votes_replaced_by_a_later_one"]) == (3, 1)


def test_a_flood_and_answers_that_are_all_alike_are_counted(polis) -> None:
    statements = [statement(n) for n in range(1_100)]
    votes = [vote("flood", n, (1, -1)[n % 2]) for n in range(1_100)]
    votes += [vote("same", n, 1) for n in range(20)] + [vote("shy", n, -1) for n in range(9)]
    votes += [vote("fair", n, 1 if n else -1) for n in range(20)]
    folder = polis(statements, votes)
    (folder / "benchmark_split.json").write_text('{"new_users": ["shy"], "new_items": []}')
    with gzip.open(folder / "benchmark_new_users.jsonl.gz", "wt") as file:
        file.write(json.dumps(line(user="shy", adapt=[[1, 2]], test_known=[], test_new=[])))
    report = load_polis(folder).report
    assert report["people_with_over_1000_answers"] == 1
    assert report["people_whose_answers_are_all_alike"] == 1


def test_every_vote_that_was_read_is_accounted_for(polis) -> None:
    at = 1_500_000_000_000
    statements = [statement(n) for n in range(1, 13)] + [statement(20, "Wohnen", lang="de"), statement(21, " ")]
    statements += [statement(30, "statement 3"), statement(31, "rejected", moderated=-1)]
    votes = [
        vote(f"p{p}", n, (1, -1, 0)[(p + n) % 3], t=at - n * p) for p in range(40) for n in (*range(1, 13), 20, 21)
    ]
    votes += [vote("p1", n, (1, 0)[n % 2], t=at - 5 * n) for n in range(1, 13) for _ in range(2)]
    dataset = load_polis(polis(statements, [*votes, vote("p1", 99, 1)]))
    report = dataset.report
    assert report["votes_held_out"] > 0
    gone = ("in_other_languages", "pass", "said_again", "replaced_by_a_later_one", "held_out")
    left_out = ("left_out_unknown_statement", "left_out_statement_left_out")
    left = ("in_other_languages", "left_out_empty_text", "with_a_text_read_before", "moderated_out_unvoted")
    assert report["statements_read"] == report["items"] + sum(report[f"statements_{name}"] for name in left)
    assert report["votes_read"] == report["ratings"] + sum(report[f"votes_{name}"] for name in (*gone, *left_out))


def test_only_the_languages_asked_for_are_read(polis) -> None:
    folder = polis(
        [*STATEMENTS, statement(7, "Wohnen", lang="de")],
        [vote("a", 1, 1), vote("a", 7, 1), vote("b", 7, -1)],
    )
    english, german, both = (
        load_polis(folder, languages=tags) for tags in (frozenset({"en"}), frozenset({"de"}), None)
    )
    assert set(values(english)) == {("a", "parks")}
    assert english.report["votes_in_other_languages"] == 2
    assert set(values(german)) == {("a", "Wohnen"), ("b", "Wohnen")}
    assert len(both.ratings) == 3
    assert len({english.digest, german.digest, both.digest}) == 3
    with pytest.raises(InvalidInputError, match=r"no statement in fr, but in en \(3\), de \(1\)"):
        load_polis(folder, languages=frozenset({"fr"}))


def test_a_language_covers_its_regions_in_upper_and_lower_case_and_no_language_that_begins_like_it(polis) -> None:
    tags = ["en", "EN", "en-US", "EN-gb", "enm", "de-AT"]
    statements = [statement(n, f"in {tag}", lang=tag) for n, tag in enumerate(tags)]
    folder = polis(statements, [vote("a", n, 1) for n in range(len(tags))])
    read = {tags: load_polis(folder, languages=frozenset(tags)) for tags in (("en",), ("En-us", "DE"))}
    assert [item.language for item in read["en",].items] == ["en", "EN", "en-US", "EN-gb"]
    assert read["en",].report["votes_in_other_languages"] == 2
    assert [item.language for item in read["En-us", "DE"].items] == ["en-US", "de-AT"]


def test_statements_of_one_conversation_with_the_same_text_are_one_item(polis) -> None:
    statements = [statement(1, "parks"), statement(2, "parks"), statement(3, "parks", conv="Other"), statement(4)]
    votes = [vote("a", 1, 1), vote("a", 2, -1), vote("a", 3, 1, conv="Other"), vote("b", 2, 1)]
    dataset = load_polis(polis(statements, votes))
    assert [(item.domain, item.text) for item in dataset.items] == [
        ("town", "parks"),
        ("other", "parks"),
        ("town", "statement 4"),
    ]
    assert [(rating.person, rating.item, rating.value) for rating in dataset.ratings] == [
        ("a", 0, -1.0),
        ("a", 1, 1.0),
        ("b", 0, 1.0),
    ]


def test_someone_who_voted_both_ways_on_duplicates_never_prefers_an_item_to_itself(polis) -> None:
    statements = [statement(n, f"text {n // 2}") for n in range(20)]
    people = [f"p{n}" for n in range(200)]
    dataset = load_polis(polis(statements, [vote(p, n, 1 if n % 2 else -1) for p in people for n in range(20)]))
    assert len(dataset.items) == 10
    assert all(pair.chosen != pair.rejected for pair in all_pairs(dataset))


def test_statements_moderated_out_before_anybody_voted_on_them_are_dropped(polis) -> None:
    statements = [
        statement(1, "out, unvoted", moderated=-1),
        statement(2, "out, voted on", moderated=-1),
        statement(3, "out, passed on", moderated=-1),
        statement(4, "in, unvoted", moderated=0),
        statement(5, "in, unvoted", moderated=-1),
    ]
    dataset = load_polis(polis(statements, [vote("a", 2, 1), vote("a", 3, 0)]))
    assert [item.text for item in dataset.items] == ["out, voted on", "in, unvoted"]
    assert values(dataset) == {("a", "out, voted on"): 1.0}
    assert dataset.report["statements_moderated_out_unvoted"] == 2


@pytest.mark.parametrize("topic", [None, "", "no such column"])
def test_a_conversation_without_a_topic_is_read_all_the_same(topic: str | None, polis) -> None:
    statements = [statement(n, topic=topic) for n in range(3)] + [statement(7)]
    for row in statements[:3] * (topic == "no such column"):
        del row["topic"]
    dataset = load_polis(polis(statements, [vote("a", 0, 1), vote("a", 1, -1)]))
    assert [item.prompt for item in dataset.items] == ["Do you agree?"] * 3 + ["Our town"]
    assert dataset.report["statements_without_a_topic"] == 3


def test_unknown_and_unusable_statements_are_left_out_with_their_votes_and_counted(polis) -> None:
    statements = [*STATEMENTS, statement(4, ""), statement(5, "x" * 20_001), statement(1, "again")]
    votes = [vote("a", n, 1) for n in (1, 2, 3, 4, 5, 99)] + [vote("a", 1, -1, conv="Nowhere"), vote("b", 1, 0)]
    dataset = load_polis(polis(statements, votes))
    assert set(values(dataset)) == {("a", "parks"), ("a", "roads"), ("a", "fish")}
    assert dataset.report["statements_left_out_empty_text"] == 1
    assert dataset.report["statements_left_out_text_too_long"] == 1
    assert dataset.report["statements_left_out_repeated_id"] == 1
    assert dataset.report["votes_left_out_unknown_statement"] == 2
    assert dataset.report["votes_left_out_statement_left_out"] == 2


def test_votes_that_belong_to_other_statements_are_refused(polis) -> None:
    with pytest.raises(InvalidInputError, match=r"2 of 3 rows had to be left out \(unknown_statement\)"):
        load_polis(polis(STATEMENTS, [vote("a", 1, 1), vote("a", 98, 1), vote("a", 99, 1)]))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (vote("a", 1, "x"), "'vote' is 'x'"),
        (vote("a", 1, 2), "vote 2 is unknown"),
        (vote("a", 1, True), "'vote' is True"),
        (vote("a", 1, 1.0), "'vote' is 1.0"),
        (vote("a", 1, float("nan")), "not valid JSON"),
        (vote("a\n", 1, 1), "user id"),
        (vote("a", 1.5, 1), "'comment' is 1.5"),
        (vote("a", 1, 1, t="noon"), "'t' is 'noon'"),
        (vote("a", 1, 1, t=10**18), "'t' is 1000000000000000000"),
        (vote("a", 1, 1, t=-1), "'t' is -1"),
        ({"user": "a", "comment": 1, "vote": 1}, "'conv' is missing"),
    ],
)
def test_a_vote_of_the_wrong_type_is_refused_with_its_line(row: dict[str, Any], problem: str, polis) -> None:
    with pytest.raises(InvalidInputError) as raised:
        load_polis(polis(STATEMENTS, [vote("a", 1, 1), row]))
    assert "votes.jsonl.gz line 2: " in raised.value.message
    assert problem in raised.value.message


@pytest.mark.parametrize("lang", ["", "e\0n", "x" * 36, "not a tag"])
def test_a_language_that_is_no_tag_is_refused(lang: str, polis) -> None:
    with pytest.raises(InvalidInputError, match="is not a language tag"):
        load_polis(polis([statement(1, lang=lang)], []), languages=None)


def test_a_benchmark_split_is_used_exactly_and_in_its_order(benchmark) -> None:
    dataset = load_polis(benchmark())
    assert dataset.new_people == {"new"}
    assert {rating.person for rating in dataset.ratings} == {"old"}
    assert sorted(rating.item for rating in dataset.ratings) == [0, 1, 2, 3, 6]
    assert dataset.adaptation == (Comparison("new", 0, 1, source="vote"), Comparison("new", 0, 6, source="vote"))
    assert [(pair.chosen, pair.rejected) for pair in dataset.evaluation["test_known"]] == [(2, 3)]
    assert [(pair.chosen, pair.rejected) for pair in dataset.evaluation["test_new"]] == [(4, 5)]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"adapt": [[1, 5]]}, "adapt pair ['1', '5'] must have none of the new_items"),
        ({"test_known": [[5, 6]]}, "must have none of the new_items"),
        ({"test_new": [[5, 4]]}, "must have only of the new_items"),
        ({"user": "old"}, "'old' is not among the new_users"),
        ({"adapt": [[1]]}, "'adapt' is [[1]]"),
        ({"adapt": [[1, None]]}, "'adapt' is None"),
        ({"test_new": "1,2"}, "'test_new' is '1,2'"),
    ],
)
def test_a_benchmark_that_leaks_or_is_malformed_is_refused(columns: dict[str, Any], problem: str, benchmark) -> None:
    with pytest.raises(InvalidInputError) as raised:
        load_polis(benchmark([line(**columns)]))
    assert "benchmark_new_users.jsonl.gz line 1: " in raised.value.message
    assert problem in raised.value.message
    assert raised.value.mend


@pytest.mark.parametrize(
    "split",
    [[], {"new_users": ["new"]}, {"new_users": [1.5], "new_items": []}, {"new_users": [], "new_items": [1]}],
)
def test_a_malformed_split_is_refused(split: Any, benchmark) -> None:
    with pytest.raises(InvalidInputError, match=r"benchmark_split\.json"):
        load_polis(benchmark(split=split))


def test_half_of_a_benchmark_is_refused(benchmark) -> None:
    folder = benchmark()
    (folder / "benchmark_split.json").unlink()
    with pytest.raises(InvalidInputError, match=r"benchmark_split\.json does not exist"):
        load_polis(folder)


def test_a_benchmark_of_other_statements_is_refused_and_single_unknown_ones_are_counted(benchmark) -> None:
    dataset = load_polis(benchmark([line(adapt=[[1, 99], [1, 2], [1, 1]])]))
    assert [(pair.chosen, pair.rejected) for pair in dataset.adaptation] == [(0, 1)]
    assert dataset.report["benchmark_people_pairs_not_usable"] == 2
    elsewhere = line(conv="Elsewhere")
    with pytest.raises(InvalidInputError, match="without_usable_pairs"):
        load_polis(benchmark([elsewhere]))


def test_people_of_the_benchmark_who_did_not_vote_are_counted_and_not_made_up(benchmark) -> None:
    dataset = load_polis(benchmark([line(), line(user="absent")]))
    assert {pair.person for pair in all_pairs(dataset)} == {"new"}
    assert dataset.report["benchmark_people_without_votes"] == 1


def test_a_benchmark_may_name_people_by_numbers_as_the_votes_do(polis, write_rows) -> None:
    folder = polis([statement(n) for n in range(1, 7)], [vote(user, n, 1) for user in (7, 8) for n in range(1, 7)])
    (folder / "benchmark_split.json").write_text(
        json.dumps({"new_users": [8], "new_items": [["Town", 5], ["Town", 6]]})
    )
    dataset = load_polis(write_rows("benchmark_new_users.jsonl.gz", [line(user=8)]))
    assert dataset.new_people == {"8"}
    assert {rating.person for rating in dataset.ratings} == {"7"}


def test_a_statement_that_a_person_adapts_to_is_not_asked_again(benchmark) -> None:
    later = line(adapt=[], test_known=[[3, 2]], test_new=[])
    dataset = load_polis(benchmark([line(adapt=[[1, 2]], test_known=[[1, 3], [3, 4]]), later]))
    assert [(pair.chosen, pair.rejected) for pair in dataset.evaluation["test_known"]] == [(2, 3)]
    assert dataset.report["benchmark_people_pairs_of_adapted_statements"] == 2
    with pytest.raises(InvalidInputError, match=r"2 of 3 pairs to test on have a statement that their person adapts"):
        load_polis(benchmark([line(adapt=[[1, 2]], test_known=[[1, 3], [4, 2]])]))


def test_a_known_statement_with_the_text_of_a_new_one_is_not_asked_as_known(polis, write_rows) -> None:
    """Those two are one item: nobody was trained on it, so the pair belongs to neither part."""
    texts = ["same", "b", "c", "d", "same", "f"]
    votes = [vote(user, n, 1) for user in ("old", "new") for n in range(1, 7)]
    folder = polis([statement(n, text) for n, text in enumerate(texts, 1)], votes)
    split = {"new_users": ["new"], "new_items": [["Town", 5], ["Town", 6]]}
    (folder / "benchmark_split.json").write_text(json.dumps(split))
    rows = [line(adapt=[[1, 2], [2, 4]], test_known=[[1, 3], [3, 3]])]
    dataset = load_polis(write_rows("benchmark_new_users.jsonl.gz", rows))
    assert [(pair.chosen, pair.rejected) for pair in dataset.adaptation] == [(1, 3)]
    assert dataset.evaluation["test_known"] == ()
    assert [(pair.chosen, pair.rejected) for pair in dataset.evaluation["test_new"]] == [(0, 4)]
    assert dataset.report["benchmark_people_pairs_not_usable"] == 3


def all_pairs(dataset: PreferenceDataset) -> list[Comparison]:
    return [*dataset.adaptation, *(pair for part in dataset.evaluation.values() for pair in part)]


@pytest.fixture
def fresh(polis) -> PreferenceDataset:
    """400 people with one to thirty votes on 60 statements of two conversations, and no benchmark files."""
    statements = [statement(n, conv=conv) for conv in ("Town", "Lake") for n in range(30)]
    votes = [
        vote(f"p{p}", n, 1 if (n * 7 + p) % 3 else -1, conv="Lake" if p % 2 else "Town")
        for p in range(400)
        for n in range(p % 30 + 1)
    ]
    return load_polis(polis(statements, votes))


def test_a_fresh_split_holds_out_about_a_tenth_of_the_people_and_a_third_of_the_statements(fresh) -> None:
    rated = {rating.item for rating in fresh.ratings}
    assert 15 <= len(fresh.new_people) <= 60
    assert 0.15 <= 1 - len(rated) / len(fresh.items) <= 0.45


def test_a_fresh_split_does_not_leak(fresh) -> None:
    assert_no_leak(fresh)


def test_pairs_of_a_fresh_split_are_true_balanced_and_bounded(fresh) -> None:
    for part, limit in ((fresh.adaptation, 50), *((pairs, 40) for pairs in fresh.evaluation.values())):
        assert part
        assert max(Counter(pair.person for pair in part).values()) <= limit
        uses = Counter((pair.person, item) for pair in part for item in (pair.chosen, pair.rejected))
        assert max(uses.values()) <= 4
    for pair in all_pairs(fresh):
        chosen, rejected = (int(fresh.items[item].text.split()[1]) for item in (pair.chosen, pair.rejected))
        person = int(pair.person[1:])
        assert (chosen * 7 + person) % 3 != 0 == (rejected * 7 + person) % 3
        assert fresh.items[pair.chosen].domain == fresh.items[pair.rejected].domain


def test_a_fresh_split_is_the_same_whatever_the_order_of_the_file(polis) -> None:
    statements = [statement(n) for n in range(40)]
    votes = [vote(f"p{p}", n, 1 if (n + p) % 2 else -1) for p in range(100) for n in range(20)]
    one = load_polis(polis(statements, votes))
    other = load_polis(polis(statements, votes[::-1]))
    assert one.new_people == other.new_people
    assert one.new_people
    assert set(one.adaptation) == set(other.adaptation)
    assert one.digest != other.digest


def assert_no_leak(dataset: PreferenceDataset) -> None:
    rated = {rating.item for rating in dataset.ratings}
    assert dataset.new_people.isdisjoint(rating.person for rating in dataset.ratings)
    assert {pair.person for pair in all_pairs(dataset)} <= dataset.new_people
    new = {item for pair in dataset.evaluation["test_new"] for item in (pair.chosen, pair.rejected)}
    assert new.isdisjoint(rated)
    adapted = {(pair.person, item) for pair in dataset.adaptation for item in (pair.chosen, pair.rejected)}
    assert new.isdisjoint(item for _, item in adapted)
    tested = {(p.person, i) for part in dataset.evaluation.values() for p in part for i in (p.chosen, p.rejected)}
    assert adapted.isdisjoint(tested)
