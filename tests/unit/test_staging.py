"""What is made aside and renamed into place, by processes that may be killed before they come to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from idiolect.ids import sha256_hex
from idiolect.staging import YOUNG_SECONDS, remove_leftovers, staged_file, staged_folder
from idiolect.stores.blobs import FileBlobs

_STAGES = """
import sys
from pathlib import Path
from idiolect import staging
with getattr(staging, sys.argv[2])(Path(sys.argv[1])) as staged:
    if staged.is_dir():
        (staged / "model.safetensors").write_bytes(b"half")
    print(staged, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(root: Path, kind: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """And what it has staged, which is as if it were old."""
    command = [sys.executable, "-c", _STAGES, str(root), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        staged = Path(process.stdout.readline().strip())
        aged(staged)
        try:
            yield process, staged
        finally:
            process.kill()


def aged(path: Path) -> None:
    then = time.time() - 2 * YOUNG_SECONDS
    os.utime(path, (then, then))


@pytest.mark.parametrize("kind", ["staged_folder", "staged_file"])
def test_what_a_killed_process_left_goes_with_the_next_one_and_what_is_in_use_stays(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model").mkdir()
    with another_process(tmp_path, kind) as (killed, left), another_process(tmp_path, kind) as (_, used):
        with staged_folder(tmp_path), staged_file(tmp_path):
            assert left.exists()
        killed.kill()
        killed.wait()
        assert left.exists()
        with staged_file(tmp_path):
            assert not left.exists()
        assert used.exists()
        assert (tmp_path / "model").exists()


def test_what_is_young_stays_since_it_may_not_be_locked_yet(tmp_path: Path) -> None:
    with another_process(tmp_path, "staged_folder") as (killed, left):
        os.utime(left)
        killed.kill()
        killed.wait()
        remove_leftovers(tmp_path)
        assert left.exists()
        aged(left)
        remove_leftovers(tmp_path)
        assert not left.exists()


def test_what_was_renamed_stays_and_what_was_not_is_gone(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with staged_folder(root) as staging:
        staging.rename(root / "there")
    with staged_file(root) as staging:
        staging.rename(root / "here")
    with staged_folder(root), staged_file(root):
        pass
    assert {path.name for path in root.iterdir()} == {"there", "here"}
    remove_leftovers(tmp_path / "nowhere")


def test_a_store_of_blobs_takes_away_what_a_kill_left_in_it(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    with another_process(tmp_path, "staged_file") as (killed, left):
        left.write_bytes(b"half a blob")
        aged(left)
        killed.kill()
        killed.wait()
        digest = blobs.put(b"whole")
    assert not left.exists()
    assert [info.digest for info in blobs.walk()] == [digest] == [sha256_hex(b"whole")]
