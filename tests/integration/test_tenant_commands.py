"""`idiolect tenant upstream` and `idiolect keys rotate`, as an operator uses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from idiolect.clock import SystemClock
from idiolect.errors import ConflictError, InvalidInputError, NotFoundError
from idiolect.settings import load_settings
from idiolect.tenancy import hash_secret
from idiolect_services.cli import app
from idiolect_services.upstream_settings import api_key_of
from idiolect_services.wiring import open_installation

URL = "https://api.example.com/v1"
WHY = ("--reason", "a test")
# Every command about one tenant, and what else it has to be given.
OF_A_TENANT: dict[str, tuple[str, ...]] = {
    "eval": ("polis",),
    "privacy forecast": ("--epsilon", "1"),
    "privacy show": (),
    "registry add-peft": ("LORA", "--domain", "d", *WHY),
    "registry card": ("r",),
    "registry diff": ("a", "b"),
    "registry export": ("r", "FILE"),
    "registry export-peft": ("v", "FILE"),
    "registry gc": ("--apply",),
    "registry history": ("--domain", "d"),
    "registry import": ("FILE", *WHY),
    "registry lineage": ("--user", "u"),
    "registry list": (),
    "registry promote": ("r", *WHY),
    "registry revoke": ("r", *WHY),
    "registry rollback": ("--domain", "d", *WHY),
    "registry show": ("v",),
    "rollout abort": ("r", *WHY),
    "rollout hold": ("r", *WHY),
    "rollout list": (),
    "rollout resume": ("r", *WHY),
    "rollout show": ("r",),
    "rollout start": ("--strength", "0.5", *WHY),
    "tenant quota remove": ("TENANT", "people"),
    "tenant quota set": ("TENANT", "people", "1"),
    "tenant quota show": ("TENANT",),
    "tenant retention set": ("TENANT", "30"),
    "tenant retention show": ("TENANT",),
    "tenant upstream remove": ("TENANT",),
    "tenant upstream set": ("TENANT", URL),
    "tenant upstream show": ("TENANT",),
    "train carry": (),
    "train domain": (),
    "train global": (),
    "train users": (),
    "user erase": ("u",),
    "user export": ("u", "FILE"),
    "user reset": ("u",),
    "user show": ("u",),
}
MAKE_ONE = {"import", "keys create"}
OF_LOGS = {"audit list", "audit verify"}  # which outlive their tenants


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
        (("No Name", URL), NotFoundError),
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


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(words), command
    for name, child in (children or {}).items():
        yield from commands(child, (*words, name))


def test_every_command_about_a_tenant_is_listed_here() -> None:
    found = commands(typer.main.get_command(app))
    about = {words for words, command in found if any(given.name == "tenant" for given in command.params)}
    assert about - MAKE_ONE - OF_LOGS == set(OF_A_TENANT)


@pytest.mark.parametrize("command", OF_A_TENANT)
def test_a_tenant_that_there_is_not_is_refused_and_nothing_is_done(home: Path, tmp_path: Path, command: str) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (lora / name).write_bytes(b"{}")
    given = {"LORA": str(lora), "FILE": str(tmp_path / "file"), "TENANT": "amce"}
    words = [given.get(word, word) for word in OF_A_TENANT[command]]
    named = () if "TENANT" in OF_A_TENANT[command] else ("--tenant", "amce")
    done = run(home, *command.split(), *words, *named)
    assert isinstance(done.exception, NotFoundError), done.output
    assert "there is no tenant 'amce'" in str(done.exception)
    assert not (tmp_path / "file").exists()
    with open_installation(load_settings(home=home)) as installation:
        assert not installation.store.tenant_exists("amce")
        assert installation.store.audit_entries("amce") == []
