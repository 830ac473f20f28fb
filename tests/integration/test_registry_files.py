"""`idiolect registry export` and `import`, between two homes with keys of their own."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from idiolect.errors import ConfigurationError, CorruptArtifactError, IdiolectError, NotFoundError
from idiolect.ids import sha256_hex
from idiolect.privacy.budget import PrivacyStatement
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.weights import dump_weights
from idiolect.settings import Settings
from idiolect_services.cli import app
from idiolect_services.wiring import open_installation

NOW = datetime(2026, 5, 1, tzinfo=UTC)
GLOBAL = "a" * 64


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A home with one release, of a domain."""
    home = tmp_path / "here"
    template = ReleaseTemplate(
        tenant="demo",
        scope="domain",
        global_digest=GLOBAL,
        basis_digest="b" * 64,
        kind="head_lora",
        rank=4,
        alpha=4.0,
        targets=("head",),
        tensors=(TensorSpec("B", (1, 4)),),
        privacy=PrivacyStatement("subject", "add or remove one", "gaussian", 2.0, 1e-5, 0.1, 1.0, 1.0, 20, "exact"),
        data_window="all",
        producer="idiolect 0.1.0",
        run="run1",
        created_at=NOW,
    )
    weights = dump_weights({"B": np.ones((1, 4), np.float32)})
    version = Version("v1", "r1", "", "chat", 0, None, weights, sha256_hex(weights))
    with open_installation(Settings(home=home)) as installation:
        mine = replace(version, key_id=installation.signer.key_id)
        signed = replace(mine, signature=installation.signer.sign(manifest_bytes(template, mine)))
        installation.store.create_tenant("demo", NOW)
        installation.store.set_global(GLOBAL, NOW, reason="first", actor="test")
        installation.store.publish("r1", template, [signed], NOW, reason="trained", actor="test")
    return home


@pytest.fixture
def there(tmp_path: Path) -> Path:
    home = tmp_path / "there"
    with open_installation(Settings(home=home)) as installation:
        installation.store.create_tenant("demo", NOW)
        installation.store.set_global(GLOBAL, NOW, reason="first", actor="test")
    return home


def run(home: Path, *words: object) -> str:
    """What it raised is raised again, since `main` turns it into one line."""
    command = ["registry", *map(str, words), "--home", str(home), "--tenant", "demo"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    if isinstance(result.exception, IdiolectError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def public_key(home: Path) -> str:
    with open_installation(Settings(home=home)) as installation:
        return installation.signer.public_key.hex()


def served(home: Path) -> Any:
    with open_installation(Settings(home=home)) as installation:
        found = installation.store.resolve("demo", None, "chat").domain
        return None if found is None else found.id


def test_a_domain_goes_to_another_installation_when_its_operator_names_the_key(
    here: Path, there: Path, tmp_path: Path
) -> None:
    file = tmp_path / "chat.release"
    said = run(here, "export", "r1", file)
    assert public_key(here) in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(CorruptArtifactError, match=public_key(here)):
        run(there, "import", file, "--reason", "from Berlin")
    assert served(there) is None
    answer = run(there, "import", file, "--reason", "from Berlin", "--from-key", public_key(here))
    assert "1 versions of release r1, live for nobody yet" in answer
    assert served(there) is None
    run(there, "promote", "r1", "--reason", "good")
    assert served(there) == "v1"
    assert "here already" in run(there, "import", file, "--reason", "again", "--from-key", public_key(here))
    assert public_key(here) in run(there, "card", "r1")
    assert public_key(here) not in run(here, "card", "r1")


def test_an_export_replaces_no_file_and_leaves_none_behind_that_is_not_whole(here: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.release"
    file.write_text("mine")
    with pytest.raises(ConfigurationError, match="exists"):
        run(here, "export", "r1", file)
    with pytest.raises(NotFoundError):
        run(here, "export", "r2", tmp_path / "none.release")
    with pytest.raises(ConfigurationError, match="can't be written"):
        run(here, "export", "r1", tmp_path / "no" / "such" / "folder")
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.release", "here"]


def test_what_is_no_release_is_refused(here: Path, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"\x80\x04\x95pickle\n" * 3)
    with pytest.raises(CorruptArtifactError):
        run(here, "import", nonsense, "--reason", "why not")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="can't be read"):
            run(here, "import", path, "--reason", "why not")


def test_a_bound_global_model_that_is_not_live_is_said(here: Path, there: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.release"
    run(here, "export", "r1", file)
    with open_installation(Settings(home=there)) as installation:
        installation.store.set_global("f" * 64, NOW, reason="another", actor="test")
    answer = run(there, "import", file, "--reason", "from Berlin", "--from-key", public_key(here))
    assert f"bound to the global model {GLOBAL}, which is not the live one" in answer
