"""Directions: rotated, scaled, and never changing what they express."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect_adapters.basis import principal_directions, whiten


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7), st.integers(2, 30))
@settings(max_examples=80, deadline=None)
def test_whitening_keeps_what_every_person_likes_apart_from_the_mean(
    seed: int, rank: int, hidden: int, people: int
) -> None:
    rng = np.random.default_rng(seed)
    basis, weights = rng.normal(size=(rank, hidden)), rng.normal(size=(people, rank)) @ rng.normal(size=(rank, rank))
    whitened, mean = whiten(basis, weights)
    assert whitened.shape == basis.shape
    assert np.allclose(mean, weights.mean(0))
    # Every person's taste less the mean is still a combination of the directions.
    tastes = (weights - mean) @ basis
    fitted, *_ = np.linalg.lstsq(whitened.T, tastes.T, rcond=None)
    assert np.allclose(whitened.T @ fitted, tastes.T, atol=1e-6)


def test_in_the_whitened_basis_people_are_spread_by_one_and_not_correlated() -> None:
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 8))
    weights = rng.normal(size=(500, 3)) @ np.diag([5.0, 1.0, 0.2]) @ rng.normal(size=(3, 3)) + 7.0
    whitened, mean = whiten(basis, weights)
    fitted, *_ = np.linalg.lstsq(whitened.T, ((weights - mean) @ basis).T, rcond=None)
    assert np.allclose(np.cov(fitted, ddof=0), np.eye(3), atol=1e-6)
    assert np.allclose(fitted.mean(axis=1), 0.0, atol=1e-9)


def test_directions_come_in_order_of_how_much_people_differ() -> None:
    weights = np.random.default_rng(0).normal(size=(400, 3)) * [0.1, 3.0, 1.0]
    whitened, _ = whiten(np.eye(3), weights)
    assert np.abs(whitened).argmax(axis=1).tolist() == [1, 2, 0]
    assert np.linalg.norm(whitened, axis=1) == pytest.approx([3.0, 1.0, 0.1], rel=0.15)


@pytest.mark.parametrize("people", [1, 2])
def test_people_who_do_not_differ_give_a_finite_basis(people: int) -> None:
    whitened, mean = whiten(np.eye(2), np.ones((people, 2)))
    assert np.isfinite(whitened).all()
    assert np.abs(whitened).max() < 1e-5
    assert mean.tolist() == [1.0, 1.0]


def test_one_direction_is_no_special_case() -> None:
    whitened, mean = whiten(np.array([[2.0, 0.0]]), np.array([[1.0], [3.0]]))
    assert np.abs(whitened).tolist() == [[2.0, 0.0]]
    assert mean.tolist() == [2.0]


def test_projections_on_principal_directions_have_unit_variance() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 6)) * [9, 5, 3, 1, 0.5, 0.1]).astype(np.float32)
    features -= features.mean(axis=0)
    projected = features @ principal_directions(features, 4).T
    assert np.allclose(np.cov(projected.T, ddof=0), np.eye(4), atol=1e-3)


@pytest.mark.parametrize(("rows", "columns", "count"), [(0, 5, 3), (1, 5, 3), (2, 5, 8), (50, 3, 8)])
def test_missing_directions_are_zero_rows(rows: int, columns: int, count: int) -> None:
    features = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    basis = principal_directions(features - (features.mean(axis=0) if rows else 0), count)
    assert basis.shape == (count, columns)
    assert basis.dtype == np.float32
    assert np.isfinite(basis).all()
    usable = max(0, min(rows - 1, columns, count))
    assert np.count_nonzero(np.abs(basis).sum(axis=1)) == usable


def test_features_that_are_all_the_same_have_no_direction() -> None:
    assert not principal_directions(np.zeros((9, 4), np.float32), 2).any()
