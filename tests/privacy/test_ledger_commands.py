"""`idiolect privacy show` and `forecast` say what the ledger holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from idiolect.errors import ConfigurationError, InvalidInputError, NotFoundError
from idiolect.privacy.budget import DEFAULT_DELTA, plan_run
from idiolect.settings import load_settings
from idiolect_services.cli import app
from idiolect_services.wiring import Installation, open_installation

EVENT = plan_run(2.0, DEFAULT_DELTA, 5)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with open_installation(load_settings(home=tmp_path)) as opened:
        opened.store.create_tenant("demo", datetime.now(UTC))
        yield opened


def charge(installation: Installation, user: str, times: int, unit: str = "comparison", days_ago: float = 0.0) -> None:
    subject = installation.pseudonym("demo", user)
    now = datetime.now(UTC) - timedelta(days=days_ago)
    for _ in range(times):
        installation.store.reserve("demo", unit, f"{unit} run", EVENT, [subject], 1e9, now)  # type: ignore[arg-type]


def run(installation: Installation, *words: str) -> str:
    result = CliRunner().invoke(app, ["privacy", *words, "--home", str(installation.root)])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_show_lists_runs_with_purpose_unit_cost_and_state(installation: Installation) -> None:
    charge(installation, "ann", 1)
    charge(installation, "ann", 1, "subject")
    installation.store.settle("demo", installation.store.runs("demo")[0].id, datetime.now(UTC))
    lines = run(installation, "show").strip().splitlines()
    subject, comparison = "".join(lines[:2]), "".join(lines[2:])
    for line, unit, state in ((subject, "subject", "settled"), (comparison, "comparison", "reserved")):
        for part in (f"{unit} run", f"per {unit}", "2.00", f"{EVENT.rho:.4f}", "5 x noise", state):
            assert part in line
    assert "comparison" not in run(installation, "show", "--unit", "subject")


def test_show_says_which_runs_charged_nobody(installation: Installation) -> None:
    installation.store.reserve("demo", "comparison", "user adapters", EVENT, ["x"], 0.0, datetime.now(UTC))
    assert "refused to everyone" in run(installation, "show")


def test_epsilons_are_told_at_the_delta_of_the_training(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A domain of more than 10,000 people trains at a smaller delta than 1e-5."""
    people = [installation.pseudonym("demo", f"p{number}") for number in range(10_001)]
    installation.store.reserve("demo", "subject", "domain chat", EVENT, people, 1e9, datetime.now(UTC))
    charge(installation, "p1", 1)
    assert "at delta 1e-06" in run(installation, "show", "--unit", "subject")
    assert "at delta 1e-05" in run(installation, "show", "--unit", "comparison")
    comparison, subject = run(installation, "show", "--user", "p1").split("per subject: ")
    assert "at delta 1e-05 per comparison" in comparison
    assert "at delta 1e-06 per subject" in subject
    monkeypatch.setenv("IDIOLECT_DELTA", "1e-8")
    assert "at delta 1e-08 per comparison" in run(installation, "show", "--user", "p1")
    assert "at delta 1e-08" in run(installation, "forecast", "--epsilon", "2", "--unit", "subject")


def test_a_forecast_of_sampled_domains_counts_what_they_are_charged(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = room(run(installation, "forecast", "--epsilon", "2", "--unit", "subject"))
    monkeypatch.setenv("IDIOLECT_DOMAIN_SAMPLE_RATE", "0.5")
    assert 1 <= room(run(installation, "forecast", "--epsilon", "2", "--unit", "subject")) < whole
    with pytest.raises(InvalidInputError, match="sample"):
        run(installation, "forecast", "--epsilon", "2", "--unit", "subject", "--steps", "1")


@pytest.mark.parametrize("delta", ["0", "1", "-1", "nan", "soon"])
def test_a_delta_that_is_no_probability_is_refused(delta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDIOLECT_DELTA", delta)
    with pytest.raises(ConfigurationError, match="IDIOLECT_DELTA"):
        load_settings()


@pytest.mark.parametrize("what", ["users", "domain"])
@pytest.mark.parametrize(
    "words", [("--epsilon", "0"), ("--epsilon", "nan"), ("--epsilon", "1000"), ("--delta", "0"), ("--delta", "1")]
)
def test_a_training_is_refused_options_that_protect_nothing(
    installation: Installation, what: str, words: tuple[str, str]
) -> None:
    result = CliRunner().invoke(app, ["train", what, *words, "--home", str(installation.root)])
    assert isinstance(result.exception, ConfigurationError)
    assert words[0].removeprefix("--").upper() in str(result.exception)
    assert not installation.store.runs("demo")


def test_a_sample_rate_of_nobody_is_refused(installation: Installation) -> None:
    for rate in ("0", "1.5", "nan"):
        result = CliRunner().invoke(app, ["train", "domain", "--sample-rate", rate, "--home", str(installation.root)])
        assert isinstance(result.exception, ConfigurationError)
        assert "SAMPLE_RATE" in str(result.exception)


def test_show_of_a_person_keeps_the_units_apart_and_never_adds_them(installation: Installation) -> None:
    charge(installation, "ann", 12)
    charge(installation, "ann", 1, "subject")
    shown = run(installation, "show", "--user", "ann")
    comparison, subject = shown.split("per subject: ")
    assert "epsilon 8.42 by exact composition" in comparison
    assert "epsilon 9.04 by the filter" in comparison
    assert "epsilon 2.00 by exact composition" in subject
    assert "nothing published" in subject
    assert f"{12 * EVENT.rho:.4f}" in comparison
    assert f"{13 * EVENT.rho:.4f}" not in shown
    assert "12 runs" not in run(installation, "show", "--user", "ann", "--unit", "subject")


def test_show_and_forecast_refuse_someone_unknown(installation: Installation) -> None:
    for words in (("show",), ("forecast", "--epsilon", "2")):
        with pytest.raises(NotFoundError, match="nobody"):
            run(installation, *words, "--user", "nobody")


def room(output: str) -> int:
    found = re.search(r"room for (\d+) trainings", output)
    assert found is not None, output
    return int(found[1])


def test_forecast_counts_what_is_left_of_the_budget(installation: Installation) -> None:
    charge(installation, "ann", 3)
    fresh = room(run(installation, "forecast", "--epsilon", "2"))
    assert fresh == room(run(installation, "forecast", "--epsilon", "2", "--steps", "20"))
    shown = run(installation, "forecast", "--epsilon", "2", "--user", "ann")
    assert room(shown) == fresh - 3
    assert len(re.findall(r"after \d+: epsilon", shown)) == min(10, fresh - 3)
    assert room(run(installation, "forecast", "--epsilon", "2", "--user", "ann", "--unit", "subject")) > fresh - 3


def test_a_budget_that_renews_is_forecast_and_shown_per_window(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge(installation, "ann", 3, days_ago=8)
    charge(installation, "ann", 1)
    fresh = room(run(installation, "forecast", "--epsilon", "2"))
    assert room(run(installation, "forecast", "--epsilon", "2", "--user", "ann")) == fresh - 4
    monkeypatch.setenv("IDIOLECT_BUDGET_RENEWAL_DAYS", "7")
    shown = run(installation, "forecast", "--epsilon", "2", "--user", "ann")
    assert room(shown) == fresh - 1
    assert "per window of 7 days" in shown
    person = run(installation, "show", "--user", "ann", "--unit", "comparison")
    assert "4 runs" in person
    assert "per window of 7 days" in person


@pytest.mark.parametrize("epsilon", ["0", "-1", "nan", "inf", "1000"])
def test_forecast_refuses_an_epsilon_that_no_training_may_have(installation: Installation, epsilon: str) -> None:
    with pytest.raises(InvalidInputError, match="epsilon"):
        run(installation, "forecast", "--epsilon", epsilon)


@pytest.mark.parametrize("words", [("--epsilon", "much"), ("--epsilon", "2", "--steps", "1.5"), ()])
def test_forecast_refuses_what_is_no_number(installation: Installation, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run(installation, "forecast", *words)
