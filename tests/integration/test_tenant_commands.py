"""`idiolect tenant upstream` and `idiolect keys rotate`, as an operator uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from idiolect.clock import SystemClock
from idiolect.errors import ConflictError, InvalidInputError, NotFoundError
from idiolect.settings import load_settings
from idiolect.tenancy import hash_secret
from idiolect_services.cli import app
from idiolect_services.upstream_settings import api_key_of
from idiolect_services.wiring import open_installation

URL = "https://api.example.com/v1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IDIOLECT_UPSTREAM_HOSTS", "api.example.com")
    monkeypatch.setenv("THE_KEY", "sk-SECRET")
    with open_installation(load_settings(home=tmp_path)) as installation:
        installation.store.create_tenant("acme", SystemClock().now())
    return tmp_path


def run(home: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--home", str(home)])


def test_an_upstream_is_set_shown_without_its_key_and_removed(home: Path) -> None:
    done = run(home, "tenant", "upstream", "set", "acme", URL, "--key-from", "THE_KEY", "--model", "tiny")
    assert done.exit_code == 0, done.output
    with open_installation(load_settings(home=home)) as installation:
        upstream = installation.store.upstream("acme")
        assert upstream is not None
        assert api_key_of(installation.vault, "acme", upstream) == "sk-SECRET"
    shown = run(home, "tenant", "upstream", "show", "acme").output
    assert URL in shown
    assert "tiny" in shown
    assert "SECRET" not in shown + done.output
    assert run(home, "tenant", "upstream", "remove", "acme").exit_code == 0
    assert isinstance(run(home, "tenant", "upstream", "show", "acme").exception, NotFoundError)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("acme", "http://127.0.0.1:1"), InvalidInputError),
        (("acme", URL, "--key-from", "NO_SUCH_VARIABLE"), InvalidInputError),
        (("nobody", URL), NotFoundError),
        (("No Name", URL), InvalidInputError),
    ],
)
def test_what_can_not_be_an_upstream_is_refused(home: Path, words: tuple[str, ...], error: type[Exception]) -> None:
    assert isinstance(run(home, "tenant", "upstream", "set", *words).exception, error)


def test_a_rotated_key_is_printed_once_and_replaces_the_old_one(home: Path) -> None:
    created = run(home, "keys", "create", "acme", "--scope", "infer").output
    key_id, old = created.split()[2].rstrip(","), created.split()[-1]
    rotated = run(home, "keys", "rotate", key_id)
    assert rotated.exit_code == 0, rotated.output
    new = rotated.output.split()[-1]
    with open_installation(load_settings(home=home)) as installation:
        assert installation.store.authenticate(hash_secret(old)) is None
        caller = installation.store.authenticate(hash_secret(new))
    assert caller is not None
    assert caller.scopes == {"infer"}
    assert isinstance(run(home, "keys", "rotate", key_id).exception, ConflictError)
