"""`idiolect tenant retention`, `idiolect keys seal` and `replace-store`, and the sweep that a server does by itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from idiolect.audit import INSTALLATION
from idiolect.consent import ConsentChange
from idiolect.errors import ConfigurationError, InvalidInputError, NotFoundError
from idiolect.ids import new_id, text_digest
from idiolect.settings import load_settings
from idiolect.signals.events import Inference
from idiolect_services.cli import app
from idiolect_services.retention import RetentionLoop, sweep_all
from idiolect_services.wiring import Installation, open_installation

NOW = datetime.now(UTC)


@dataclass
class FixedClock:
    """Of the wall, and of the machine."""

    moment: datetime = NOW
    up: float = 0.0

    def now(self) -> datetime:
        return self.moment

    def uptime(self) -> float:
        return self.up

    def runs(self, by: timedelta) -> None:
        self.moment += by
        self.up += by.total_seconds()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with open_installation(load_settings(home=tmp_path)) as installation:
        installation.store.create_tenant("acme", NOW)
        installation.store.create_tenant("other", NOW)
    return tmp_path


def served(installation: Installation, tenant: str, days_ago: float, subject: str | None = None) -> str:
    """The id of an inference that was served then."""
    id_, moment = new_id(), NOW - timedelta(days=days_ago)
    inference = Inference(id_, subject, "chat", text_digest("q"), (text_digest(id_),), (0,), moment)
    installation.store.record_inference(tenant, inference, ["q", id_])
    return id_


def run(home: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--home", str(home)])


def test_a_retention_is_set_shown_and_taken_back(home: Path) -> None:
    assert "365 days (the installation's)" in run(home, "tenant", "retention", "show", "acme").output
    assert "90 days" in run(home, "tenant", "retention", "set", "acme", "90").output
    assert "90 days (its own)" in run(home, "tenant", "retention", "show", "acme").output
    assert "365 days" in run(home, "tenant", "retention", "set", "acme").output
    assert "365 days (the installation's)" in run(home, "tenant", "retention", "show", "acme").output


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("set", "acme", "0"), InvalidInputError),
        (("set", "acme", "99999"), InvalidInputError),
        (("set", "nobody", "9"), NotFoundError),
        (("show", "nobody"), NotFoundError),
    ],
)
def test_what_can_not_be_a_retention_is_refused(home: Path, words: tuple[str, ...], error: type[Exception]) -> None:
    assert isinstance(run(home, "tenant", "retention", *words).exception, error)


def test_a_sweep_keeps_to_the_retention_of_each_tenant(home: Path) -> None:
    run(home, "tenant", "retention", "set", "acme", "10")
    with open_installation(load_settings(home=home)) as installation:
        gone, kept = served(installation, "acme", 11), served(installation, "acme", 9)
        elsewhere, old = served(installation, "other", 300), served(installation, "other", 366)
    done = run(home, "tenant", "retention", "sweep")
    assert "acme: 1 answers" in done.output
    with open_installation(load_settings(home=home)) as installation:
        left = {id_ for id_ in (gone, kept) if installation.store.inference("acme", id_)}
        left |= {id_ for id_ in (elsewhere, old) if installation.store.inference("other", id_)}
    assert left == {kept, elsewhere}


def test_a_server_sweeps_by_itself(home: Path) -> None:
    clock = FixedClock()
    with open_installation(load_settings(home=home), clock) as installation:
        named, unnamed = served(installation, "acme", 1, "ann"), served(installation, "acme", 1)
        loop = RetentionLoop(installation, clock.uptime)
        loop.run_once()
        clock.runs(timedelta(minutes=10))
        loop.run_once()
        assert installation.store.inference("acme", named) is not None
        clock.runs(timedelta(days=365))
        loop.run_once()
        assert installation.store.inference("acme", named) is None
        assert installation.store.inference("acme", unnamed) is None
        assert installation.store.is_all_sealed()
        loop.start()
        loop.stop()


def test_a_clock_that_is_wrong_for_a_moment_deletes_nothing(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a machine that starts in another year, or is set to one, until it is told the time."""
    clock, wrong = FixedClock(), timedelta(days=3650)
    with open_installation(load_settings(home=home), clock) as installation:
        new, old = served(installation, "acme", 1), served(installation, "acme", 366)

        def there(id_: str) -> bool:
            return installation.store.inference("acme", id_) is not None

        clock.moment += wrong
        loop = RetentionLoop(installation, clock.uptime)
        loop.run_once()
        clock.moment -= wrong
        assert there(old)
        clock.runs(timedelta(minutes=10))
        loop.run_once()
        assert not there(old)
        for _ in range(2):
            clock.runs(timedelta(hours=1))
            clock.moment += wrong
            loop.run_once()
            clock.moment -= wrong
            loop.run_once()
            assert there(new)
        assert "the clock jumped 87600.0 hours ahead" in caplog.text
        clock.moment += wrong
        loop.run_once()
        assert there(new)
        clock.runs(timedelta(hours=1))
        loop.run_once()
        assert not there(new)


def test_what_was_swept_is_not_looked_for_again_within_the_hour(home: Path) -> None:
    clock = FixedClock()
    with open_installation(load_settings(home=home), clock) as installation:
        loop = RetentionLoop(installation, clock.uptime)
        for _ in range(2):
            loop.run_once()
        old = served(installation, "acme", 366)
        for gone in (False, True):
            clock.runs(timedelta(minutes=30))
            loop.run_once()
            assert (installation.store.inference("acme", old) is None) is gone


def test_the_setting_is_what_holds_where_a_tenant_says_nothing(home: Path) -> None:
    with open_installation(load_settings(home=home, retention_days=2), FixedClock()) as installation:
        gone, kept = served(installation, "acme", 3), served(installation, "acme", 1)
        sweep_all(installation)
        assert installation.store.inference("acme", gone) is None
        assert installation.store.inference("acme", kept) is not None


def test_a_lost_key_store_is_said_and_can_be_replaced(home: Path) -> None:
    with open_installation(load_settings(home=home)) as installation:
        store = installation.store
        store.change_subject("acme", "ann", ConsentChange(opted_in=True), NOW)
        lost = served(installation, "acme", 1, "ann")
    shutil.rmtree(home / "keys")
    assert isinstance(run(home, "tenant", "retention", "show", "acme").exception, ConfigurationError)
    doctor = run(home, "doctor")
    assert doctor.exit_code == 1
    assert "another key store" in " ".join(doctor.output.split())
    done = run(home, "keys", "replace-store", "--reason", "the disk died")
    assert done.exit_code == 0, done.output
    assert run(home, "keys", "seal").exit_code == 0
    with open_installation(load_settings(home=home)) as installation:
        assert installation.store.inference("acme", lost) is None
        assert installation.store.subject("acme", "ann").opted_in
        assert installation.store.inference("acme", served(installation, "acme", 0, "ann")) is not None
        said = [(entry.action, entry.reason) for entry in installation.store.audit_entries(INSTALLATION)]
    assert ("key_store.replace", "the disk died") in said
