"""Keys and secret settings from a folder that a container mounts: read, never made, never written."""

from __future__ import annotations

from pathlib import Path

import pytest

from idiolect.errors import ConfigurationError
from idiolect.settings import load_settings
from idiolect_services.secrets import KEY_FILES
from idiolect_services.wiring import open_installation


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mounted"
    folder.mkdir()
    for number, name in enumerate(KEY_FILES):
        (folder / name).write_bytes(bytes([number + 1]) * 32)
    monkeypatch.setenv("IDIOLECT_SECRETS_DIR", str(folder))
    monkeypatch.delenv("IDIOLECT_DATABASE_URL", raising=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shared(folder: Path) -> dict[str, str]:
    return {name: f"sqlite:///{folder / name}.db" for name in ("database_url", "keys_url")}


def test_two_homes_with_the_same_mounted_keys_are_one_installation(mounted: Path, tmp_path: Path) -> None:
    before, found = contents(mounted), set()
    for name in ("one", "two"):
        with open_installation(load_settings(home=tmp_path / name, **shared(tmp_path))) as installation:
            found.add((installation.signer.key_id, installation.pseudonym("acme", "ann")))
        assert not (tmp_path / name / "secrets").exists()
    assert len(found) == 1
    assert contents(mounted) == before


def test_a_replica_with_keys_of_its_own_is_refused_and_told_how_to_get_the_right_ones(
    mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = shared(tmp_path)
    with open_installation(load_settings(home=tmp_path / "one", **settings)):
        pass
    monkeypatch.delenv("IDIOLECT_SECRETS_DIR")
    with (
        pytest.raises(ConfigurationError, match="master key is not the one") as refused,
        open_installation(load_settings(home=tmp_path / "two", **settings)),
    ):
        pass
    assert "deploy/README" in refused.value.mend


@pytest.mark.parametrize("name", KEY_FILES)
def test_a_key_that_is_not_mounted_is_named_and_not_made(mounted: Path, tmp_path: Path, name: str) -> None:
    (mounted / name).unlink()
    with (
        pytest.raises(ConfigurationError, match=f"lacks {name}") as refused,
        open_installation(load_settings(home=tmp_path / "home")),
    ):
        pass
    assert "32 random bytes" in refused.value.mend
    assert not (mounted / name).exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDIOLECT_SECRETS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="nowhere', which is no folder"):
        load_settings()


def test_settings_may_be_files_there_and_the_environment_wins(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mounted / "idiolect_database_url").write_text("postgresql://idiolect:pw@db/idiolect\n")
    (mounted / "idiolect_metrics_token").write_text("a-token-of-sixteen\n")
    assert load_settings().sql_url == "postgresql://idiolect:pw@db/idiolect"
    token = load_settings().metrics_token
    assert token is not None
    assert token.get_secret_value() == "a-token-of-sixteen"
    monkeypatch.setenv("IDIOLECT_DATABASE_URL", "postgresql://other/one")
    assert load_settings().sql_url == "postgresql://other/one"
