"""The factor model against a slow reference, and on people whose tastes are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from idiolect_adapters.training import factors
from idiolect_adapters.training.alignment import RESTART_STRIDE, RESTARTS, align, crowds, fit_averaged, procrustes
from idiolect_adapters.training.factors import Factors, ItemPrior, _Engine, fit_factors, refine_factors
from idiolect_adapters.training.votes import Votes


def simulate(
    people: int, items: int, per_person: int, rank: int, seed: int = 0
) -> tuple[Votes, np.ndarray, np.ndarray]:
    """Votes, with the true tastes of items [I, K] and their popularity [I]."""
    rng = np.random.default_rng(seed)
    taste, popular = rng.normal(size=(items, rank)), rng.normal(size=items)
    person = np.repeat(np.arange(people), per_person)
    item = np.concatenate([rng.choice(items, per_person, replace=False) for _ in range(people)])
    score = popular[item] + (rng.normal(size=(people, rank))[person] * taste[item]).sum(1)
    liked = (rng.random(len(item)) < expit(score)).astype(float)
    return Votes(person, item, liked, np.ones(len(item)), people, items), taste, popular


def slow_items(votes: Votes, state: Factors, prior: ItemPrior) -> tuple[np.ndarray, np.ndarray]:
    """One item after the other, one vote after the other: the update of items, written from the formulas."""
    rank, engine = state.rank, _Engine(votes)
    after_people = engine.round(state, prior)  # whose people are those that the items were updated against
    means, covariances = np.zeros_like(state.item_mean_I_O), np.zeros_like(state.item_cov_I_O_O)
    for item in range(votes.items):
        precision, linear = np.diag(1.0 / prior.variance_I_O[item]), prior.mean_I_O[item] / prior.variance_I_O[item]
        for vote in np.flatnonzero(votes.item_V == item):
            person = votes.person_V[vote]
            z, zc = state.item_mean_I_O[item], state.item_cov_I_O_O[item]
            old, oldc = state.person_mean_P_O[person], state.person_cov_P_O_O[person]
            a, b = np.append(z[:rank], 1.0), np.append(old[:rank], 1.0)
            square = (z[:rank] @ old[:rank] + old[rank] + z[rank]) ** 2
            square += np.trace(zc[:rank, :rank] @ oldc[:rank, :rank]) + a @ oldc @ a + b @ zc @ b
            curvature = votes.weight_V[vote] * np.tanh(np.sqrt(square) / 2) / (2 * np.sqrt(square))
            p, pc = after_people.person_mean_P_O[person], after_people.person_cov_P_O_O[person]
            design = np.append(p[:rank], 1.0)
            second = np.outer(design, design)
            second[:rank, :rank] += pc[:rank, :rank]
            crossed = design * p[rank]
            crossed[:rank] += pc[:rank, rank]
            precision = precision + curvature * second
            linear = linear + votes.weight_V[vote] * (votes.liked_V[vote] - 0.5) * design - curvature * crossed
        covariances[item] = np.linalg.inv(precision)
        means[item] = covariances[item] @ linear
    return means, covariances


@pytest.mark.parametrize("block", [7, 10_000])
def test_a_round_is_what_the_formulas_say_vote_by_vote(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "BLOCK", block)
    votes, _, _ = simulate(30, 12, 6, 2)
    state = fit_factors(votes, 2, seed=0, rounds=3)
    prior = ItemPrior(np.full((12, 3), 0.1), np.full((12, 3), 0.7))
    fast = _Engine(votes).round(state, prior)
    means, covariances = slow_items(votes, state, prior)
    np.testing.assert_allclose(fast.item_mean_I_O, means, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fast.item_cov_I_O_O, covariances, rtol=1e-9, atol=1e-12)


def test_popularity_and_directions_of_taste_are_found_up_to_a_rotation() -> None:
    votes, taste, popular = simulate(600, 60, 25, 2)
    found = fit_factors(votes, 2, seed=1)
    assert np.corrcoef(found.item_mean_I_O[:, -1], popular)[0, 1] > 0.9
    turned = found.item_mean_I_O[:, :-1] @ procrustes(found.item_mean_I_O[:, :-1], taste)
    for column in range(2):
        assert np.corrcoef(turned[:, column], taste[:, column])[0, 1] > 0.85


def test_directions_that_nobody_needs_go_to_nothing() -> None:
    votes, _, _ = simulate(600, 60, 25, 1)
    spread = np.sort(fit_factors(votes, 4, seed=0).item_mean_I_O[:, :-1].std(axis=0))
    assert spread[-1] > 0.5
    assert spread[:-1].max() < 0.35 * spread[-1]


def test_items_with_few_votes_stay_near_what_their_text_says() -> None:
    votes, _, _ = simulate(200, 20, 8, 1)
    lonely = Votes(votes.person_V, votes.item_V, votes.liked_V, votes.weight_V, votes.people, 21)
    start = fit_factors(lonely, 1, seed=0)
    prior = ItemPrior(np.full((21, 2), 0.3), np.full((21, 2), 0.2))
    refined = refine_factors(lonely, start, prior)
    np.testing.assert_allclose(refined.item_mean_I_O[20], 0.3)  # nobody voted on it
    np.testing.assert_allclose(np.diag(refined.item_cov_I_O_O[20]), 0.2)
    assert (refined.item_variances()[:20] < 0.2).all()


@pytest.mark.parametrize("liked", [0.0, 1.0])
def test_unanimous_votes_stay_finite(liked: float) -> None:
    votes = Votes(np.repeat(np.arange(50), 4), np.tile(np.arange(4), 50), np.full(200, liked), np.ones(200), 50, 4)
    found = fit_factors(votes, 3, seed=0)
    assert np.isfinite(found.item_mean_I_O).all()
    assert np.abs(found.item_mean_I_O).max() < 20


def test_what_is_kept_is_the_mean_of_several_restarts_in_the_directions_of_the_first() -> None:
    votes, _, _ = simulate(200, 30, 20, 2)
    means = [fit_factors(votes, 2, seed=restart * RESTART_STRIDE).item_mean_I_O for restart in range(RESTARTS)]
    turned = [
        np.column_stack([mean[:, :-1] @ procrustes(mean[:, :-1], means[0][:, :-1]), mean[:, -1]]) for mean in means
    ]
    found = fit_averaged(votes, 2, seed=0).item_mean_I_O
    np.testing.assert_allclose(found, np.mean(turned, axis=0), atol=1e-9)
    assert RESTARTS > 1
    assert not np.allclose(found, means[0], atol=1e-2)


def two_crowds(seed: int) -> tuple[Votes, np.ndarray, np.ndarray]:
    """Two halves that share no voters; the text (a number per item) tells the taste in both in the same way."""
    one, taste_a, _ = simulate(300, 40, 20, 2, seed)
    two, taste_b, _ = simulate(300, 40, 20, 2, seed + 1)
    joined = Votes(
        np.concatenate([one.person_V, two.person_V + 300]),
        np.concatenate([one.item_V, two.item_V + 40]),
        np.concatenate([one.liked_V, two.liked_V]),
        np.ones(len(one) + len(two)),
        600,
        80,
    )
    taste = np.concatenate([taste_a, taste_b])
    return joined, taste, np.concatenate([np.zeros(40), np.ones(40)])


def test_separate_crowds_are_turned_into_the_same_directions() -> None:
    votes, taste, _ = two_crowds(3)
    assert sorted(map(len, crowds(votes))) == [40, 40]

    def likeness(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        apart = ((taste[row][:, None, :] - taste[column][None, :, :]) ** 2).sum(-1)
        return np.exp(-apart / 2)

    before = fit_factors(votes, 2, seed=0)
    after = align(before, votes, likeness, np.random.default_rng(0))

    def agreement(found: Factors) -> float:
        """How well the rotation that fits the first crowd serves the second."""
        turn = procrustes(found.item_mean_I_O[:40, :-1], taste[:40])
        return float(np.corrcoef((found.item_mean_I_O[40:, :-1] @ turn).ravel(), taste[40:].ravel())[0, 1])

    assert agreement(after) > 0.75
    assert agreement(after) > agreement(before)


def test_a_rotation_changes_no_score_within_a_crowd() -> None:
    votes, taste, _ = two_crowds(5)
    before = fit_factors(votes, 2, seed=0)
    after = align(
        before, votes, lambda r, c: np.exp(-((taste[r][:, None] - taste[c]) ** 2).sum(-1)), np.random.default_rng(0)
    )
    for half in (slice(0, 40), slice(40, 80)):
        old, new = before.item_mean_I_O[half, :-1], after.item_mean_I_O[half, :-1]
        np.testing.assert_allclose(old @ old.T, new @ new.T, atol=1e-9)
    np.testing.assert_array_equal(before.item_mean_I_O[:, -1], after.item_mean_I_O[:, -1])


def test_one_crowd_is_left_as_it_is() -> None:
    votes, _, _ = simulate(100, 20, 8, 2)
    found = fit_factors(votes, 2, seed=0)
    assert align(found, votes, lambda r, c: np.eye(len(r), len(c)), np.random.default_rng(0)) is found
