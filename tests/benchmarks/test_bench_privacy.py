from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quiet import QuietStages
from test_bench_preference import tiny_dataset
from typer.testing import CliRunner

from idiolect.errors import ConfigurationError
from idiolect_adapters.evaluation.against_lora import Stack, choose_lora, held_out_people, lora_margins, some_people
from idiolect_adapters.evaluation.peer_lora import LoraPeer, PersonPairs
from idiolect_adapters.evaluation.random_model import random_backbone
from idiolect_adapters.evaluation.splits import new_people, shared_data
from idiolect_adapters.evaluation.stacks import margins
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_services.bench import catalogue, privacy_plots
from idiolect_services.bench.catalogue import BENCHMARKS, Benchmark
from idiolect_services.bench.form import Measured
from idiolect_services.bench.privacy_bench import (
    AUDITED,
    EPSILONS,
    LORA_EPSILONS,
    MECHANISMS,
    REFUTED,
    SIDES,
    Effort,
    Names,
    all_metrics,
    audited,
    draw,
    measure_dataset,
)
from idiolect_services.bench.trained import trained_model
from idiolect_services.cli import app

OPTIONS = GlobalOptions(user_rank=3, domain_rank=2)
NAMES = Names("polis", (5, 10))
EFFORT = Effort(lora_people=3, tuning_people=2, claims=(2.0, 8.0), trials=500, noise_people=300, noise_rounds=2)
PART = "test_new"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("privacy")
    random_backbone().save(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Measured]:
    measured = measure_dataset(
        tiny_dataset(),
        NAMES,
        backbone=folder / "backbone",
        models=folder / "models",
        options=OPTIONS,
        effort=EFFORT,
        stages=QuietStages(),
    )
    return {row.metric: row for row in measured}


@pytest.fixture(scope="module")
def model(folder: Path, rows: dict[str, Measured]) -> PreferenceModel:
    data = shared_data(tiny_dataset())
    return trained_model(
        folder / "models", folder / "backbone", data, tiny_dataset().digest, OPTIONS, QuietStages()
    ).model


def test_every_announced_metric_comes_out_once(rows: dict[str, Measured]) -> None:
    audits = {audited(mechanism, epsilon) for mechanism in MECHANISMS for epsilon in EFFORT.claims}
    noise = {"training_with_secure_noise", "noise_draws_per_second"}
    assert set(rows) == {*NAMES.all(), *audits, REFUTED, *noise}
    assert len(set(all_metrics())) == len(all_metrics())
    assert audits | noise <= set(all_metrics())


def test_accuracies_lie_within_their_intervals(rows: dict[str, Measured]) -> None:
    for name in NAMES.all():
        row = rows[name]
        assert row.low is not None
        assert row.high is not None
        assert -1.0 <= row.low <= row.value <= row.high <= 1.0, name


def test_people_who_differ_gain_most_without_noise(rows: dict[str, Measured]) -> None:
    without = rows[NAMES.user(PART, 10, None)]
    assert without.value > 0.7
    assert without.value > rows[NAMES.below(PART)].value + 0.1
    assert without.peer_value == rows[NAMES.below(PART)].value


def test_the_gain_over_the_lora_is_the_difference_on_the_same_people(rows: dict[str, Measured]) -> None:
    for epsilon in LORA_EPSILONS:
        ours, lora, gain = (rows[NAMES.same_people(PART, side, epsilon)] for side in SIDES)
        assert gain.value == pytest.approx(ours.value - lora.value, abs=1e-3)  # medians of bootstraps are means
        assert ours.peer_value == lora.value


def test_audits_stay_below_the_claim(rows: dict[str, Measured]) -> None:
    for mechanism in MECHANISMS:
        for epsilon in EFFORT.claims:
            row = rows[audited(mechanism, epsilon)]
            assert 0.0 <= row.value <= epsilon
            assert row.peer_value == epsilon
    assert rows[REFUTED].value == 0.0
    assert rows[audited("user", 8.0)].value > 1.0  # even 500 trials show something


def test_only_people_with_enough_pairs_everywhere_are_compared() -> None:
    dataset = tiny_dataset()
    new = new_people(dataset)
    assert some_people(new, pairs=21, limit=9).people == ()
    some = some_people(new, pairs=20, limit=3)
    assert some.people == new.people[:3]
    for name, part in some.parts.items():
        theirs = new.parts[name].where(new.parts[name].person_C < 3)
        assert np.array_equal(part.person_C, theirs.person_C)
        assert np.array_equal(part.chosen_C, theirs.chosen_C)


def test_the_lora_is_tuned_on_training_people_whose_tested_items_it_did_not_adapt_to() -> None:
    data = shared_data(tiny_dataset(people=60))
    held_out = held_out_people(data, 5)
    assert set(some_people(held_out, 5, 99).people) <= set(data.people)
    test = held_out.parts["tuning"]
    assert 0 < len(np.unique(test.person_C)) <= 6  # a tenth of the people
    for person in np.unique(test.person_C):
        mine = [part.where(part.person_C == person) for part in (held_out.adaptation, test)]
        seen, asked = (set(np.concatenate([part.chosen_C, part.rejected_C]).tolist()) for part in mine)
        assert not seen & asked


def test_an_untrained_lora_leaves_the_stack_below_as_it_is(model: PreferenceModel) -> None:
    dataset = tiny_dataset()
    texts = [(item.prompt, item.text) for item in dataset.items]
    projected = model.project(texts)
    below = projected[:, 0] + np.linspace(-1.0, 1.0, len(texts))  # as if a domain adapter were there
    stack = Stack(projected[:, 0], below, projected[:, 1 : 1 + model.user_rank])
    people = some_people(new_people(dataset), 10, 2)
    peer = LoraPeer(model.backbone, model.head, texts)
    recipe = choose_lora(peer, people, stack, 10, [None], lambda *_: None, learning_rates=[0.0])[None]
    assert recipe.learning_rate == 0.0
    found = lora_margins(peer, recipe, people, stack, 10, None, lambda *_: None)
    for name, part in people.parts.items():
        assert np.allclose(found[name], margins(below, part), atol=1e-3)


def test_gradients_reach_the_encoder_through_the_text_kernel(model: PreferenceModel) -> None:
    texts = [(item.prompt, item.text) for item in tiny_dataset().items]
    peer = LoraPeer(model.backbone, model.head, texts)
    peer.gradient_norms(PersonPairs(np.array([0]), np.array([2]), np.zeros(1)))
    assert model.head.kernel is not None
    moving = [bool(parameter.summed_grad.any()) for parameter in peer.parameters]  # type: ignore[attr-defined]
    # Where a LoRA starts, its A cannot move yet, but every B can: of two layers' queries and values, and of the head.
    assert sum(moving) == len(moving) / 2 == 5


def test_of_several_learning_rates_the_one_that_learns_is_chosen_without_noise(model: PreferenceModel) -> None:
    dataset = tiny_dataset()
    texts = [(item.prompt, item.text) for item in dataset.items]
    projected = model.project(texts)
    stack = Stack(projected[:, 0], projected[:, 0], projected[:, 1 : 1 + model.user_rank])
    people = some_people(new_people(dataset), 10, 4)
    peer = LoraPeer(model.backbone, model.head, texts)
    chosen = choose_lora(peer, people, stack, 10, [None], lambda *_: None, learning_rates=[0.0, 0.02])
    assert chosen[None].learning_rate == 0.02


# Figures


def fake_rows() -> dict[str, Measured]:
    rng = np.random.default_rng(0)
    values = {name: float(value) for name, value in zip(NAMES.all(), rng.uniform(0.6, 0.9, 999), strict=False)}
    rows = {name: Measured(name, "accuracy", value, value - 0.02, value + 0.03) for name, value in values.items()}
    for mechanism in MECHANISMS:
        for epsilon in AUDITED:
            name = audited(mechanism, epsilon)
            rows[name] = Measured(name, "epsilon", 0.8 * epsilon, None, None, "the claim", epsilon)
    return rows


def test_figures_are_saved_as_svg_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "figures", NAMES, fake_rows())
    expected = {f"privacy-{name}.{form}" for name in ("accuracy", "lora", "audit") for form in ("svg", "png")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == expected
    for path in (tmp_path / "figures").iterdir():
        head = path.read_bytes()[:300]
        assert head.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in head
        assert path.stat().st_size > 5000


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the privacy benchmark would be run with."""
    seen: list[Any] = []

    def run(options: Any, _stages: Any) -> list[Measured]:
        seen.append(options)
        return []

    monkeypatch.setitem(BENCHMARKS, "privacy", Benchmark("fake", run, tuple, draws=True))
    return seen


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_figures_lie_beside_the_json_file_unless_a_folder_is_named(told: list[Any], tmp_path: Path) -> None:
    home = ("--home", str(tmp_path))
    pytest.importorskip("matplotlib")
    assert bench("privacy", *home).exit_code == 0
    assert bench("privacy", "--json", str(tmp_path / "out.json"), *home).exit_code == 0
    assert bench("privacy", "--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "x"), *home).exit_code == 0
    assert [options.plots for options in told] == [None, tmp_path, tmp_path / "x"]


def test_without_matplotlib_there_is_a_table_and_a_word_about_the_figures(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy_plots.importlib.util, "find_spec", lambda name: None)
    result = bench("privacy", "--json", str(tmp_path / "out.json"), "--home", str(tmp_path))
    assert result.exit_code == 0
    assert "Without matplotlib" in result.output
    assert told[0].plots is None
    refused = bench("privacy", "--plots", str(tmp_path), "--home", str(tmp_path))
    assert isinstance(refused.exception, ConfigurationError)
    assert len(told) == 1  # nothing ran


def test_the_epsilons_are_those_that_were_asked_for() -> None:
    assert EPSILONS == (0.5, 1.0, 2.0, 4.0, 8.0, None)
    assert {1.0, 8.0, None} <= set(LORA_EPSILONS)
    assert catalogue.find_benchmark("privacy").metrics() == all_metrics()
