"""The five commands of the README, from a folder of votes that nobody has seen to figures; and odd folders."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from idiolect.errors import IdiolectError, InvalidInputError, NotFoundError
from idiolect.settings import load_settings
from idiolect_services.cli import app
from idiolect_services.wiring import open_installation

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def small_encoder(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDIOLECT_BACKBONE", str(tiny_bert))


def crowd(people: int, statements: int, conversation: str = "town", seed: int = 0) -> tuple[Rows, Rows]:
    """Everybody votes on most of the statements: by its popularity, and against or with the crowd on every third."""
    rng = np.random.default_rng(seed)
    comments = [
        {"conv": conversation, "lang": "en", "topic": "Our town", "comment": n, "text": f"wish {n} of {conversation}"}
        for n in range(statements)
    ]
    votes = []
    for person in range(people):
        turned = rng.random() < 0.5
        for n in rng.choice(statements, statements - 2, replace=False).tolist():
            liked = (n % 2 == 0) != (turned and n % 3 == 0)
            vote = 0 if rng.random() < 0.1 else 1 if liked == (rng.random() < 0.9) else -1
            votes.append({"conv": conversation, "user": f"{conversation}:{person}", "comment": n, "vote": vote})
    return [{**row, "moderated": 1} for row in comments], votes


def folder_of(folder: Path, *crowds: tuple[Rows, Rows]) -> Path:
    folder.mkdir()
    for name, at in (("comments.jsonl.gz", 0), ("votes.jsonl.gz", 1)):
        text = "".join(json.dumps(row) + "\n" for one in crowds for row in one[at])
        (folder / name).write_bytes(gzip.compress(text.encode(), 1))
    return folder


def run(home: Path, *words: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--home", str(home)])


def said(home: Path, *words: str | Path) -> str:
    result = run(home, *words)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(home: Path, *words: str | Path) -> IdiolectError:
    error = run(home, *words).exception
    assert isinstance(error, IdiolectError)
    return error


def test_two_folders_one_after_the_other_are_each_trained_on_and_evaluated(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = folder_of(tmp_path / "first", crowd(90, 24))
    second = folder_of(tmp_path / "second", crowd(90, 24, "lake", seed=1), crowd(20, 4, "quiet", seed=2))
    for folder in (first, second):
        imported = said(home, "import", "polis", folder, "--public", "--opt-in")
        assert ("in place of what it was before" in imported) == (folder is second)
        assert "Nobody is held out" not in imported
        said(home, "train", "global")
        said(home, "train", "domain")
        assert " 0 reset meanwhile" in said(home, "train", "users")
        figures = said(home, "eval", "polis", "--pairs", "5", "--report", tmp_path / "report")
        assert "test_known" in figures
        page = (tmp_path / "report" / "report.md").read_text()
        assert ("domain | lake" in page) == (folder is second)
        assert re.search(r"\bnan\b", page) is None
    assert "was there already" in said(home, "import", "polis", second, "--public", "--opt-in")


def test_where_too_few_said_enough_every_command_says_so(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", folder_of(tmp_path / "few", *(crowd(30, 5, f"c{n}", seed=n) for n in range(3)))
    assert "Nobody is held out" in said(home, "import", "polis", folder, "--public", "--opt-in")
    said(home, "train", "global")
    said(home, "train", "domain")
    assert isinstance(refused(home, "train", "users"), NotFoundError)
    error = refused(home, "eval", "polis")
    assert "holds nobody out" in error.message
    assert error.mend


def test_a_folder_with_one_broken_line_leaves_what_was_imported_before(tmp_path: Path) -> None:
    home, good = tmp_path / "home", folder_of(tmp_path / "good", crowd(40, 12))
    said(home, "import", "polis", good, "--public", "--opt-in")
    comments, votes = crowd(40, 12, "lake")
    bad = folder_of(tmp_path / "bad", (comments, [*votes[:200], {**votes[200], "vote": "1"}, *votes[201:]]))
    error = refused(home, "import", "polis", bad, "--public", "--opt-in")
    assert "votes.jsonl.gz line 201: column 'vote' is '1'" in error.message
    with open_installation(load_settings(home=home)) as installation:
        assert installation.store.domains("demo") == ["town"]


def test_adapters_are_not_tried_for_people_who_never_agreed_to_one(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", folder_of(tmp_path / "public", crowd(60, 20))
    said(home, "import", "polis", folder, "--public")
    said(home, "train", "global")
    assert isinstance(refused(home, "eval", "polis", "--pairs", "5"), InvalidInputError)
    assert "test_known" in said(home, "eval", "polis")
