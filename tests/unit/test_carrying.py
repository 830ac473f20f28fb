"""The matrix that writes adapters in another basis, and which texts it is learned from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.signals.comparison import Item
from idiolect_adapters.carrying import fit_carry
from idiolect_adapters.training.alignment import align
from idiolect_adapters.training.factors import Factors
from idiolect_adapters.training.votes import Votes
from idiolect_services.carrying import spread
from idiolect_services.passage import carried_noise

ANCHORS, K = 400, 4


def anchors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ANCHORS, K)), rng.integers(0, 20, ANCHORS)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10.0))
def test_a_basis_that_was_only_turned_and_scaled_keeps_every_score(seed: int, scale: float) -> None:
    old, group = anchors(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(K, K)))
    new = scale * old @ turn
    carry = fit_carry(old, new, group)
    adapter = np.random.default_rng(seed + 2).normal(size=K)
    assert np.allclose(new @ (adapter @ carry.matrix_O_N), old @ adapter, atol=0.02 * np.abs(old @ adapter).max())
    assert carry.explained > 0.999


def test_what_all_candidates_for_a_prompt_share_is_no_matter() -> None:
    old, group = anchors()
    shifts = np.random.default_rng(5).normal(size=(20, K)) * 10
    plain, shifted = fit_carry(old, old, group), fit_carry(old, old + shifts[group], group)
    assert np.allclose(plain.matrix_O_N, shifted.matrix_O_N)


def test_prompts_with_one_candidate_each_are_compared_with_one_another() -> None:
    old, _ = anchors()
    assert fit_carry(old, old, np.arange(ANCHORS)).explained > 0.999


def test_a_new_model_that_knows_nothing_of_the_old_directions_gets_nothing() -> None:
    (old, group), (strange, _) = anchors(), anchors(9)
    carry = fit_carry(old, strange, group)
    assert carry.explained < 0.05
    assert np.abs(carry.matrix_O_N).max() < 0.25


def test_bases_of_other_and_of_lacking_ranks_are_carried_without_a_crash() -> None:
    old, group = anchors()
    wider = np.column_stack([old, np.zeros((ANCHORS, 2))])  # two directions that no text moves
    carry = fit_carry(old, wider, group)
    assert carry.matrix_O_N.shape == (K, K + 2)
    assert np.allclose(carry.matrix_O_N[:, K:], 0.0)
    nothing = fit_carry(np.zeros((ANCHORS, K)), np.zeros((ANCHORS, 3)), group)
    assert np.array_equal(nothing.matrix_O_N, np.zeros((K, 3)))


def test_the_noise_is_carried_with_the_weights() -> None:
    old, group = anchors()
    carry = fit_carry(old, 2.0 * old, group)
    assert carried_noise((0.2,) * K, carry) == pytest.approx((0.1,) * K, rel=0.01)
    assert carried_noise(None, carry) == carried_noise((0.1,) * (K + 1), carry) == ()


def test_anchors_come_from_every_prompt_before_any_prompt_gives_many() -> None:
    items = [Item("d", "big", f"text {n}") for n in range(500)]
    items += [Item("d", f"small {n}", f"text {m}") for n in range(10) for m in range(3)]
    chosen = spread(items, 60)
    prompts = Counter(item.prompt for item in chosen)
    assert len(chosen) == 60
    assert all(prompts[f"small {n}"] == 3 for n in range(10))
    assert chosen == spread(items, 60)
    assert len(spread(items, 10_000)) == len(items)


def test_crowds_that_share_nobody_are_turned_towards_the_model_before() -> None:
    rng = np.random.default_rng(0)
    before, crowds = rng.normal(size=(40, K)), np.arange(40) // 20
    turned = before.copy()
    for crowd in (0, 1):
        turned[crowds == crowd] @= np.linalg.qr(rng.normal(size=(K, K)))[0]
    mean, outputs = np.column_stack([turned, np.zeros(40)]), K + 1
    covariance = np.tile(np.eye(outputs), (40, 1, 1))
    factors = Factors(mean, covariance, np.zeros((2, outputs)), covariance[:2], 1.0)
    votes = Votes(crowds, np.arange(40), np.ones(40), np.ones(40), 2, 40)
    explained = {}
    for name, followed in (("alone", None), ("following", before), ("fewer", before[:, :2])):
        found = align(factors, votes, lambda a, b: np.eye(40)[np.ix_(a, b)], rng, followed).item_mean_I_O
        assert np.allclose(np.linalg.norm(found, axis=1), np.linalg.norm(mean, axis=1)), "a rotation changes no score"
        explained[name] = fit_carry(before, found[:, :K], np.zeros(40, np.int64)).explained
    assert explained["following"] > 0.95 > explained["alone"]
