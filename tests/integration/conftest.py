from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_home import Home, opened, prepare


@pytest.fixture(scope="session")
def prepared_home(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with imported data and a trained global model; copied by each test that needs one."""
    root = tmp_path_factory.mktemp("prepared") / "home"
    prepare(root, tiny_bert)
    return root


@pytest.fixture
def home(prepared_home: Path, tiny_bert: Path, tmp_path: Path) -> Iterator[Home]:
    shutil.copytree(prepared_home, tmp_path / "home")
    with opened(tmp_path / "home", tiny_bert) as made:
        yield made
