"""Membership inference: bounded by the claim on what ships, and strong where there is something to find."""

from __future__ import annotations

import json

import numpy as np
import pytest

from idiolect.errors import InvalidInputError
from idiolect_adapters.audit.membership import area_under_curve, membership_inference
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.user import PaddedComparisons, train_users


def with_hardly_any_noise(data: PaddedComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> np.ndarray:
    return train_users(data, recipe, multiplier / 30.0, noise)


def test_the_attack_on_shipped_adapters_stays_within_the_claim() -> None:
    report = membership_inference(2.0, 1e-5, targets=4)
    assert not report.caught, report
    # 6 sigma of the area under 4,000 scores a side is 0.04; a Gaussian mechanism of this claim allows at most 0.64.
    assert 0.46 < report.auc < 0.64 + 0.04
    assert [point.false_positive_rate for point in report.points] == [0.01, 0.001]
    for point in report.points:
        assert point.tpr_at_least <= point.true_positive_rate
        assert point.fpr_at_most >= point.false_positive_rate
        assert point.false_positive_rate < point.allowed_gdp < point.allowed < 1.0


def test_the_attack_finds_members_where_the_noise_is_too_small() -> None:
    report = membership_inference(1.0, 1e-5, targets=4, train=with_hardly_any_noise)
    assert report.caught
    assert report.auc > 0.8


def test_a_weaker_claim_shows_more() -> None:
    assert membership_inference(60.0, 1e-5, targets=2).auc > 0.85


def test_the_area_under_the_curve_is_the_chance_of_the_right_order() -> None:
    assert area_under_curve(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert area_under_curve(np.array([1.0]), np.array([2.0])) == 0.0
    assert area_under_curve(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert area_under_curve(np.array([2.0]), np.array([1.0, 2.0, 2.0, 3.0])) == 0.5


def test_the_report_is_plain_json() -> None:
    shown = json.loads(json.dumps(membership_inference(2.0, 1e-5, targets=1, shadows=200).to_json(), allow_nan=False))
    assert shown["trials"] == 100
    assert len(shown["points"]) == 2


@pytest.mark.parametrize("changes", [{"targets": 0}, {"shadows": 10}, {"epsilon": -1.0}, {"delta": 2.0}])
def test_an_attack_that_can_show_nothing_is_refused(changes: dict) -> None:
    options = {"epsilon": 2.0, "delta": 1e-5} | changes
    with pytest.raises(InvalidInputError):
        membership_inference(**options)


def test_the_seed_makes_the_people_and_never_the_noise() -> None:
    seen: list[np.ndarray] = []

    def spying(data: PaddedComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> np.ndarray:
        assert type(noise) is SecureNoise
        seen.append(data.differences_P_C_K[0])
        return train_users(data, recipe, multiplier, noise)

    for seed in (5, 5, 6):
        membership_inference(2.0, 1e-5, targets=1, shadows=200, seed=seed, train=spying)
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[4])
