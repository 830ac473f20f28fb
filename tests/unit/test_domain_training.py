"""The domain training against a slow reference, and what it does with people who say much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import COUNT_RELEASES, SubjectComparisons, releases, train_domain

NO_CLIPPING = 1e9


class NoNoise:
    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


def random_domain(seed: int, subjects: int = 12, rank: int = 3) -> SubjectComparisons:
    rng = np.random.default_rng(seed)
    subject_C = np.repeat(np.arange(subjects), rng.integers(1, 9, subjects))
    count = len(subject_C)
    return SubjectComparisons(
        subjects, subject_C, rng.normal(0.3, 1.0, (count, rank)), 0.5 * rng.normal(size=count), rng.random(count) + 0.1
    )


def reference(data: SubjectComparisons, prior: float) -> np.ndarray:
    """Sum over subjects of the weighted mean loss of their comparisons, and of the prior."""

    def loss(adapter: np.ndarray) -> float:
        total = 0.5 * data.subjects * prior * float(adapter @ adapter)
        for subject in range(data.subjects):
            mine = np.flatnonzero(data.subject_C == subject)
            weights = data.weights_C[mine] / data.weights_C[mine].sum()
            for weight, row in zip(weights, mine, strict=True):
                margin = data.margins_C[row] + data.differences_C_K[row] @ adapter
                total += weight * float(np.logaddexp(0.0, -margin))
        return total

    found = minimize(loss, np.zeros(data.differences_C_K.shape[1]), method="BFGS", options={"gtol": 1e-9})
    return np.asarray(found.x)


@pytest.mark.parametrize("prior", [0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_without_noise_and_clipping_it_finds_the_minimum_of_the_penalised_loss(seed: int, prior: float) -> None:
    data = random_domain(seed)
    of_one_subject = 0.25 * np.mean([np.outer(row, row) for row in data.differences_C_K], axis=0)
    adapter = train_domain(data, Recipe(NO_CLIPPING, prior, 20, of_one_subject), 0.0, NoNoise())
    assert np.allclose(adapter, reference(data, prior), atol=1e-4)


def test_an_endless_prior_leaves_no_adapter() -> None:
    assert np.abs(train_domain(random_domain(0), Recipe(1.0, 1e12, 20, np.eye(3)), 0.0, NoNoise())).max() < 1e-9


@given(st.integers(0, 10_000), st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_saying_everything_n_times_says_no_more_than_once(seed: int, copies: int) -> None:
    data = random_domain(seed, subjects=4)
    loud = SubjectComparisons(
        4,
        *(
            np.repeat(column, copies, axis=0)
            for column in (data.subject_C, data.differences_C_K, data.margins_C, data.weights_C)
        ),
    )
    recipe = Recipe(0.3, 1.0, 5, np.eye(3))
    assert np.allclose(
        train_domain(data, recipe, 0.0, NoNoise()), train_domain(loud, recipe, 0.0, NoNoise()), rtol=1e-8
    )


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_order_of_comparisons_and_the_names_of_subjects_do_not_matter(seed: int) -> None:
    data = random_domain(seed)
    rng = np.random.default_rng(seed)
    order, renamed = rng.permutation(len(data.subject_C)), rng.permutation(data.subjects)
    shuffled = SubjectComparisons(
        data.subjects,
        renamed[data.subject_C][order],
        data.differences_C_K[order],
        data.margins_C[order],
        data.weights_C[order],
    )
    recipe = Recipe(0.3, 1.0, 5, np.eye(3))
    assert np.allclose(
        train_domain(data, recipe, 0.0, NoNoise()),
        train_domain(shuffled, recipe, 0.0, NoNoise()),
        rtol=1e-8,
        atol=1e-12,
    )


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_subject_whose_weights_are_not_positive_stays_bounded(weight: float) -> None:
    data = random_domain(0, subjects=3)
    odd = replace(data, weights_C=np.where(data.subject_C == 1, weight, data.weights_C))
    adapter = train_domain(odd, Recipe(0.5, 1.0, 10, np.eye(3)), 0.0, NoNoise())
    assert np.isfinite(adapter).all()
    assert np.linalg.norm(adapter) <= 0.5 * 3


def test_a_domain_of_nobody_learns_nothing() -> None:
    nobody = SubjectComparisons(0, np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    assert np.array_equal(train_domain(nobody, Recipe(1.0, 1.0, 5, np.eye(3)), 0.0, NoNoise()), np.zeros(3))


def test_the_count_is_one_release_of_the_plan() -> None:
    assert COUNT_RELEASES == 1
    assert releases(Recipe(1.0, 1.0, 6, np.eye(1))) == 7
