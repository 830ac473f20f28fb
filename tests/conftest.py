"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_models import save_tiny


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny random BERT; read only."""
    return save_tiny(tmp_path_factory.mktemp("backbone") / "bert", "bert")
