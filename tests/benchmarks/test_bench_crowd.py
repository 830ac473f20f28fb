from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quiet import QuietStages

from idiolect.signals.comparison import Item
from idiolect.signals.importers.ukpconvarg import CrowdLabel, CrowdLabels
from idiolect_adapters.evaluation.layers import inner_features
from idiolect_adapters.evaluation.random_model import random_backbone
from idiolect_adapters.surface import surface_features
from idiolect_services.bench.form import Measured
from idiolect_services.bench.preference_crowd import GROUPS, MODELS, measure_labels, metrics

SIDES, PEOPLE = 8, 8


def crowd() -> CrowdLabels:
    """Half of the workers like long arguments, half short ones, and each says so in every fold; 56 labels each."""
    rng = np.random.default_rng(0)
    items = tuple(
        Item(f"side{side}", "p", f"argument {side} " + "and so on " * int(rng.integers(0, 30)))
        for side in range(SIDES)
        for _ in range(5)
    )
    labels = []
    for person in range(PEOPLE):
        for first, second in ((5 * s + a, 5 * s + b) for s in range(SIDES) for a in range(5) for b in range(a)):
            longer = len(items[first].text) > len(items[second].text)
            labels.append(CrowdLabel(f"w{person}", first, second, float(longer == bool(person % 2))))
    return CrowdLabels(items, tuple(labels), "d" * 64)


@pytest.fixture(scope="module")
def rows() -> dict[str, Measured]:
    labels = crowd()
    texts = [item.text for item in labels.items]
    features = inner_features(random_backbone(), texts)
    found = list(measure_labels(labels, features, surface_features(texts), QuietStages()))
    assert len({row.metric for row in found}) == len(found)
    return {row.metric: row for row in found}


def test_exactly_the_announced_metrics_come_out(rows: dict[str, Measured]) -> None:
    assert {*rows, "ukpconvarg_seconds"} == set(metrics())
    assert len(rows) == len(GROUPS) * (2 * len(MODELS) + 2)


def test_opposite_tastes_need_a_personal_model(rows: dict[str, Measured]) -> None:
    for impersonal in ("longer", "linear", "shared"):
        assert abs(rows[f"ukpconvarg_all_{impersonal}_accuracy"].value - 0.5) < 0.15
    for personal in ("personal", "linear_per_person", "lore"):
        assert rows[f"ukpconvarg_all_{personal}_accuracy"].value > 0.8
    assert rows["ukpconvarg_all_personal_cross_entropy"].value < rows["ukpconvarg_all_shared_cross_entropy"].value - 0.2


def test_every_row_is_beside_the_linear_model_of_the_same_run(rows: dict[str, Measured]) -> None:
    beside = rows["ukpconvarg_all_personal_accuracy"]
    assert (beside.peer, beside.peer_value) == ("linear", rows["ukpconvarg_all_linear_accuracy"].value)
    assert rows["ukpconvarg_all_linear_accuracy"].peer is None


def test_inner_features_of_a_text_do_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    backbone = random_backbone()
    texts = ["", "a short one", "a much longer one " * 9, "a short two"]
    together = inner_features(backbone, texts)
    assert np.isfinite(together).all()
    for row, text in enumerate(texts):
        assert np.allclose(inner_features(backbone, [text])[0], together[row], atol=1e-6)
    assert inner_features(backbone, []).shape[0] == 0
