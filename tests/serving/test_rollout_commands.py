"""`idiolect rollout` over a home folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from idiolect.errors import ConflictError, InvalidInputError, NotFoundError
from idiolect.settings import Settings
from idiolect.stores.rollout_ports import StagedModel
from idiolect_services.cli import app
from idiolect_services.wiring import open_installation

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with open_installation(Settings(home=tmp_path)) as installation:
        installation.store.create_tenant("demo", installation.clock.now())

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["rollout", *arguments, "--home", str(tmp_path)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return call


def started(run: Run, *more: str) -> str:
    said = run("start", "--strength", "0.5", "--steps", "0.1,0.5", "--reason", "half?", *more)
    return said.partition(":")[0]


def shown(run: Run, rollout: str) -> dict[str, Any]:
    return dict(json.loads(run("show", rollout)))


def test_a_rollout_is_started_listed_shown_and_aborted(run: Run) -> None:
    rollout = started(run, "--margin", "success=0.1", "--margin", "slow=0.2")
    assert rollout in run("list")
    found = shown(run, rollout)
    assert (found["state"], found["share"]) == ("running", 0.1)
    assert found["plan"]["guardrails"] == {"success": 0.1, "slow": 0.2}
    assert "not enough data" in run("evaluate")
    run("hold", rollout, "--reason", "look")
    assert shown(run, rollout)["state"] == "held"
    run("resume", rollout, "--reason", "fine")
    run("abort", rollout, "--reason", "enough")
    assert shown(run, rollout)["state"] == "aborted"
    assert "no rollout is running" in run("evaluate")


def test_no_state_is_cut_off_in_the_list(run: Run) -> None:
    rollout = started(run)
    run("abort", rollout, "--reason", "enough")
    listed = run("list")
    assert "aborted" in listed
    assert "not enough" in listed
    assert max(map(len, listed.splitlines())) <= 80
    assert "…" not in listed


def test_nothing_is_rolled_out_for_a_tenant_that_there_is_not(run: Run) -> None:
    rollout = started(run)
    calls = [
        ("start", "--strength", "0.5", "--reason", "half?"),
        ("list",),
        ("show", rollout),
        *((action, rollout, "--reason", "x") for action in ("hold", "resume", "abort")),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match="there is no tenant 'dmeo'"):
            run(*call, "--tenant", "dmeo")
    assert shown(run, rollout)["state"] == "running"


def test_a_draft_is_resumed_into_running(run: Run) -> None:
    rollout = started(run, "--draft")
    assert shown(run, rollout)["state"] == "draft"
    run("resume", rollout, "--reason", "go")
    assert shown(run, rollout)["state"] == "running"
    with pytest.raises(ConflictError):
        started(run)


def test_a_global_model_is_rolled_out_for_the_installation_whatever_the_tenant(run: Run, tmp_path: Path) -> None:
    with open_installation(Settings(home=tmp_path)) as installation:
        store, now = installation.store, installation.clock.now()
        store.set_global("a" * 64, now, reason="first", actor="test")
        store.stage_model(StagedModel("b" * 64, "a" * 64, b"{}", now, "trained", "test"))
    said = run("start", "--global", "latest", "--steps", "0.1,1", "--reason", "newer", "--tenant", "acme")
    rollout = said.partition(":")[0]
    found = shown(run, rollout)
    assert (found["candidate"]["id"], found["covers"], found["state"]) == ("b" * 64, ["global"], "running")
    assert rollout in run("list", "--tenant", "other")
    assert "not enough data" in run("evaluate")
    run("hold", rollout, "--reason", "look")
    run("abort", rollout, "--reason", "enough")
    assert shown(run, rollout)["state"] == "aborted"
    assert "no rollout is running" in run("evaluate")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), InvalidInputError),
        (("--strength", "0.5", "--release", "r"), InvalidInputError),
        (("--strength", "nan", "--steps", "0.5"), InvalidInputError),
        (("--strength", "0.5", "--steps", "a,b"), InvalidInputError),
        (("--strength", "0.5", "--steps", "0.5", "--margin", "joy=1"), InvalidInputError),
        (("--strength", "0.5", "--steps", "0.5", "--margin", "slow"), InvalidInputError),
        (("--release", "missing"), NotFoundError),
        (("--global", "latest"), NotFoundError),
        (("--global", "latest", "--release", "r"), InvalidInputError),
    ],
)
def test_what_can_not_be_rolled_out_is_said(run: Run, arguments: tuple[str, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        run("start", *arguments, "--reason", "x")
