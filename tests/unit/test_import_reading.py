"""What every importer does with files that are missing, broken or hostile, shown on ratings and on Polis."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import IdiolectError, InvalidInputError, TooLargeError
from idiolect.ids import check_name
from idiolect.signals.comparison import PreferenceDataset
from idiolect.signals.importers import IMPORTERS, load_polis, load_ratings
from idiolect.signals.importers.building import DomainNames, unusable_text
from idiolect.signals.importers.reading import DataFiles, Limits
from idiolect.stores.ports import no_progress

GOOD = {"user": "u", "item": "tea", "score": 4}


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def plain_ratings(folder: Path, content: bytes, name: str = "r.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_a_missing_folder_an_empty_one_and_a_file_in_its_place_are_named(name: str, tmp_path: Path) -> None:
    a_file = tmp_path / "a_file"
    a_file.write_text("x")
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (tmp_path / "missing", a_file, empty, tmp_path / "bad\0name", tmp_path / ("long" * 100)):
        with pytest.raises(InvalidInputError) as raised:
            IMPORTERS[name](path, no_progress)
        assert str(path)[:40] in raised.value.message
        assert raised.value.mend


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_where_a_file_should_be_is_refused_without_waiting(make, tmp_path: Path) -> None:
    make(tmp_path / "ratings.jsonl.gz")
    with pytest.raises(InvalidInputError, match="is not a file"):
        load_ratings(tmp_path)


def broken_gzip_files() -> dict[str, bytes]:
    whole = gzip.compress(lines(*[{**GOOD, "item": f"tea {n * 7919 % 1000}"} for n in range(1000)]))
    return {
        "truncated": whole[: len(whole) // 2],
        "a wrong checksum": whole[:-8] + b"\0" * 8,
        "gzip and then something else": whole + b"garbage",
        "a damaged middle": whole[:200] + b"\xff" * 100 + whole[300:],
    }


@pytest.mark.parametrize("what", sorted(broken_gzip_files()))
def test_a_broken_gzip_file_is_refused_and_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "ratings.jsonl.gz").write_bytes(broken_gzip_files()[what])
    with pytest.raises(InvalidInputError, match=r"ratings\.jsonl\.gz line \d+") as raised:
        load_ratings(tmp_path)
    assert raised.value.mend


def test_a_file_that_only_misses_its_compression_is_said_to(tmp_path: Path) -> None:
    (tmp_path / "ratings.jsonl.gz").write_bytes(lines(GOOD))
    with pytest.raises(InvalidInputError, match="is not compressed") as raised:
        load_ratings(tmp_path)
    assert "gzip" in raised.value.mend
    (tmp_path / "ratings.jsonl.gz").rename(tmp_path / "ratings.jsonl")
    with pytest.raises(InvalidInputError, match=r"ratings\.jsonl\.gz does not exist") as raised:
        load_ratings(tmp_path)
    assert raised.value.mend == f"Compress {tmp_path / 'ratings.jsonl'} with gzip."


def test_a_broken_line_is_said_to_be_broken_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    path = plain_ratings(tmp_path, lines(GOOD) * 3 + b'{"user": "u", "item": "x\n')
    with pytest.raises(InvalidInputError) as raised:
        load_ratings(path)
    assert raised.value.message == f"{path} line 4: not valid JSON (Invalid control character at character 25)."


@pytest.mark.parametrize(
    ("second_line", "problem"),
    [
        (b"{not json}\n", "not valid JSON"),
        (b'{"user": "u", "item": "x", "score": NaN}\n', "not valid JSON"),
        (b'{"user": "u", "item": "x", "score": 1e400}\n', "score"),
        (b'{"user": "u", "item": "x", "score": 1' + b"0" * 400 + b"}\n", "score"),
        (b'{"user": "u", "item": "x", "score": ' + b"9" * 5000 + b"}\n", "not valid JSON"),
        (b'{"user": "u", "item": "x", "score": true}\n', "score"),
        (b'{"user": "u", "item": "x", "score": "4"}\n', "score"),
        (b'{"user": "u", "item": "x", "score": null}\n', "score"),
        (b'{"user": "u", "item": "x"}\n', "'score' is missing"),
        (b'{"user": ["u"], "item": "x", "score": 1}\n', "user"),
        (b'{"user": true, "item": "x", "score": 1}\n', "user"),
        (b'{"user": "", "item": "x", "score": 1}\n', "user id"),
        (b'{"user": "a\\u0000b", "item": "x", "score": 1}\n', "user id"),
        (b'{"user": "' + b"u" * 129 + b'", "item": "x", "score": 1}\n', "user id"),
        (b'{"user": "u", "item": "x", "score": 1, "domain": 7}\n', "domain"),
        (b"[1, 2]\n", "not a JSON object"),
        (b"[" * 100_000 + b"\n", "not valid JSON"),
        (b'{"user": "\xff\xfe"}\n', "not UTF-8"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_mend(second_line: bytes, problem: str, tmp_path: Path) -> None:
    path = plain_ratings(tmp_path, lines(GOOD) + second_line)
    with pytest.raises(InvalidInputError) as raised:
        load_ratings(path)
    assert f"{path} line 2: " in raised.value.message
    assert problem in raised.value.message
    assert raised.value.mend
    assert len(str(raised.value)) < 1000


def test_a_line_that_unpacks_to_more_than_a_mebibyte_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "ratings.jsonl.gz").write_bytes(gzip.compress(b'{"user": "' + b"u" * (50 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="line 1 is over 1,048,576 bytes"):
            load_ratings(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


def test_a_file_that_unpacks_to_more_than_the_total_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(lines(GOOD) * 10_000))
    files = DataFiles(tmp_path, ["bomb.jsonl.gz"], no_progress, Limits(total_bytes=100_000))
    rows = iter(files.source("bomb.jsonl.gz", "rows"))
    for _ in range(100_000 // len(lines(GOOD))):
        next(rows)
    with pytest.raises(TooLargeError, match=r"over 100,000 bytes unpacked"):
        next(rows)


def test_the_default_total_is_eight_gibibytes() -> None:
    assert Limits() == Limits(line_bytes=1024**2, document_bytes=64 * 1024**2, total_bytes=8 * 1024**3)


def test_a_document_over_its_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_text("[" + " " * 1000 + "]")
    with pytest.raises(TooLargeError, match=r"big\.json is over 500 bytes"):
        DataFiles(tmp_path, ["big.json"], no_progress, Limits(document_bytes=500)).document("big.json")


def test_blank_lines_a_byte_order_mark_and_a_missing_last_newline_are_harmless(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + lines(GOOD) + b"\n  \r\n" + lines({**GOOD, "item": "mate"}).strip()
    dataset = load_ratings(plain_ratings(tmp_path, content))
    assert [item.text for item in dataset.items] == ["tea", "mate"]


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    for name, content in (("r.jsonl", b""), ("r.csv", b""), ("e.csv", b"user,item,score\n"), ("r.jsonl.gz", b"")):
        with pytest.raises(InvalidInputError, match="no preference of anybody"):
            load_ratings(plain_ratings(tmp_path, content, name))


def test_half_of_the_rows_may_be_left_out_but_not_more(tmp_path: Path) -> None:
    blank = {**GOOD, "item": " "}
    dataset = load_ratings(plain_ratings(tmp_path, lines(GOOD, blank)))
    assert dataset.report["ratings_left_out_empty_text"] == 1
    with pytest.raises(InvalidInputError, match=r"2 of 3 rows had to be left out \(empty_text\)"):
        load_ratings(plain_ratings(tmp_path, lines(GOOD, blank, blank)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty_text"),
        (" \n\t\u00a0", "empty_text"),
        ("x" * 20_001, "text_too_long"),
        ("a\0b", "text_not_unicode"),
        ("a\ud800b", "text_not_unicode"),
        ("x" * 20_000, None),
        ("日本語 🙂", None),
    ],
)
def test_a_text_that_cannot_be_used_is_left_out_and_counted(text: str, reason: str | None, tmp_path: Path) -> None:
    dataset = load_ratings(plain_ratings(tmp_path, lines(GOOD, {**GOOD, "item": "other", "text": text})))
    if text == "":  # an empty optional column is as good as none
        assert dataset.items[1].text == "other"
    elif reason:
        assert len(dataset.items) == 1
        assert dataset.report[f"ratings_left_out_{reason}"] == 1
    else:
        assert dataset.items[1].text == text
    assert unusable_text(text) == reason


def test_the_digest_changes_with_contents_and_names_and_with_nothing_else(tmp_path: Path) -> None:
    content = lines(GOOD)
    first = load_ratings(plain_ratings(tmp_path, content)).digest
    assert load_ratings(plain_ratings(tmp_path, content)).digest == first
    assert load_ratings(plain_ratings(tmp_path, content, "other.jsonl")).digest != first
    assert load_ratings(plain_ratings(tmp_path, content + b"\n")).digest != first
    assert len(first) == 64


def test_a_file_name_that_is_not_unicode_can_be_read(tmp_path: Path) -> None:
    assert load_ratings(plain_ratings(tmp_path, lines(GOOD), os.fsdecode(b"caf\xe9.jsonl"))).items


def test_progress_only_grows_and_ends_at_the_total(write_rows) -> None:
    folder = write_rows("ratings.jsonl.gz", [{**GOOD, "item": str(n)} for n in range(20_000)])
    told: list[tuple[int, int]] = []
    load_ratings(folder, lambda done, total: told.append((done, total)))
    size = (folder / "ratings.jsonl.gz").stat().st_size
    assert told == sorted(told)
    assert len(told) > 3
    assert told[-1] == (size, size)


def test_reading_a_file_only_in_part_gives_no_digest(write_rows) -> None:
    files = DataFiles(write_rows("a.jsonl", [GOOD, GOOD]), ["a.jsonl"], no_progress)
    next(iter(files.source("a.jsonl", "rows")))
    with pytest.raises(AssertionError):
        files.digest()


@given(st.binary(max_size=300))
def test_no_bytes_whatever_lead_to_anything_but_a_data_set_or_a_clear_error(tmp_path_factory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any", numbered=True)
    for name in ("a.jsonl", "a.csv", "a.jsonl.gz"):
        outcome: Any = None
        try:
            outcome = load_ratings(plain_ratings(folder, content, name))
        except IdiolectError as error:
            outcome = error
        assert isinstance(outcome, PreferenceDataset) or outcome.mend


@given(st.lists(st.text(max_size=100), unique=True, max_size=10))
def test_domain_names_are_valid_unique_and_stable(raw: list[str]) -> None:
    names = DomainNames()
    made = [check_name("domain", names[name]) for name in raw]
    assert len(set(made)) == len(raw)
    assert made == [names[name] for name in raw]


def test_a_valid_domain_name_is_kept_and_others_stay_readable() -> None:
    names = DomainNames()
    assert names["brexit-consensus"] == "brexit-consensus"
    assert names["Tax HiveMind"] == "tax-hivemind"
    assert names["tax  hivemind"] != "tax-hivemind"
    assert names["..a..b.."] == "a.b"
    assert names["議題"].startswith("domain-")
    long = names["x" * 65]
    assert len(long) <= 64
    assert long != names["x" * 66]


def test_the_person_is_never_named_twice_in_memory(tmp_path: Path) -> None:
    dataset = load_ratings(plain_ratings(tmp_path, lines(GOOD, {**GOOD, "item": "mate"})))
    first, second = dataset.ratings
    assert first.person is second.person


def test_polis_reports_a_bad_line_of_the_second_file(write_rows) -> None:
    statement = {"conv": "c", "lang": "en", "topic": "t", "comment": 1, "text": "x", "moderated": 0}
    write_rows("comments.jsonl.gz", [statement])
    folder = write_rows("votes.jsonl.gz", [{"conv": "c", "user": "u", "comment": 1, "vote": "x", "t": None}])
    with pytest.raises(InvalidInputError, match=r"votes\.jsonl\.gz line 1: column 'vote' is 'x'"):
        load_polis(folder)
