"""Settings come from the environment, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from idiolect.errors import ConfigurationError
from idiolect.privacy.budget import Budget, plan_run
from idiolect.settings import DEFAULT_BACKBONE, Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"IDIOLECT_{name.upper()}", raising=False)


def test_nothing_has_to_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings()
    assert settings.root == tmp_path / ".idiolect"
    assert settings.sql_url == f"sqlite:///{tmp_path / '.idiolect' / 'idiolect.db'}"
    assert settings.backbone == DEFAULT_BACKBONE
    assert settings.port == 8080


def test_the_environment_is_read_and_an_override_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "from-env"))
    monkeypatch.setenv("IDIOLECT_PORT", "9000")
    monkeypatch.setenv("IDIOLECT_DATABASE_URL", "postgresql+psycopg://x/y")
    assert load_settings().root == tmp_path / "from-env"
    assert load_settings(home=tmp_path / "mine", port=None).root == tmp_path / "mine"
    assert load_settings(port=None).port == 9000
    assert load_settings().sql_url == "postgresql+psycopg://x/y"


def test_settings_can_not_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("PORT", ""),
        ("MAX_DOCUMENTS", "0"),
        ("MAX_TEXT_CHARS", "-1"),
        ("MAX_BODY_BYTES", "10"),
        ("FEATURE_CACHE_BYTES", "-1"),
        ("RETRAIN_AFTER", "0"),
        *[
            (name, value)
            for name in ("USER_EPSILON", "USER_BUDGET_EPSILON", "DOMAIN_EPSILON", "DOMAIN_BUDGET_EPSILON")
            for value in ("0", "-1", "nan", "inf", "-inf", "1000", "two", "")
        ],
    ],
)
def test_a_setting_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IDIOLECT_{name}", value)
    with pytest.raises(ConfigurationError, match=f"IDIOLECT_{name} is not valid") as refused:
        load_settings()
    assert refused.value.mend


def test_one_training_fits_into_each_default_budget() -> None:
    """Otherwise a fresh installation could not train anybody."""
    settings = load_settings()
    for unit, epsilon, budget in (
        ("comparison", settings.user_epsilon, settings.user_budget_epsilon),
        ("subject", settings.domain_epsilon, settings.domain_budget_epsilon),
    ):
        assert plan_run(epsilon, 1e-5, 5).rho <= Budget(unit, budget).rho  # type: ignore[arg-type]


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description and field.description.endswith(".") for field in Settings.model_fields.values())
