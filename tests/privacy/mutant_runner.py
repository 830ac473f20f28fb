"""Runs chosen tests on copies of the source, in processes forked from one that has the heavy libraries already.

A program of its own (`python mutant_runner.py JOBS`): multiprocessing has one fork server per process, and that of the
tests may have been started by other tests, with Idiolect in it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("platform/idiolect", "adapters/idiolect_adapters", "services/idiolect_services")
# None of these may import Idiolect: each child imports its own copy.
PRELOADED = [
    *("pytest", "hypothesis", "numpy", "scipy.optimize", "scipy.stats", "torch", "transformers", "opacus.accountants"),
    *("dp_accounting.pld", "dp_accounting.rdp", "sqlalchemy", "alembic", "pydantic_settings", "typer", "psycopg"),
]
TIMEOUT_S = 300
AT_ONCE = 2
OUTPUT = "pytest-output.txt"


def fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_jobs(jobs: Path) -> None:
    """`jobs` holds [folder, chosen tests] of each copy; what pytest says goes to OUTPUT in its folder."""
    context = fork_server()

    def run(job: tuple[str, list[str]]) -> None:
        _in_a_child(context, Path(job[0]), job[1])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, json.loads(jobs.read_text())))


def _in_a_child(context: ForkServerContext, folder: Path, chosen: Sequence[str]) -> None:
    child = context.Process(target=_run, args=(folder, list(chosen), folder / OUTPUT))
    child.start()
    child.join(TIMEOUT_S)
    if child.is_alive():
        child.kill()
        child.join()


def _run(folder: Path, chosen: list[str], said: Path) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    os.chdir(ROOT)
    roots = [str(folder / source.split("/")[0]) for source in SOURCES]
    already = [name for name in sys.modules if name.split(".")[0] in ("idiolect", "idiolect_adapters")]
    assert not already, f"imported from elsewhere: {already[:3]}"
    sys.path[:0] = [*roots, str(ROOT / "tests")]
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # that of the parent
    import pytest

    fixtures = any(name.startswith(("tests/contracts", "tests/integration", "tests/unit")) for name in chosen)
    # Plugins of pytest that came with the libraries keep their own assertions: that is well.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options = [
        *quiet,
        "-q",
        "-rfE",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    base = ["--basetemp", str(folder / "pytest")]
    pytest.main([*options, *base, *([] if fixtures else ["--noconftest"]), *chosen])


if __name__ == "__main__":
    run_jobs(Path(sys.argv[1]))
