"""The only noise of production: standard normal, independent, never repeated, and nobody can seed it.

Every bound below fails a right implementation less than once in a million runs.
"""

from __future__ import annotations

import inspect
import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

from idiolect_adapters.training import clip_noise
from idiolect_adapters.training.clip_noise import SecureNoise

DRAWS = 400_000
SIGMAS = 5.5  # two-sided: 4e-8
P_VALUE = 1e-7


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    return SecureNoise().normal((DRAWS,))


def test_the_first_four_moments_are_those_of_a_standard_normal(draws: np.ndarray) -> None:
    assert abs(draws.mean()) < SIGMAS / math.sqrt(DRAWS)
    assert abs(draws.var() - 1.0) < SIGMAS * math.sqrt(2.0 / DRAWS)
    assert abs(stats.skew(draws)) < SIGMAS * math.sqrt(6.0 / DRAWS)
    assert abs(stats.kurtosis(draws)) < SIGMAS * math.sqrt(24.0 / DRAWS)


def test_the_distribution_is_normal_by_kolmogorov_and_smirnov(draws: np.ndarray) -> None:
    assert stats.kstest(draws, "norm").pvalue > P_VALUE


def test_two_hundred_equally_likely_bins_are_filled_alike(draws: np.ndarray) -> None:
    counts = np.bincount(np.minimum((stats.norm.cdf(draws) * 200).astype(int), 199), minlength=200)
    assert stats.chisquare(counts).pvalue > P_VALUE


def test_the_tails_are_there(draws: np.ndarray) -> None:
    assert 4.0 < draws.max() < 8.0
    assert -8.0 < draws.min() < -4.0


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("lag", [1, 2, 3, 4, DRAWS // 4, DRAWS // 2])
def test_draws_of_one_call_are_not_correlated(draws: np.ndarray, lag: int, power: int) -> None:
    """Squares too: Box-Muller makes two draws from one radius, which must not show."""
    first, second = draws[:-lag] ** power, draws[lag:] ** power
    assert abs(np.corrcoef(first, second)[0, 1]) < SIGMAS / math.sqrt(len(first))


def test_draws_of_two_calls_are_not_correlated(draws: np.ndarray) -> None:
    other = SecureNoise().normal((DRAWS,))
    for power in (1, 2):
        assert abs(np.corrcoef(draws**power, other**power)[0, 1]) < SIGMAS / math.sqrt(DRAWS)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_small_and_odd_calls_are_standard_normal_and_independent_inside(count: int) -> None:
    calls = 12_000
    source = SecureNoise()
    rows = np.array([source.normal((count,)) for _ in range(calls)])
    assert stats.kstest(rows.ravel(), "norm").pvalue > P_VALUE
    for power in (1, 2):
        correlation = np.atleast_2d(np.corrcoef(rows.T**power))
        off_diagonal = correlation[~np.eye(count, dtype=bool)]
        # The squares have heavier tails than a normal, so their bound is wider.
        assert np.all(np.abs(off_diagonal) < power * SIGMAS / math.sqrt(calls))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 7), (2, 0, 3), (4096, 12)])
def test_any_shape_is_filled(shape: tuple[int, ...]) -> None:
    drawn = SecureNoise().normal(shape)
    assert drawn.shape == shape
    assert drawn.dtype == np.float64
    assert np.isfinite(drawn).all()
    assert len(np.unique(drawn)) == drawn.size


def test_no_two_calls_give_the_same_draws() -> None:
    values = np.concatenate([SecureNoise().normal((5,)) for _ in range(2_000)])
    assert len(np.unique(values)) == len(values)


def test_nothing_can_seed_it() -> None:
    seen = set()
    for _ in range(3):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        seen.add(float(SecureNoise().normal((1,))[0]))
    assert len(seen) == 3


def test_there_is_no_seed_to_pass_or_to_keep() -> None:
    assert SecureNoise.__init__ is object.__init__
    assert list(inspect.signature(SecureNoise.normal).parameters) == ["self", "shape"]
    assert not vars(SecureNoise())
    with pytest.raises(TypeError):
        SecureNoise(1)  # type: ignore[call-arg]


def test_every_call_takes_a_fresh_key_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bytes] = []
    real = clip_noise.os.urandom

    def counted(size: int) -> bytes:
        taken.append(real(size))
        return taken[-1]

    monkeypatch.setattr(clip_noise.os, "urandom", counted)
    for _ in range(10):
        SecureNoise().normal((4,))
    assert len(taken) == len(set(taken)) == 20
    assert all(len(key) == 16 for key in taken)


def test_each_draw_is_the_sum_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardening against floating-point attacks: with every Gaussian equal to 1, a draw is 4 / sqrt(4)."""
    monkeypatch.setattr(clip_noise, "_box_muller", np.ones_like)
    assert np.array_equal(SecureNoise().normal((3,)), np.full(3, 2.0))


def test_the_uniforms_are_never_zero_whose_logarithm_would_be_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        def __init__(self, byte: bytes) -> None:
            self.byte = byte

        def encryptor(self) -> Constant:
            return self

        def update(self, data: bytes) -> bytes:
            return self.byte * len(data)

    for byte, expected in ((b"\x00", 2.0**-53), (b"\xff", 1.0)):
        monkeypatch.setattr(clip_noise, "Cipher", lambda *_, byte=byte: Constant(byte))
        assert np.array_equal(clip_noise._uniforms(4), np.full(4, expected))
        assert np.isfinite(SecureNoise().normal((3,))).all()
