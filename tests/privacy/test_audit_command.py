"""`idiolect privacy audit`: what it prints, writes and returns."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from idiolect.errors import InvalidInputError
from idiolect_adapters.audit import faults, membership, user_canaries
from idiolect_services.cli.privacy_audit import audit


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(audit)
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def _few_shadows(monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(membership.membership_inference, targets=1, shadows=200)
    monkeypatch.setattr(membership, "membership_inference", few)


QUICK = ("--mechanism", "user", "--confidence", "0.9999999", "--trials", "2000")


def test_an_audit_of_what_ships_ends_well_and_writes_its_outcome(tmp_path: Path) -> None:
    result = run(*QUICK, "--epsilon", "4", "--json", str(tmp_path / "audit.json"))
    assert result.exit_code == 0, result.output
    assert "No attack shows more than the claim" in result.output
    outcome = json.loads((tmp_path / "audit.json").read_text())
    (report,) = outcome["mechanisms"]
    assert (report["mechanism"], report["epsilon_claimed"], report["caught"]) == ("user", 4.0, False)
    assert outcome["membership"]["caught"] is False
    assert outcome["self_test"] == []


def test_the_self_test_shows_every_fault_and_that_it_was_caught(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    result = run("--mechanism", "user", "--confidence", "0.99999", "--self-test", "--json", str(path))
    shown = {row["fault"]: row["caught"] for row in json.loads(path.read_text())["self_test"]}
    assert set(shown) == set(faults.planted_user_faults())
    assert all(shown.values()), shown
    assert result.output.count(" caught ") == len(shown)
    assert "missed" not in result.output


def test_a_missed_fault_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "planted_user_faults", lambda: {"none at all": user_canaries.shipped_user()})
    result = run(*QUICK, "--self-test")
    assert result.exit_code == 1
    assert "Missed: user / none at all." in result.output


def test_a_refuted_claim_fails_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = faults.planted_user_faults()["no clipping"]
    monkeypatch.setattr(user_canaries, "shipped_user", lambda: broken)
    result = run(*QUICK)
    assert result.exit_code == 1
    assert "claim of the user mechanism is refuted" in result.output


def test_a_file_that_cannot_be_written_is_refused_before_the_attack(tmp_path: Path) -> None:
    result = run(*QUICK, "--json", str(tmp_path / "absent" / "audit.json"))
    assert isinstance(result.exception, InvalidInputError)
    assert result.output == ""


@pytest.mark.parametrize("wrong", [("--epsilon", "0"), ("--epsilon", "nan"), ("--delta", "1"), ("--trials", "3")])
def test_a_setting_that_is_not_usable_is_an_error_that_names_it(wrong: tuple[str, str]) -> None:
    result = run(*QUICK, *wrong)
    assert isinstance(result.exception, InvalidInputError)
