from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from quiet import QuietStages

from idiolect.signals.comparison import Comparison, Item, PreferenceDataset, Rating
from idiolect_adapters.evaluation.random_model import random_backbone
from idiolect_adapters.evaluation.splits import shared_data
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_services.bench.form import Measured
from idiolect_services.bench.preference_bench import Protocol, measure_dataset
from idiolect_services.bench.trained import trained_model, training_key

OPTIONS = GlobalOptions(user_rank=3, domain_rank=2)
SIZES = (5, 10)
LONG = " and so it goes on with many more words in it, for those who like that"


def tiny_dataset(people: int = 24) -> PreferenceDataset:
    """Half of the people like long answers, the other half short ones; so do the new ones, on other items too."""
    items = tuple(
        Item(f"d{number % 2}", f"p{number % 2}", f"Answer number {number}{LONG * (number // 2 % 3)}")
        for number in range(36)
    )
    known, unseen = range(24), range(24, 36)

    def likes(person: int, item: int) -> float:
        return (1.0 if person % 2 else -1.0) * (len(items[item].text) - 80)

    def pairs(person: int, candidates: range) -> list[Comparison]:
        return [
            Comparison(f"new-{person}", *((a, b) if likes(person, a) > likes(person, b) else (b, a)))
            for a, b in combinations(candidates, 2)
            if (a - b) % 2 == 0 and (a - b) % 6
        ]

    drawn = {person: np.random.default_rng(person).permutation(pairs(person, known)) for person in range(8)}
    return PreferenceDataset(
        name="tiny",
        digest="d" * 64,
        items=items,
        ratings=tuple(
            Rating(f"old-{person}", item, float(np.sign(likes(person, item))))
            for person in range(people)
            for item in known
        ),
        new_people=frozenset(f"new-{person}" for person in drawn),
        adaptation=tuple(pair for rows in drawn.values() for pair in rows[:20]),
        evaluation={
            "test_known": tuple(pair for rows in drawn.values() for pair in rows[20:40]),
            "test_new": tuple(pair for person in drawn for pair in pairs(person, unseen)),
        },
    )


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    random_backbone().save(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def run(backbone: Path, models: Path, stages: QuietStages, **changes: object) -> dict[str, Measured]:
    dataset = replace(tiny_dataset(), **changes)  # type: ignore[arg-type]
    protocol = Protocol("polis", Path(), SIZES, SIZES)
    rows = measure_dataset(
        dataset, protocol, backbone=backbone, models=models, options=OPTIONS, noise=SecureNoise(), stages=stages
    )
    return {row.metric: row for row in rows}


def test_exactly_the_announced_metrics_come_out_each_within_its_interval(backbone: Path, models: Path) -> None:
    rows = run(backbone, models, QuietStages())
    assert set(rows) == set(Protocol("polis", Path(), SIZES, SIZES).metrics())
    for row in rows.values():
        if row.low is not None and row.high is not None:
            assert row.low <= row.value <= row.high, row
            assert (row.low >= 0.0 and row.high <= 1.0) or "gain" in row.unit or "below" in row.unit, row


def test_people_who_differ_are_known_better_after_a_few_pairs(backbone: Path, models: Path) -> None:
    rows = run(backbone, models, QuietStages())
    # Tastes are opposite, so nothing that is shared can be right about more than about half of the people's pairs.
    assert abs(rows["polis_test_new_global"].value - 0.5) < 0.1
    assert abs(rows["polis_test_known_item_mean"].value - 0.5) < 0.1
    assert rows["polis_test_new_user_n10_no_noise"].value > 0.7
    assert rows["polis_test_new_user_n10_no_noise"].peer_value == rows["polis_test_new_global"].value


def test_a_gain_is_that_of_the_same_people_over_the_stack_below(backbone: Path, models: Path) -> None:
    rows = run(backbone, models, QuietStages())
    for part in ("test_known", "test_new"):
        gain = rows[f"polis_{part}_user_n5_eps1_gain"].value
        above = rows[f"polis_{part}_user_n5_eps1"].value - rows[f"polis_{part}_domain_eps4"].value
        assert gain == pytest.approx(above, abs=0.15)  # medians of noise draws are not additive


def test_a_second_training_that_follows_the_first_keeps_what_people_with_clear_tastes_taught_it(
    backbone: Path, models: Path
) -> None:
    rows = run(backbone, models, QuietStages())
    kept = rows["polis_test_new_carried_n10_eps8"]
    assert kept.value > 0.7
    assert kept.peer == "trained anew"
    assert kept.peer_value is not None


def test_the_same_training_is_not_paid_for_twice(backbone: Path, models: Path) -> None:
    run(backbone, models, QuietStages())
    again = QuietStages()
    run(backbone, models, again)
    assert "global model" not in again.names


def test_other_data_options_backbones_or_models_before_are_other_trainings(
    backbone: Path, models: Path, tmp_path: Path
) -> None:
    random_backbone(seed=9).save(tmp_path)
    before = trained_model(models, backbone, shared_data(tiny_dataset()), "d" * 64, OPTIONS, QuietStages()).model
    keys = {
        training_key(backbone, "a", OPTIONS, before),
        training_key(backbone, "a", OPTIONS),
        training_key(backbone, "b", OPTIONS),
        training_key(backbone, "a", replace(OPTIONS, seed=2)),
        training_key(tmp_path, "a", OPTIONS),
    }
    assert len(keys) == 5


def test_a_kept_model_that_was_damaged_is_trained_again(backbone: Path, tmp_path: Path) -> None:
    data = shared_data(tiny_dataset())

    def train() -> tuple[str, bool]:
        trained = trained_model(tmp_path, backbone, data, "d", OPTIONS, QuietStages())
        return trained.model.digest, trained.reused

    digest, reused = train()
    assert (train(), reused) == ((digest, True), False)
    (tmp_path / digest / "preference.safetensors").write_bytes(b"damaged")
    assert train()[1] is False
    next(tmp_path.glob("*.json")).write_text("{")
    assert train()[1] is False


def test_people_with_few_pairs_do_not_count(backbone: Path, models: Path) -> None:
    few = tuple(Comparison("new-0", 0, 2) for _ in range(3))
    rows = run(backbone, models, QuietStages(), evaluation={"test_known": few, "test_new": few})
    assert np.isnan(rows["polis_test_known_global"].value)
