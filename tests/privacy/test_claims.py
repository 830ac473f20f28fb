"""Claims come from the signed manifest alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from idiolect.consent import ConsentChange
from idiolect.errors import ConfigurationError, CorruptArtifactError, IdiolectError, NotFoundError
from idiolect.ids import sha256_hex
from idiolect.privacy.budget import Budget, PrivacyStatement, plan_run, statement_for
from idiolect.privacy.claims import claims, not_protected, render_card
from idiolect.privacy.events import UNITS, Unit
from idiolect.registry.manifest import ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.weights import dump_weights
from idiolect.settings import load_settings
from idiolect_services.cli import app
from idiolect_services.wiring import open_installation

T0 = datetime(2026, 5, 1, 12, tzinfo=UTC)
WEIGHTS = dump_weights({"B": np.array([[0.1, -0.2]], np.float32)})


def statement(unit: Unit = "comparison", epsilon: float = 2.0, **fields: Any) -> PrivacyStatement:
    return statement_for(unit, plan_run(epsilon, 1e-5, 5, allow_weak=True), 0.5, 1e-5, **fields)


def template(privacy: PrivacyStatement | None = None, **changes: Any) -> ReleaseTemplate:
    base = ReleaseTemplate(
        tenant="acme",
        scope="user",
        global_digest="a" * 64,
        basis_digest="b" * 64,
        kind="head_lora",
        rank=2,
        alpha=2.0,
        targets=("head",),
        tensors=(TensorSpec("B", (1, 2)),),
        privacy=privacy or statement(budget=Budget("comparison", 8.0)),
        data_window="the newest 50",
        producer="idiolect 0.1.0",
        run="run-1",
        created_at=T0,
    )
    return replace(base, **changes)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An installation with one released user version, r1."""
    with open_installation(load_settings(home=tmp_path)) as installation:
        store, signer = installation.store, installation.signer
        store.create_tenant("acme", T0)
        store.set_global("a" * 64, T0, reason="first", actor="admin")
        store.change_subject("acme", "ann", ConsentChange(opted_in=True), T0)
        made = template()
        version = Version("v1", "r1", "ann", "", 0, None, WEIGHTS, sha256_hex(WEIGHTS), key_id=signer.key_id)
        signed = replace(version, signature=signer.sign(manifest_bytes(made, version)))
        store.publish("r1", made, [signed], T0, reason="trained", actor="trainer")
    return tmp_path


def card(home: Path, release: str = "r1") -> str:
    result = CliRunner().invoke(app, ["registry", "card", release, "--tenant", "acme", "--home", str(home)])
    if result.exception is not None:
        assert "Privacy" not in result.output
        raise result.exception
    return result.output


def edit(home: Path, privacy: dict[str, Any]) -> None:
    engine = create_engine(f"sqlite:///{home / 'idiolect.db'}")
    with engine.begin() as connection:
        stored = json.loads(connection.execute(text("SELECT template FROM releases")).scalar_one())
        connection.execute(text("UPDATE releases SET template = :t"), {"t": json.dumps(stored | {"privacy": privacy})})
    engine.dispose()


def edits(privacy: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each field changed, taken away or added."""
    for field in dataclasses.fields(PrivacyStatement):
        value = privacy.get(field.name)
        if isinstance(value, float | int):
            news: list[Any] = [value / 2, value * (1 + 1e-12), -value, "1", True, float("nan")]
        else:
            news = ["subject", "add or remove one person", "", 3, 0.5, ["x"]]
        yield from (privacy | {field.name: new} for new in news)
        if field.name in privacy:
            yield {name: old for name, old in privacy.items() if name != field.name}
    yield privacy | {"certified": True}
    yield {}


def test_no_card_is_rendered_of_a_manifest_whose_privacy_was_edited(home: Path) -> None:
    true = template().privacy.to_json()
    assert "epsilon 2 at delta 1e-05" in card(home)
    tried = 0
    for edited in edits(true):
        edit(home, edited)
        with pytest.raises(CorruptArtifactError):
            card(home)
        tried += 1
    assert tried > 60
    edit(home, true)
    assert "epsilon 2 at delta 1e-05" in card(home)


def test_a_card_names_what_was_released_and_whether_it_still_counts(home: Path) -> None:
    shown = card(home)
    assert shown.startswith("# User adapters of 2026-05-01\n")
    for part in ("acme", "not revoked", "| versions | 1 |", "head_lora on head", "`B` 1 x 2 F32", "`run-1`", "a" * 64):
        assert part in shown
    with open_installation(load_settings(home=home)) as installation:
        installation.store.revoke_release("acme", "r1", T0, reason="bad", actor="admin")
    assert "**revoked: it is not served**" in card(home)


def test_there_is_no_card_of_a_release_that_nobody_can_verify(home: Path) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        card(home, "missing")
    (home / "secrets" / "signing.key").unlink()
    with pytest.raises(ConfigurationError, match="not the installation's"):
        card(home)


@pytest.mark.parametrize("unit", UNITS)
def test_claims_give_every_number_that_was_signed(unit: Unit) -> None:
    made = statement(unit)
    said = "\n".join(claims(made))
    for part in ("epsilon 2 at delta 1e-05", made.adjacency, made.mechanism, made.accountant, "5 releases", "to 0.5"):
        assert part in said
    assert f"{made.noise_multiplier:.4g}" in said
    assert f"{made.rho:.4g}" in said
    assert "weak" not in said
    assert "randomised response" not in said
    assert "Nothing is claimed about this training together with others" in said


def test_claims_of_different_units_promise_different_things() -> None:
    assert "one comparison of the person" in claims(statement("comparison"))[0]
    assert "one person with everything" in claims(statement("subject"))[0]
    assert not set(not_protected(statement("comparison"))) >= set(not_protected(statement("subject")))


def test_a_user_adapter_never_claims_to_protect_its_person() -> None:
    said = " ".join(not_protected(statement("comparison")))
    assert "no guarantee for the person as a whole" in said
    for unit in UNITS:
        said = " ".join(not_protected(statement(unit)))
        assert "whoever operates the installation" in said
        assert "declared public" in said


def test_a_budget_that_renews_is_claimed_per_window() -> None:
    forever = claims(statement(budget=Budget("comparison", 8.0)))
    assert any("epsilon 8 at delta 1e-05, for ever" in line for line in forever)
    windowed = claims(statement(budget=Budget("comparison", 8.0, window=timedelta(days=30))))
    (line,) = [line for line in windowed if "per window of 30 days" in line]
    assert "no bound" in line
    assert not any("for ever" in line for line in windowed)


def test_a_weak_or_locally_private_run_says_so() -> None:
    assert any("weak" in line for line in claims(statement(epsilon=1000.0)))
    local = [line for line in claims(statement(local_epsilon=1.5)) if "randomised response" in line]
    assert len(local) == 1
    assert "epsilon 1.5 per signal" in local[0]
    assert "Imported comparisons" in local[0]


def test_new_fields_leave_the_bytes_of_earlier_manifests_alone() -> None:
    old = {
        "unit": "comparison",
        "adjacency": "add or remove one",
        "mechanism": "gaussian",
        "epsilon": 2.0,
        "delta": 1e-5,
        "rho": 0.1,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "steps": 20,
        "accountant": "exact",
    }
    assert PrivacyStatement.from_json(old).to_json() == old
    event = plan_run(50.0, 1e-5, 5, allow_weak=True, sample_rate=0.5, unsampled_steps=1)
    budget = Budget("subject", 60.0, window=timedelta(days=7))
    new = statement_for("subject", event, 0.5, 1e-5, local_epsilon=1.0, budget=budget)
    assert PrivacyStatement.from_json(json.loads(json.dumps(new.to_json()))) == new
    assert set(new.to_json()) == {field.name for field in dataclasses.fields(PrivacyStatement)}


def test_a_statement_with_other_fields_is_refused() -> None:
    good = statement().to_json()
    for bad in ({}, good | {"extra": 1}, {name: value for name, value in good.items() if name != "unit"}):
        with pytest.raises(IdiolectError, match="privacy statement"):
            PrivacyStatement.from_json(bad)


def test_no_value_can_break_out_of_its_cell() -> None:
    made = template(data_window="all | ever\n\n# Certified\n| x", tenant="a|b")
    shown = render_card(made, 3, revoked=False)
    assert "\n# Certified" not in shown
    assert "all \\| ever # Certified \\| x" in shown
    assert shown.count("\n# ") == 0
