"""Files of preference data, written by the test that reads them; and the real ones, where they are."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes JSON lines, gzipped if the name says so, and returns the folder."""

    def write(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
        return tmp_path

    return write


@pytest.fixture(scope="session")
def real_data() -> Path:
    beside_the_checkout = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("IDIOLECT_DATA_DIR") or beside_the_checkout)
    if not folder.is_dir():
        missing = (
            pytest.fail if os.environ.get("CI") else pytest.skip
        )  # CI has the data: there it must not be passed over
        missing("the real data is not on this machine; set IDIOLECT_DATA_DIR")
    return folder
