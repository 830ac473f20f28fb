"""Each baseline finds the answer that its own assumptions make right, and adapts no more than it may."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import check_grad

from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.evaluation.baseline_rows import baseline_scores, baselines_of, first_pairs
from idiolect_adapters.evaluation.baselines_items import fit_collaborative
from idiolect_adapters.evaluation.baselines_linear import fit_global_linear, fit_personal_linear
from idiolect_adapters.evaluation.baselines_mixture import Mixture, fit_lore, fit_pal
from idiolect_adapters.evaluation.baselines_pairs import bilinear_loss, map_weights, pair_matrices, standardised
from idiolect_adapters.evaluation.splits import NewPeople

ITEMS, FEATURES, PEOPLE = 60, 6, 40
NO_PAIRS = Comparisons(*(np.zeros(0, np.int32),) * 3, np.zeros(0, np.float32))


@pytest.fixture(scope="module")
def features() -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=(ITEMS, FEATURES))


def answers(scores_P_I: NDArray[np.float64], each: int, seed: int) -> Comparisons:
    """`each` pairs of every person, answered with Bradley-Terry noise."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(len(scores_P_I)), each)
    a = rng.integers(0, scores_P_I.shape[1], len(person))
    b = (a + rng.integers(1, scores_P_I.shape[1], len(person))) % scores_P_I.shape[1]
    first = rng.random(len(person)) < 1 / (1 + np.exp(scores_P_I[person, b] - scores_P_I[person, a]))
    chosen, rejected = np.where(first, a, b), np.where(first, b, a)
    return Comparisons(*(x.astype(np.int32) for x in (person, chosen, rejected)), np.ones(len(person), np.float32))


def agreement(scores_P_I: NDArray[np.float64], truth_P_I: NDArray[np.float64]) -> float:
    """Mean rank-free agreement: the correlation of each person's scores with the truth."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(scores_P_I, truth_P_I, strict=True)]))


def camps(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of twice PEOPLE people in three camps with unrelated tastes."""
    rng = np.random.default_rng(2)
    return 3.0 * rng.normal(size=(3, FEATURES))[rng.integers(0, 3, 2 * PEOPLE)] @ features.T


def test_one_head_for_everybody_finds_what_everybody_likes(features) -> None:
    truth_P_I = np.tile(2.0 * features @ np.arange(1.0, FEATURES + 1), (PEOPLE, 1))
    fitted = fit_global_linear(features, answers(truth_P_I, 30, 3), strength=1e-5)
    assert agreement(fitted.scores(NO_PAIRS, PEOPLE), truth_P_I) > 0.97


def test_one_head_for_everybody_does_not_listen_to_anyone(features) -> None:
    truth_P_I = camps(features)
    fitted = fit_global_linear(features, answers(truth_P_I[:PEOPLE], 30, 3), strength=1e-4)
    said = answers(truth_P_I[PEOPLE:], 20, 4)
    assert np.array_equal(fitted.scores(said, PEOPLE), fitted.scores(NO_PAIRS, PEOPLE))


def test_a_head_per_person_finds_tastes_that_nobody_shares(features) -> None:
    truth_P_I = 3.0 * np.random.default_rng(5).normal(size=(PEOPLE, FEATURES)) @ features.T
    nothing = fit_global_linear(features, answers(np.zeros((4, ITEMS)), 50, 6), strength=1.0)
    fitted = fit_personal_linear(features, nothing, prior=0.05)
    few, many = (agreement(fitted.scores(answers(truth_P_I, n, 7), PEOPLE), truth_P_I) for n in (5, 60))
    assert few < many
    assert many > 0.9


def test_a_head_per_person_stays_with_the_shared_one_for_who_said_nothing(features) -> None:
    shared = fit_global_linear(features, answers(camps(features), 10, 3), strength=1e-4)
    fitted = fit_personal_linear(features, shared, prior=1.0)
    assert fitted.scores(NO_PAIRS, 2).tolist() == [shared.score_I.tolist()] * 2


@pytest.mark.parametrize("fit", [fit_lore, fit_pal])
def test_mixtures_recognise_the_camp_of_a_new_person(fit, features) -> None:
    truth_P_I = camps(features)
    train, said = answers(truth_P_I[:PEOPLE], 40, 3), answers(truth_P_I[PEOPLE:], 15, 4)
    fitted = fit(features, train, PEOPLE, rank=3, strength=1e-5)
    assert agreement(fitted.scores(said, PEOPLE), truth_P_I[PEOPLE:]) > 0.93
    assert agreement(fitted.scores(NO_PAIRS, PEOPLE), truth_P_I[PEOPLE:]) < 0.85


def test_a_person_of_a_mixture_is_a_point_of_the_simplex() -> None:
    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    always = Comparisons(*(np.array(x, np.int32) for x in ([0] * 200, [0] * 200, [1] * 200)), np.ones(200, np.float32))
    (scores,) = Mixture(rewards).scores(always, 1)
    assert 0.9 < scores[0] <= 1.0
    assert scores[0] + scores[1] == pytest.approx(1.0)


def test_collaborative_filtering_finds_a_basis_without_any_text() -> None:
    rng = np.random.default_rng(8)
    truth_P_I = rng.normal(size=(400, 2)) @ rng.normal(size=(2, ITEMS)) * 1.5 + rng.normal(size=ITEMS)
    person, item = (x.ravel() for x in np.nonzero(rng.random(truth_P_I.shape) < 0.6))
    likes = rng.random(len(person)) < 1 / (1 + np.exp(-truth_P_I[person, item]))
    kept = person < 300
    ratings = Ratings(
        person[kept].astype(np.int32), item[kept].astype(np.int32), np.where(likes, 1.0, -1.0)[kept].astype(np.float32)
    )
    fitted = fit_collaborative(ratings, NO_PAIRS, ITEMS, 300, penalty=1.0, rank=2)
    before = agreement(fitted.scores(NO_PAIRS, 100), truth_P_I[300:])
    after = agreement(fitted.scores(answers(truth_P_I[300:], 30, 9), 100), truth_P_I[300:])
    assert before < 0.6
    assert after > 0.85


def test_collaborative_filtering_reads_comparisons_too() -> None:
    truth_P_I = np.tile(np.linspace(-3, 3, ITEMS), (PEOPLE, 1))
    none = Ratings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    fitted = fit_collaborative(none, answers(truth_P_I, 40, 1), ITEMS, PEOPLE, penalty=3.0)
    assert agreement(fitted.scores(NO_PAIRS, PEOPLE), truth_P_I) > 0.95


def test_the_gradients_of_the_shared_loss_are_those_of_its_value() -> None:
    rng = np.random.default_rng(0)
    pairs = pair_matrices(answers(rng.normal(size=(4, 7)), 6, 0), 7, 4)
    start = rng.normal(size=(7 + 4) * 3)

    def loss(flat: NDArray[np.float64]) -> float:
        return bilinear_loss(flat[:21].reshape(7, 3), flat[21:].reshape(4, 3), pairs)[0]

    def slope(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = bilinear_loss(flat[:21].reshape(7, 3), flat[21:].reshape(4, 3), pairs)[1:]
        return np.concatenate([part.ravel() for part in parts])

    assert check_grad(loss, slope, start) < 1e-5


def test_personal_weights_are_where_the_slope_vanishes() -> None:
    rng = np.random.default_rng(0)
    taste, score = rng.normal(size=(9, 2)), rng.normal(size=9)
    said = answers(rng.normal(size=(3, 9)), 12, 1)
    weights = map_weights(taste, score, said, 4, prior=0.7)
    difference = taste[said.chosen_C] - taste[said.rejected_C]
    margin = score[said.chosen_C] - score[said.rejected_C] + (difference * weights[said.person_C]).sum(1)
    for person in range(3):
        own = said.person_C == person
        slope = (difference[own] / (1 + np.exp(margin[own]))[:, None]).sum(0) - 0.7 * weights[person]
        assert np.abs(slope).max() < 1e-6
    assert weights[3].tolist() == [0.0, 0.0]


def test_a_constant_feature_says_nothing() -> None:
    known = standardised(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert known[:, 1].tolist() == [0.0, 0.0]
    assert np.isfinite(known).all()


def test_only_the_first_pairs_of_each_person_are_adapted_to() -> None:
    pairs = Comparisons(
        *(np.array(x, np.int32) for x in ([1, 0, 1, 1, 0], [0, 1, 2, 3, 4], [9] * 5)), np.ones(5, np.float32)
    )
    assert first_pairs(pairs, 2).chosen_C.tolist() == [1, 4, 0, 2]
    assert len(first_pairs(pairs, 0)) == 0


def test_every_row_comes_out_once_for_each_part_that_it_can_speak_about(features) -> None:
    truth_P_I = camps(features)
    ratings = Ratings(
        np.repeat(np.arange(PEOPLE), ITEMS // 2).astype(np.int32),
        np.tile(np.arange(ITEMS // 2), PEOPLE).astype(np.int32),
        np.sign(truth_P_I[:PEOPLE, : ITEMS // 2]).ravel().astype(np.float32),
    )
    items = tuple(Item("d", "p", f"text {n}") for n in range(ITEMS))
    data = SharedData(items, tuple(map(str, range(PEOPLE))), ratings, NO_PAIRS)
    known = answers(truth_P_I[PEOPLE:, : ITEMS // 2], 20, 1)
    new = NewPeople(tuple(map(str, range(PEOPLE))), known, {"known": known, "new": answers(truth_P_I[PEOPLE:], 20, 2)})
    rows = [(row.part, row.metric) for row in baseline_scores(features, data, new, (5, 10), "known")]
    assert sorted(rows) == sorted(
        (part, name) for part in ("known", "new") for name in baselines_of(part, (5, 10), "known")
    )
