"""Ratings: any user, item, score table."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Item
from idiolect.signals.importers import load_ratings


def csv_file(folder: Path, text: str, name: str = "r.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_all_four_kinds_of_file_and_a_folder_say_the_same(write_rows, tmp_path: Path) -> None:
    rows = [{"user": "a", "item": "tea", "score": 4}, {"user": "b", "item": "mate", "score": 2.5}]
    table = "user,item,score\na,tea,4\nb,mate,2.5\n"
    paths = [
        write_rows("ratings.jsonl.gz", rows),
        write_rows("x.jsonl.gz", rows) / "x.jsonl.gz",
        write_rows("x.jsonl", rows) / "x.jsonl",
        csv_file(tmp_path, table),
        csv_file(tmp_path, table, "r.csv.gz"),
        csv_file(tmp_path, "\ufeff" + table.replace("\n", "\r\n"), "excel.csv"),
    ]
    read = [(dataset.items, dataset.ratings) for dataset in map(load_ratings, paths)]
    assert read[0][0] == (Item("ratings", "Rate this", "tea"), Item("ratings", "Rate this", "mate"))
    assert [(rating.person, rating.item, rating.value) for rating in read[0][1]] == [("a", 0, 4.0), ("b", 1, 2.5)]
    assert all(other == read[0] for other in read)


def test_optional_columns_say_where_and_what_was_rated(tmp_path: Path) -> None:
    table = 'user,item,score,domain,prompt,text\na,1,4,Tea Shop,Which?,"Green, mild"\na,2,5,,,\n'
    assert load_ratings(csv_file(tmp_path, table)).items == (
        Item("tea-shop", "Which?", "Green, mild"),
        Item("ratings", "Rate this", "2"),
    )


def test_language_and_task_are_read_where_they_are_said(tmp_path: Path) -> None:
    table = "user,item,score,language,task\na,Moin,4,de,greeting\na,Hello,5,,\n"
    assert load_ratings(csv_file(tmp_path, table)).items == (
        Item("ratings", "Rate this", "Moin", "de", "greeting"),
        Item("ratings", "Rate this", "Hello", "en", ""),
    )


def test_numbers_may_be_ids_and_the_last_rating_counts(write_rows) -> None:
    rows = [{"user": 7, "item": 1, "score": 1}, {"user": 7, "item": 1, "score": 5}]
    dataset = load_ratings(write_rows("ratings.jsonl.gz", rows))
    (rating,) = dataset.ratings
    assert (rating.person, rating.value) == ("7", 5.0)
    assert dataset.report["ratings_replaced_by_a_later_one"] == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("user,item\na,tea\n", "line 2: column 'score' is missing"),
        ("a,tea,4\nb,tea,5\n", "line 2: column 'user' is missing"),
        ("user,item,score,language\na,tea,4,low german\n", "line 2: language 'low german' is not a language tag"),
        (f"user,item,score,task\na,tea,4,{'x' * 65}\n", "is not a name"),
        ("user,item,score\na,tea,nan\n", "line 2: column 'score' is 'nan'"),
        ("user,item,score\na,tea,inf\n", "line 2: column 'score' is inf"),
        ("user,item,score\na,tea,1e10\n", "line 2: column 'score' is 10000000000.0"),
        ("user,item,score\na,tea,\n", "line 2: column 'score' is ''"),
        ("user,item,score\na,tea\n", "line 2: column 'score' is None"),
        ("user,item,score\na,tea,4,5\n", "line 2: there are more fields than column names"),
        ('user,item,score\na,"tea,4\n', "not valid CSV"),
        ("user,item,score\na,tea,4\n,tea,4\n", "line 3: user id ''"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as raised:
        load_ratings(csv_file(tmp_path, text))
    assert str(tmp_path / "r.csv") in raised.value.message
    assert problem.replace("'nan'", "nan") in raised.value.message.replace("'nan'", "nan")
    assert raised.value.mend


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InvalidInputError, match="of an unknown kind"):
        load_ratings(path)


def table(people: int, items: int) -> list[dict[str, object]]:
    return [{"user": f"p{p}", "item": f"i{n}", "score": (p * n) % 5} for p in range(people) for n in range(items)]


def test_a_tenth_of_the_people_is_new_and_few_items_are_all_known(write_rows) -> None:
    dataset = load_ratings(write_rows("ratings.jsonl.gz", table(300, 20)))
    assert 12 <= len(dataset.new_people) <= 50
    assert dataset.new_people.isdisjoint(rating.person for rating in dataset.ratings)
    assert {rating.item for rating in dataset.ratings} == set(range(20))
    assert set(dataset.evaluation) == {"test_known"}
    adapted = {(pair.person, item) for pair in dataset.adaptation for item in (pair.chosen, pair.rejected)}
    tested = {(p.person, item) for p in dataset.evaluation["test_known"] for item in (p.chosen, p.rejected)}
    assert adapted.isdisjoint(tested)
    assert {pair.source for pair in dataset.adaptation} == {"rating"}


def test_pairs_of_new_people_say_what_they_rated_higher(write_rows) -> None:
    dataset = load_ratings(write_rows("ratings.jsonl.gz", table(300, 20)))
    for pair in (*dataset.adaptation, *dataset.evaluation["test_known"]):
        person = int(pair.person[1:])
        chosen, rejected = (person * int(dataset.items[item].text[1:]) % 5 for item in (pair.chosen, pair.rejected))
        assert chosen > rejected


def test_of_many_items_a_fifth_is_new(write_rows) -> None:
    dataset = load_ratings(write_rows("ratings.jsonl.gz", table(100, 150)))
    rated = {rating.item for rating in dataset.ratings}
    assert 105 <= len(rated) <= 135
    new = {item for pair in dataset.evaluation["test_new"] for item in (pair.chosen, pair.rejected)}
    assert new
    assert new.isdisjoint(rated)


def test_people_who_rate_everything_alike_or_rate_little_are_never_new(write_rows) -> None:
    alike = [{"user": f"a{p}", "item": f"i{n}", "score": 3} for p in range(100) for n in range(20)]
    little = [{"user": f"l{p}", "item": f"i{n}", "score": n} for p in range(100) for n in range(7)]
    assert not load_ratings(write_rows("ratings.jsonl.gz", alike + little)).new_people


def test_things_are_only_compared_for_the_same_prompt(write_rows) -> None:
    rows = [
        {"user": f"p{p}", "item": f"{q}/{n}", "score": n + q, "prompt": f"q{q}"}
        for p in range(100)
        for q in range(3)
        for n in range(6)
    ]
    dataset = load_ratings(write_rows("ratings.jsonl.gz", rows))
    pairs = (*dataset.adaptation, *dataset.evaluation["test_known"])
    assert {dataset.items[pair.chosen].prompt for pair in pairs} == {"q0", "q1", "q2"}
    assert all(dataset.items[pair.chosen].prompt == dataset.items[pair.rejected].prompt for pair in pairs)


def test_one_person_with_very_many_ratings_is_no_quadratic_work(write_rows) -> None:
    rows = [{"user": f"p{p}", "item": f"i{n}", "score": n * 1e-3} for p in range(30) for n in range(3000)]
    dataset = load_ratings(write_rows("ratings.jsonl.gz", rows))  # 4.5 million pairs a person, if all were made
    assert dataset.new_people
    assert len(dataset.adaptation) == 50 * len(dataset.new_people)
    paired = {(pair.person, item) for pair in dataset.adaptation for item in (pair.chosen, pair.rejected)}
    assert len(paired) <= 40 * len(dataset.new_people)
