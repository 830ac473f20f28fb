from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from idiolect.signals.comparison import Comparison, Item, PreferenceDataset, Rating
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.evaluation.accuracy import bootstrap_mean, bootstrap_noisy_mean, person_accuracies
from idiolect_adapters.evaluation.baselines import item_means
from idiolect_adapters.evaluation.calibration import (
    chance_calibration_error,
    expected_calibration_error,
    fit_temperature,
)
from idiolect_adapters.evaluation.random_model import random_backbone
from idiolect_adapters.evaluation.splits import new_people, shared_data
from idiolect_adapters.evaluation.stacks import StackId, margins, stacks_of

ITEMS = tuple(Item("d", "p", text) for text in "abcd")
NO_RATINGS = Ratings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


def pairs(*rows: tuple[int, int, int], weight: float = 1.0) -> Comparisons:
    person, chosen, rejected = (
        (np.array(column, np.int32) for column in zip(*rows, strict=True)) if rows else (np.zeros(0, np.int32),) * 3
    )
    return Comparisons(person, chosen, rejected, np.full(len(rows), weight, np.float32))


def test_ties_count_one_half_and_people_with_few_pairs_do_not_count() -> None:
    margin = np.array([1.0, -1.0, 0.0, 2.0, 1.0, 1.0, 1.0])
    person = np.array([0, 0, 0, 0, 1, 1, 1], np.int32)
    assert person_accuracies(margin, person).tolist() == [(1 + 0 + 0.5 + 1) / 4]
    assert person_accuracies(margin, person, min_pairs=3).tolist() == [0.625, 1.0]


def test_every_person_weighs_the_same_however_many_pairs_they_have() -> None:
    margin = np.array([1.0] * 96 + [-1.0] * 4)
    person = np.array([0] * 96 + [1] * 4, np.int32)
    assert bootstrap_mean(person_accuracies(margin, person)).value == 0.5


def test_nobody_has_no_accuracy() -> None:
    result = bootstrap_mean(person_accuracies(np.zeros(0), np.zeros(0, np.int32)))
    assert result.people == 0
    assert np.isnan([result.value, result.low, result.high]).all()


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        result = bootstrap_mean(rng.binomial(10, 0.7, size=60) / 10, draws=300)
        covered += result.low <= 0.7 <= result.high
    assert 180 <= covered <= 198


def test_the_interval_of_noisy_repetitions_covers_the_noise_as_well_as_the_people() -> None:
    values = np.array([[0.5] * 20, [0.6] * 20, [0.9] * 20])
    result = bootstrap_noisy_mean(values)
    assert (result.value, result.people) == (pytest.approx(0.6), 20)
    assert (result.low, result.high) == (pytest.approx(0.5), pytest.approx(0.9))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_interval_lies_around_the_mean(values: list[float]) -> None:
    result = bootstrap_mean(np.array(values), draws=200)
    assert min(values) - 1e-9 <= result.low <= result.high <= max(values) + 1e-9


def test_probabilities_that_hold_have_almost_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    happened = rng.random(20_000) < 1 / (1 + np.exp(-logit))
    margin = np.where(happened, logit, -logit)
    assert expected_calibration_error(margin, 1.0) < 0.01
    assert fit_temperature(margin, np.ones(len(margin))) == pytest.approx(1.0, abs=0.05)


def test_overconfidence_shows_as_calibration_error_and_the_temperature_mends_it() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 1, 20_000)
    happened = rng.random(20_000) < 1 / (1 + np.exp(-logit))
    margin = 4 * np.where(happened, logit, -logit)
    assert expected_calibration_error(margin, 1.0) > 0.1
    temperature = fit_temperature(margin, np.ones(len(margin)))
    assert temperature == pytest.approx(4.0, rel=0.1)
    assert expected_calibration_error(margin, temperature) < 0.01


@pytest.mark.parametrize("pairs", [60, 2_000])
def test_the_error_that_chance_gives_is_that_of_probabilities_that_hold(pairs: int) -> None:
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(40):
        margins = rng.normal(size=pairs)
        held = rng.random(pairs) < expit(margins)
        errors.append(expected_calibration_error(np.where(held, margins, -margins), 1.0))
    assert chance_calibration_error(rng.normal(size=pairs), 1.0) == pytest.approx(np.mean(errors), rel=0.2)
    overconfident = chance_calibration_error(5 * rng.normal(size=pairs), 1.0)
    assert overconfident < np.mean(errors)  # who is sure has less room for chance


def test_calibration_error_of_a_case_worked_by_hand() -> None:
    # Ten pairs at p = 0.75 of which 5 hold: the gap is 0.25 in either direction of reading.
    margin = np.log(3) * np.array([1.0] * 5 + [-1.0] * 5)
    assert expected_calibration_error(margin, 1.0, bins=2) == pytest.approx(0.25)


def test_who_always_says_one_half_is_never_wrong_about_it() -> None:
    assert expected_calibration_error(np.zeros(100), 1.0) == 0.0


def test_item_means_are_the_mean_rating_and_unrated_items_get_the_average() -> None:
    ratings = Ratings(np.array([0, 1, 2, 0], np.int32), np.array([0, 0, 0, 1], np.int32), np.array([1, 1, -1, -1.0]))
    means = item_means(SharedData(ITEMS, ("u", "v", "w"), ratings, pairs()))
    assert means.tolist() == pytest.approx([1 / 3, -1.0, -1 / 3, -1 / 3])


def test_without_ratings_item_means_are_shares_of_comparisons_won() -> None:
    data = SharedData(ITEMS, ("u",), NO_RATINGS, pairs((0, 0, 1), (0, 0, 2), (0, 1, 0)))
    assert item_means(data).tolist() == pytest.approx([2 / 3, 1 / 2, 0.0, 7 / 18])


def test_margins_are_chosen_minus_rejected() -> None:
    assert margins(np.array([3.0, 1.0, 0.0, 0.0]), pairs((0, 0, 1), (0, 1, 0), (1, 2, 3))).tolist() == [2.0, -2.0, 0.0]


def test_new_people_are_kept_apart_and_their_pairs_keep_their_order() -> None:
    dataset = PreferenceDataset(
        "d",
        "0" * 64,
        ITEMS,
        ratings=(Rating("old", 1, -1.0),),
        comparisons=(Comparison("other", 0, 1, weight=0.5),),
        new_people=frozenset({"y", "x"}),
        adaptation=(Comparison("y", 3, 0), Comparison("x", 1, 2), Comparison("y", 0, 1)),
        evaluation={"test_known": (Comparison("x", 2, 3),)},
    )
    data, new = shared_data(dataset), new_people(dataset)
    assert data.people == ("old", "other")
    assert (data.ratings.person_R.tolist(), data.ratings.value_R.tolist()) == ([0], [-1.0])
    assert (data.comparisons.person_C.tolist(), data.comparisons.weight_C.tolist()) == ([1], [0.5])
    assert new.people == ("x", "y")
    assert new.adaptation.person_C.tolist() == [1, 0, 1]
    assert new.adaptation.chosen_C.tolist() == [3, 1, 0]
    assert new.parts["test_known"].person_C.tolist() == [0]


def test_stacks_have_distinct_names_and_only_known_items_have_a_mean() -> None:
    known, unseen = (stacks_of(part, (5, 50)) for part in ("test_known", "test_new"))
    assert len({stack.name for stack in known}) == len(known) == 1 + 1 + 2 + 8
    assert StackId("item_mean") in known
    assert StackId("item_mean") not in unseen
    assert StackId("user", 50, 8.0).name == "user_n50_eps8"
    assert StackId("user", 5).name == "user_n5_no_noise"


def test_a_random_backbone_is_the_same_for_the_same_seed_and_leaves_torchs_randomness_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = random_backbone(1), random_backbone(1)
    assert torch.equal(torch.rand(1), expected)
    texts = [("prompt", "Some text."), ("", "")]
    assert np.array_equal(first.features(texts), second.features(texts))
    assert not np.array_equal(first.features(texts), random_backbone(2).features(texts))
