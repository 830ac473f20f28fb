"""`idiolect eval`: what is live, judged on held-out comparisons and saved as a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_home import TENANT, Home, RecordedNoise
from typer.testing import CliRunner

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.signals.comparison import Comparison, Item, PreferenceDataset
from idiolect.stores.ports import ImportOptions
from idiolect_services import evaluation
from idiolect_services.cli import app
from idiolect_services.datasets import import_dataset
from idiolect_services.evaluation import GAVE, evaluate_dataset

ITEMS = tuple(Item("d", "p", "word " * (n + 1)) for n in range(6))


def held_out(home: Home, name: str, *, public: bool = True, opt_in: bool = False) -> None:
    """Three people who answered the same pairs; one of them the other way round, one with every pair twice."""
    pairs = [(a, b) for a in range(6) for b in range(a)]
    rows = [Comparison("ann", a, b) for a, b in pairs] + [Comparison("bob", b, a) for a, b in pairs]
    rows += [Comparison("cat", a, b) for a, b in pairs] * 2 + [Comparison("cat", 0, 5)]
    dataset = PreferenceDataset(
        name,
        name.ljust(64, "0"),
        ITEMS,
        comparisons=(Comparison("old", 0, 1),),
        new_people=frozenset({"ann", "bob", "cat"}),
        adaptation=tuple(Comparison("ann", a, 1) for a in (0, 2, 3)),
        evaluation={"test_new": tuple(rows)},
    )
    import_dataset(home.installation, TENANT, dataset, ImportOptions(public=public, opt_in=opt_in), lambda *_: None)


def test_every_part_is_judged_under_every_live_stack_and_odd_pairs_are_counted(home: Home) -> None:
    held_out(home, "odd")
    found = evaluate_dataset(home.installation, TENANT, "odd", lambda *_: None)
    assert [(one.part, one.stack) for one in found.judged] == [
        ("test_new", "global"),
        ("test_new", "+ domain"),
        ("test_new", "+ user"),
    ]
    assert found.counts["test_new: said again"] == 15
    assert found.counts["test_new: contradicted by the same person"] == 1
    for one in found.judged:
        assert np.isfinite([one.accuracy.value, one.worst, one.calibration_error]).all()
    # ann and bob said the opposite, so without adapters one is right where the other is wrong.
    assert found.judged[2].gain is not None
    assert (found.judged[2].gain.value, found.judged[2].gain_over) == (0.0, "+ domain")


def test_the_command_prints_the_stacks_and_saves_the_report_that_it_names(home: Home, tmp_path: Path) -> None:
    held_out(home, "odd")
    folder = tmp_path / "report"
    arguments = ["eval", "odd", "--tenant", TENANT, "--report", str(folder), "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    page = (folder / "report.md").read_text()
    assert page.startswith("# Evaluation of odd")
    assert "contradicted by the same person | 1 |" in page


def test_adapters_of_the_first_pairs_are_tried_as_training_makes_them_and_neither_published_nor_charged(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "SecureNoise", RecordedNoise)
    held_out(home, "odd", opt_in=True)
    home.trainer(noise=RecordedNoise()).train_users(TENANT)
    before = (home.store.runs(TENANT), home.store.releases(TENANT))
    judged = evaluate_dataset(home.installation, TENANT, "odd", lambda *_: None, pairs=(1, 50)).judged
    assert [one.stack for one in judged[2:]] == ["+ user", "+ user, 1 pairs", "+ user, 50 pairs"]
    assert {one.gain_over for one in judged[2:]} == {"+ domain"}
    domain, live, one, fifty = (np.array(each.curve) for each in judged[1:])
    np.testing.assert_allclose(fifty, live, atol=1e-6)
    assert not np.allclose(live, domain, atol=1e-4)
    assert not np.allclose(one, fifty, atol=1e-4)
    assert (home.store.runs(TENANT), home.store.releases(TENANT)) == before
    for count in (0, 51):
        with pytest.raises(InvalidInputError, match="1 to 50"):
            evaluate_dataset(home.installation, TENANT, "odd", lambda *_: None, pairs=(count,))


def test_it_says_how_many_people_gave_so_many_pairs(home: Home, tmp_path: Path) -> None:
    held_out(home, "odd", opt_in=True)
    about = evaluate_dataset(home.installation, TENANT, "odd", lambda *_: None, pairs=(2, 3, 4, 2)).about
    assert about[GAVE] == "of 3 people 1 gave 2, 1 gave 3, 0 gave 4; whoever gave fewer is tried with those"
    arguments = ["eval", "odd", "--tenant", TENANT, "--pairs", "4", "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(app, arguments)
    assert "of 3 people 0 gave 4" in " ".join(result.output.split())


def test_it_says_whose_adapters_are_live_and_at_which_epsilon(home: Home) -> None:
    held_out(home, "odd", opt_in=True)

    def live() -> str:
        return evaluate_dataset(home.installation, TENANT, "odd", lambda *_: None).about["live user adapters"]

    assert live() == "of 0 of 3 people"
    home.trainer(user_epsilon=1.5).train_users(TENANT)
    assert live() == "of 1 of 3 people, at epsilon 1.5"


def test_where_nobody_is_held_out_or_agreed_to_adapters_it_is_said_so_instead_of_showing_nothing(home: Home) -> None:
    held_out(home, "silent")
    with pytest.raises(InvalidInputError, match="agreed to an adapter") as raised:
        evaluate_dataset(home.installation, TENANT, "silent", lambda *_: None, pairs=(1,))
    assert "--opt-in" in raised.value.mend
    shared = PreferenceDataset("all", "a" * 64, ITEMS, comparisons=(Comparison("old", 0, 1),))
    import_dataset(home.installation, TENANT, shared, ImportOptions(public=True, opt_in=False), lambda *_: None)
    with pytest.raises(InvalidInputError, match="holds nobody out"):
        evaluate_dataset(home.installation, TENANT, "all", lambda *_: None)


def test_private_and_unknown_data_sets_are_not_evaluated(home: Home) -> None:
    held_out(home, "private", public=False)
    with pytest.raises(InvalidInputError, match="not declared public"):
        evaluate_dataset(home.installation, TENANT, "private", lambda *_: None)
    with pytest.raises(NotFoundError, match="no data set 'none'"):
        evaluate_dataset(home.installation, TENANT, "none", lambda *_: None)


def test_the_command_refuses_a_folder_that_cannot_be_written_before_it_opens_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["eval", "polis", "--report", str(tmp_path / "file" / "r"), "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert not (tmp_path / "home").exists()
