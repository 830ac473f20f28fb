"""The command line as documented: every command has an example that fits it, and the README names only what exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from idiolect_services.bench.catalogue import BENCHMARKS
from idiolect_services.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "deploy/README.md",
        "deploy/sample/README.md",
        "deploy/threat-model.md",
    )
]


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every command that does something."""
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
    for name, child in sorted((children or {}).items()):
        yield from _walk(child, (*words, name))


COMMANDS = dict(_walk(typer.main.get_command(app), ("idiolect",)))


def _fitting(line: str) -> tuple[str, ...]:
    """The command that `line` starts with, after its options and the number of its arguments were checked."""
    parts = shlex.split(line)
    words = max((words for words in COMMANDS if tuple(parts[: len(words)]) == words), key=len, default=None)
    assert words is not None, f"{line!r} is no command"
    context = COMMANDS[words].make_context(" ".join(words), parts[len(words) :], resilient_parsing=False)
    context.close()
    return words


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_has_an_example_that_fits_it(words: tuple[str, ...]) -> None:
    examples = re.findall(r"^\s*Example: (idiolect .+?)\s*$", COMMANDS[words].help or "", re.MULTILINE)
    assert examples
    assert {_fitting(example) for example in examples} == {words}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_does(words: tuple[str, ...]) -> None:
    silent = [parameter.name for parameter in COMMANDS[words].params if not getattr(parameter, "help", None)]
    assert not silent


def test_the_readme_lists_exactly_the_commands_that_exist() -> None:
    listed = re.findall(r"^\| `(idiolect [^`]+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(" ".join(words) for words in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_document_names_exist(page: Path) -> None:
    named = re.findall(r"`(idiolect [a-z][^`\n]*)`", page.read_text())
    starts = {words[:length] for words in COMMANDS for length in range(1, len(words) + 1)}
    for line in named:
        words = tuple(word for word in line.split() if re.fullmatch(r"[a-z]+", word))
        assert any(words[:length] in starts for length in (2, 3)), f"{page.name} names {line!r}"


def test_options_of_the_demo_that_the_readme_names_exist() -> None:
    lines = re.findall(r'make run ARGS="([^"]+)"', README)
    assert lines
    for line in lines:
        assert _fitting(f"idiolect demo {line}") == ("idiolect", "demo")


def test_targets_of_make_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^|    )make ([a-z]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page.name


def test_make_bench_runs_every_benchmark() -> None:
    (names,) = re.findall(r"^BENCHMARKS \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert names.split() == list(BENCHMARKS)
