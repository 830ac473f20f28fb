"""The installation's secrets: made once, for one owner, whoever starts first."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from idiolect.errors import ConfigurationError
from idiolect_services import secrets as module
from idiolect_services.secrets import SECRET_BYTES, load_or_create, tenant_key


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_secret_is_made_once_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "master.key"
    secret = load_or_create(path)
    assert len(secret) == SECRET_BYTES
    assert load_or_create(path) == secret == path.read_bytes()
    assert load_or_create(tmp_path / "secrets" / "signing.key") != secret


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "secrets" / "master.key"
        load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_is_left_beside_it(tmp_path: Path) -> None:
    load_or_create(tmp_path / "master.key")
    assert names_in(tmp_path) == ["master.key"]


def test_racing_threads_get_one_secret(tmp_path: Path) -> None:
    for attempt in range(30):
        path, found, start = tmp_path / str(attempt) / "master.key", [], threading.Barrier(8)

        def race(path: Path = path, found: list[bytes] = found, start: threading.Barrier = start) -> None:
            start.wait()
            found.append(load_or_create(path))

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
        assert names_in(path.parent) == ["master.key"]


def test_racing_processes_get_one_secret(tmp_path: Path) -> None:
    """They wait for a file to appear, so that they really start together."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom idiolect_services.secrets import load_or_create\n"
        "print('ready', flush=True)\n"
        "while not Path(sys.argv[2]).exists(): pass\n"
        "print(load_or_create(Path(sys.argv[1])).hex())\n"
    )
    go, path = tmp_path / "go", tmp_path / "secrets" / "master.key"
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(go)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    go.touch()
    found = {racer.communicate(timeout=60)[0] for racer in racers}
    assert found == {path.read_bytes().hex() + "\n"}
    assert names_in(path.parent) == ["master.key"]


def test_who_comes_second_takes_what_the_first_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrowest race: the other process links its secret between our look and our link."""
    path, real = tmp_path / "master.key", os.link

    def beaten(source: str, target: Path) -> None:
        target.write_bytes(b"\x07" * SECRET_BYTES)
        real(source, target)

    monkeypatch.setattr(module.os, "link", beaten)
    assert load_or_create(path) == b"\x07" * SECRET_BYTES
    assert names_in(tmp_path) == ["master.key"]


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x01" * 31, b"\x01" * 33, b"\x01" * 64])
def test_a_secret_of_the_wrong_length_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"master.key is damaged: {len(content)} bytes") as refused:
        load_or_create(path)
    assert "backup" in refused.value.mend
    assert path.read_bytes() == content


def test_a_write_that_fails_leaves_no_half_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", disk_full)
    with pytest.raises(ConfigurationError, match="No space left"):
        load_or_create(tmp_path / "master.key")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "master.key").mkdir()
    with pytest.raises(ConfigurationError, match=r"master\.key can't be read"):
        load_or_create(tmp_path / "master.key")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="can't be read or written"):
        load_or_create(tmp_path / "file" / "master.key")


def test_every_tenant_has_a_key_of_its_own() -> None:
    master = b"\x05" * SECRET_BYTES
    keys = {tenant_key(master, tenant) for tenant in ("acme", "acme2", "other", "")}
    assert len(keys) == 4
    assert tenant_key(master, "acme") == tenant_key(master, "acme") != tenant_key(b"\x06" * SECRET_BYTES, "acme")
