from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_world import World, world_at


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path) as made:
        yield made
