"""The tests are worth something: each planted mistake in a copy of the source makes the right ones fail.

Every mutant runs in a process of its own, on a copy of the packages that comes before the installed ones on the path.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from mutant_runner import OUTPUT, ROOT, SOURCES
from mutants import MUTANTS, Mutant

WITHOUT_MUTANT = "the source as it is"
RUNNER = Path(__file__).with_name("mutant_runner.py")


def copied(folder: Path) -> Path:
    for source in SOURCES:
        shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def mutated(folder: Path, mutant: Mutant) -> Path:
    """Raises AssertionError where the source no longer has what the mutant changes."""
    path = copied(folder) / mutant.file
    text = path.read_text()
    for old, new in mutant.edits:
        assert text.count(old) == 1, f"{mutant.file} has {text.count(old)} times, not once: {old}"
        text = text.replace(old, new)
    compile(text, mutant.file, "exec")
    path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What pytest said of each copy. The long ones run first."""
    found: dict[str, str] = {}
    copies = {WITHOUT_MUTANT: copied(tmp_path_factory.mktemp("copy"))}
    chosen = {WITHOUT_MUTANT: sorted({name for each in MUTANTS for name in each.kills})}
    for mutant in sorted(MUTANTS, key=lambda mutant: not mutant.slow):
        try:
            copies[mutant.name] = mutated(tmp_path_factory.mktemp("copy"), mutant)
            chosen[mutant.name] = list(mutant.kills)
        except AssertionError as error:
            found[mutant.name] = str(error)
    jobs = tmp_path_factory.mktemp("jobs") / "jobs.json"
    jobs.write_text(json.dumps([[str(folder), chosen[name]] for name, folder in copies.items()]))
    subprocess.run([sys.executable, RUNNER, jobs], check=True)
    for name, folder in copies.items():
        said = folder / OUTPUT
        found[name] = said.read_text() if said.exists() else "pytest said nothing."
    return found


def failed(output: str) -> set[str]:
    return set(re.findall(r"^FAILED (\S+(?: \S+)*?)(?: - .*)?$", output, re.MULTILINE))


def test_the_source_as_it_is_passes_every_test_that_kills(outcomes: Mapping[str, str]) -> None:
    said = outcomes[WITHOUT_MUTANT]
    kills = {name for mutant in MUTANTS for name in mutant.kills}
    assert re.search(rf"^{len(kills)} passed", said, re.MULTILINE), said[-3000:]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_killed_for_its_own_reason(mutant: Mutant, outcomes: Mapping[str, str]) -> None:
    said = outcomes[mutant.name]
    assert failed(said) == set(mutant.kills), said[-3000:]
    assert " error" not in said.strip().splitlines()[-1], said[-3000:]  # not for want of an import or a fixture
    assert re.search(mutant.because, said, re.MULTILINE), said[-3000:]


def test_every_mistake_of_the_contract_is_among_the_mutants() -> None:
    names = " / ".join(mutant.name for mutant in MUTANTS)
    for mistake in ("drop the clip", "halve the noise", "swap the unit", "apart", "private number", "empty batch"):
        assert mistake in names
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
