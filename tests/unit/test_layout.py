"""The layout that deploy/decisions/0001-layout.md decides."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "idiolect": ROOT / "platform",
    "idiolect_adapters": ROOT / "adapters",
    "idiolect_services": ROOT / "services",
}
TOP_FOLDERS = ("platform", "adapters", "services", "tests", "deploy")
MAX_TRACKED_BYTES = 1_000_000


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [git, "-c", "safe.directory=*", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _tracked() -> list[Path]:
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    assert listed.returncode == 0, listed.stderr
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _sources() -> list[Path]:
    return [path for root in PACKAGES.values() for path in root.rglob("*.py")]


def test_the_folder_platform_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), (
        "it shadows Python's own module and breaks torch: delete it"
    )


def test_git_ignores_an_init_file_in_platform() -> None:
    assert _git("check-ignore", "--quiet", "platform/__init__.py").returncode == 0


def test_import_platform_is_pythons_own_also_from_the_root_of_the_checkout() -> None:
    code = "import platform; print(platform.__file__); platform.python_version()"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).parent == Path(sysconfig.get_path("stdlib"))


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_is_imported_from_its_own_root(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__) == PACKAGES[name] / name / "__init__.py"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_says_that_it_is_typed(name: str) -> None:
    assert (PACKAGES[name] / name / "py.typed").is_file()


@pytest.mark.parametrize("folder", TOP_FOLDERS)
def test_every_top_folder_has_a_readme(folder: str) -> None:
    assert (ROOT / folder / "README.md").read_text().startswith("# ")


def test_the_top_level_holds_nothing_unexpected() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in _tracked() if path.parent != ROOT}
    assert {name for name in folders if not name.startswith(".")} == set(TOP_FOLDERS)


def test_no_tracked_file_is_large() -> None:
    large = [path.name for path in _tracked() if path.stat().st_size > MAX_TRACKED_BYTES]
    assert not large, "data and weights do not belong in the repository"


def test_names_of_test_files_are_unique_as_there_are_no_packages_in_tests() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not [path for path in files if path.name == "__init__.py"]
    assert len({path.name for path in files}) == len(files)


def test_everything_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_").lower() for line in stated}
    known = declared | set(PACKAGES) | set(sys.stdlib_module_names)
    # What runs in a benchmark peer's own environment (make peers) imports what that has.
    sources = [path for path in _sources() if path.parent.name != "bench" or not path.name.startswith("peer_")]
    assert {name for path in sources for name in _imports(path)} <= known


def _imports(path: Path) -> set[str]:
    """Top-level names of every import in a file, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    # Parts of a package that is declared, under a name of their own.
    parts = {"pydantic_core": "pydantic", "jwt": "pyjwt"}
    names = {name.partition(".")[0] for name in found}
    return {parts.get(name, name) for name in names}


def test_the_lock_pins_everything_and_names_no_place() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; .+)?", line) for line in pins), pins
    names = {line.partition("==")[0] for line in pins}
    assert not [name for name in names if name.startswith(("nvidia-", "triton"))]
    assert "torch==2.13.0" in pins


def test_the_lock_holds_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[^\w-]", line)[0].lower() for some in stated for line in some} - {"idiolect"}
    lock = (ROOT / "requirements.lock").read_text()
    assert names <= {line.partition("==")[0] for line in lock.splitlines()}


def test_the_wheel_holds_the_three_packages_and_the_sample(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("idiolect-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/__init__.py" for package in PACKAGES} <= names
    sample = {path.name for path in (ROOT / "deploy" / "sample").iterdir()}
    assert {f"idiolect_services/sample_data/{name}" for name in sample} <= names
    assert "platform/__init__.py" not in names
    assert "idiolect/stores/sql/migrations/versions/0001_initial.py" in names
